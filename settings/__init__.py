"""What a stack may say; every error at once, each with its remedy."""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from settings.common import Place, Section, line, shown
from settings.compute import ComputeSource
from settings.existing import HOST_KEY, Bastion, ExistingSource, Host
from settings.gke import GkeSource
from settings.kubernetes import KubernetesTarget
from settings.machines import LocalSource, MachinesTarget

__all__ = [
    "HOST_KEY", "Bastion", "ComputeSource", "ExistingSource", "GkeSource", "Host", "KubernetesTarget", "LocalSource",
    "MachinesTarget", "SettingsError", "parse",
]  # fmt: skip

MINIMAL = {"target": "machines", "machines": {"source": "local", "workers": 2}}


class SettingsError(ValueError):
    """`problems` has a line for each error: where, what was found, what would be right."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n  ".join([f"problems in the stack's settings: {len(problems)}", *problems]))
        self.problems = problems


Cluster = Annotated[MachinesTarget | KubernetesTarget, Field(discriminator="target")]


# Former words of targets and sources, and what they are called now.
RENAMED: dict[Place, str] = {
    ("target", "vms"): "machines",
    ("target", "gke"): "kubernetes",
    ("machines", "source", "gcp"): "compute",
    ("cluster", "source", "gcp"): "gke",
}

# Secrets that the stack has beside its settings, and the commands that set them.
SECRETS = {
    "dask:secretEnv": "pulumi config set --secret --path 'dask:secretEnv.NAME'",
    "dask:jupyterPassword": "pulumi config set --secret dask:jupyterPassword",
    "dask:sshKey": "pulumi config set --secret dask:sshKey < KEYFILE",
}


def parse(value: dict[str, Any], folder: Path) -> MachinesTarget | KubernetesTarget:
    """The settings in `value`, checked against each other and against the lock in the project's `folder`.

    First each value is judged alone; where all are right, what they mean together. Raises SettingsError with everything
    that is wrong in that phase.
    """
    try:
        cluster = TypeAdapter(Cluster).validate_python(value)
    except ValidationError as invalid:
        raise SettingsError(list(_shape_problems(invalid.errors()))) from None
    if problems := [line(place, text) for place, text in cluster.conflicts(folder)]:
        raise SettingsError(problems)
    return cluster.completed()


def _shape_problems(errors: list[dict[str, Any]]) -> Iterator[str]:
    """One line for each mistake, though pydantic may have several errors for it."""
    inside = {error["loc"][:depth] for error in errors for depth in range(len(error["loc"]))}
    explained = [
        (error, *_explain(error))
        for error in errors
        if error["type"] != "too_short" or error["loc"] not in inside  # a list all of whose items are wrong
    ]
    meant = {(*place[:-1], right) for error, place, _, right in explained if error["type"] == "extra_forbidden"}
    for error, place, text, _ in explained:
        if error["type"] != "missing" or place not in meant:  # a misspelt key is one mistake
            yield line(place, text)


# From pydantic's errors to sentences of ours.

_SENTENCES = {
    "bool_type": "{found} is neither true nor false; write e.g. {right}",
    "dict_type": "{found} is not a set of keys; write e.g. {right}",
    "greater_than_equal": "{found} is too small; write {ge} or more",
    "int_type": "{found} is not a whole number; write e.g. {right}",
    "less_than_equal": "{found} is too large; write {le} or less",
    "literal_error": "{found} is not known here; write {expected}",
    "missing": "is missing; write e.g. {right}",
    "model_attributes_type": "{found} is not a set of keys; write some of {keys}",
    "model_type": "{found} is not a set of keys; write some of {keys}",
    "string_type": "{found} is not text; write e.g. {right}",
    "too_short": "the list is empty; write e.g. {right}",
    "tuple_type": "{found} is not a list; write e.g. {right}",
    "union_tag_invalid": "{tag} is not known here; write {expected_tags}",
    "union_tag_not_found": "is missing; write e.g. {right}",
    "value_error": "{error}",
}
_ELSE = "{found} cannot be used here; write e.g. {right}"
_ROOT = FieldInfo(annotation=MachinesTarget | KubernetesTarget, discriminator="target", examples=[MINIMAL])


# Keys that people look for here.
_SECRETS = {
    "password": SECRETS["dask:jupyterPassword"],
    "privateKey": SECRETS["dask:sshKey"],
    "secretEnv": SECRETS["dask:secretEnv"],
    "sshKey": SECRETS["dask:sshKey"],
}


def _is_of_a_name(error: dict[str, Any]) -> bool:
    """Whether it is about a key that the user may choose, such as a label's, and not about its value."""
    return len(error["loc"]) > 1 and error["loc"][-1] == "[key]" and error["input"] == error["loc"][-2]


