"""The generated documentation and schema of the settings."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import jsonschema
import pytest
import yaml

from daskstack.engine import PROJECT
from settings import KubernetesTarget, MachinesTarget, reference, sections
from settings.common import KEY, Section

STACK_FILES = sorted(PROJECT.glob("Pulumi.*.yaml"))


def all_sections(section: type[Section]) -> Iterator[type[Section]]:
    yield section
    for field in section.model_fields.values():
        for inner in sections(field):
            yield from all_sections(inner)


def test_the_page_and_the_schema_are_up_to_date() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run `make docs`"
    assert reference.SCHEMA.read_text() == reference.schema(), "run `make docs`"


@pytest.mark.parametrize("target", [MachinesTarget, KubernetesTarget])
def test_every_setting_has_a_description_in_complete_sentences(target: type[Section]) -> None:
    for section in all_sections(target):
        for name, field in section.model_fields.items():
            description = reference.plain(field.description)
            assert re.fullmatch(r"[A-Z`].*\.", description), f"{section.__name__}.{name}: {description!r}"


def test_every_setting_is_on_the_page_once_per_place() -> None:
    for target in (MachinesTarget, KubernetesTarget):
        places = [place for place, _ in reference.rows(target)]
        assert len(places) == len(set(places))
        assert all(f"| `{place}` |" in reference.page() for place in places)


@pytest.mark.parametrize("path", STACK_FILES, ids=lambda path: path.name)
def test_shipped_stack_files_refer_to_the_schema_and_match_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert (PROJECT / first.removeprefix("# yaml-language-server: $schema=")) == reference.SCHEMA
    jsonschema.Draft202012Validator(json.loads(reference.schema())).validate(yaml.safe_load(path.read_text()))


def test_only_stack_dev_ships_with_a_salt() -> None:
    """The first `up` writes a salt into the stack's file."""
    assert [path.name for path in STACK_FILES if "encryptionsalt" in path.read_text()] == ["Pulumi.dev.yaml"]


def test_the_schema_rejects_a_misspelled_setting_and_an_invalid_value() -> None:
    check = jsonschema.Draft202012Validator(json.loads(reference.schema()))
    right = yaml.safe_load((PROJECT / "Pulumi.dev.yaml").read_text())
    for place, value in {"wrkers": {}, "workers": {"threads": "two"}, "target": "vms"}.items():
        wrong = deepcopy(right)
        wrong["config"][KEY][place] = value
        assert not check.is_valid(wrong), place