def _explain(error: dict[str, Any]) -> tuple[Place, str, Any]:
    """Where an error is, a sentence about it, and what would be right: a key for a key, else a value."""
    kind, context = error["type"], error.get("ctx", {})
    place, section, field = _look_up(error["loc"][:-1] if _is_of_a_name(error) else error["loc"])
    keys = [str(known.alias) for known in section.model_fields.values()]
    if kind == "extra_forbidden":
        nearest = difflib.get_close_matches(str(place[-1]), keys, n=1)
        remedy = f"did you mean {nearest[0]}?" if nearest else f"the keys here are {', '.join(keys)}"
        if secret := _SECRETS.get(str(place[-1])):
            nearest, remedy = [], f"it is a secret of its own: {secret}"
        return place, f"is not a key that is known here; {remedy}", "".join(nearest)

    right = field.examples[0] if field.examples else field.default
    if isinstance(right, Section):
        right = right.model_dump(by_alias=True, mode="json")
    if kind.startswith("union_tag"):
        tag = str(field.discriminator)
        right = _guess(field, error["input"])
        place = (*place, tag)
        if renamed := RENAMED.get((*place, context.get("tag", ""))):
            return place, f"{context['tag']} is called {renamed} now; write {renamed}", renamed
    elif place and isinstance(place[-1], int):
        right = right[0]
    elif kind == "string_type" and right is None:  # under a key of the user's own
        right = json.dumps(error["input"]) if isinstance(error["input"], bool | int | float) else "text"
    words = {"found": shown(error["input"]), "right": shown(right, None), "keys": ", ".join(keys), **context}
    if "error" in words and isinstance(error["input"], str):
        words["error"] = _clipped(str(words["error"]), error["input"])
    return place, _SENTENCES.get(kind, _ELSE).format(**words), right


def _clipped(sentence: str, found: str) -> str:
    """The sentence with only the beginning of what was found, where that is long."""
    for text in (found, repr(found)[1:-1]) if len(found) > 80 else ():
        sentence = sentence.replace(text, text[:60] + " ...")
    return sentence


def _guess(field: FieldInfo, section: dict[str, Any]) -> str:
    """Which kind a section is meant to be whose discriminator is wrong or missing: its word, or its keys tell."""
    keys = {_tags(kind, field)[0]: {known.alias for known in kind.model_fields.values()} for kind in sections(field)}
    nearest = difflib.get_close_matches(str(section.get(str(field.discriminator))).lower(), keys, n=1)
    return nearest[0] if nearest else max(keys, key=lambda tag: len(keys[tag] & section.keys()))


def _look_up(location: Place) -> tuple[Place, type[Section], FieldInfo]:
    """A pydantic location without the tags of unions, the section of its last key, and that key's field."""
    place: Place = ()
    section, field = MachinesTarget, _ROOT
    for part in location:
        if field.discriminator and (tagged := [kind for kind in sections(field) if part in _tags(kind, field)]):
            section, field = tagged[0], Field()
            continue
        place += (part,)
        if isinstance(part, str):
            known = {field.alias: field for field in section.model_fields.values()}
            field = known.get(part) or Field(None, examples=_values(field))
            section = next(iter(sections(field)), section)
    return place, section, field


def _values(field: FieldInfo) -> list[Any] | None:
    """Examples of what stands under the keys of a field that has any keys."""
    example = field.examples[0] if field.examples else None
    return list(example.values()) or None if isinstance(example, dict) else None


def sections(field: FieldInfo) -> list[type[Section]]:
    """The sections that a field can hold."""
    kinds = (field.annotation, *get_args(field.annotation))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]


def _tags(section: type[Section], field: FieldInfo) -> tuple[str, ...]:
    """The words by which the field's discriminator picks this section."""
    return get_args(section.model_fields[str(field.discriminator)].annotation)
