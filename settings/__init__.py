"""What a stack may say; every error at once, each with its remedy."""

import difflib
import itertools
import json
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, get_args

import pulumi
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from settings.common import KEY, Place, Section, line, shown
from settings.compute import GoogleMachines
from settings.gke import Gke
from settings.google import GoogleCluster
from settings.vms import HOST_KEY, Bastion, Existing, Local, Machine, Vms

__all__ = [
    "HOST_KEY", "Bastion", "Existing", "Gke", "GoogleCluster", "GoogleMachines", "Local", "Machine", "SettingsError",
    "Vms", "load", "parse",
]  # fmt: skip

MINIMAL = {"target": "vms", "machines": {"source": "local", "workers": 2}}


class SettingsError(ValueError):
    """`problems` has a line for each error: where, what was found, what would be right."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n  ".join([f"problems in the stack's settings: {len(problems)}", *problems]))
        self.problems = problems


Cluster = Annotated[Vms | Gke, Field(discriminator="target")]


def load() -> Vms | Gke:
    """The stack's settings; all that is wrong with them in one `pulumi.RunError`."""
    try:
        value = pulumi.Config("dask").get_object("cluster")
    except pulumi.ConfigTypeError:
        value = pulumi.Config("dask").get("cluster")
    try:
        if value is None:
            raise SettingsError(
                [line((), f"is missing; write under `config:` in the stack's file {KEY}: {shown(MINIMAL)}")]
            )
        return parse(value, Path(__file__).parents[1])
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None


def parse(value: dict[str, Any], folder: Path) -> Vms | Gke:
    """The settings in `value`, checked against each other and against the lock in the project's `folder`.

    What is wrong is noted and replaced with something right, until the rest can be judged too. Conflicts with
    such a replacement are not reported. Raises SettingsError.
    """
    whole = {KEY: json.loads(json.dumps(value, default=str))}
    problems: list[str] = []
    replaced: list[Place] = []
    for _ in range(20):  # a wrong tag or key hides what is wrong below it: each round uncovers one level
        try:
            cluster = TypeAdapter(Cluster).validate_python(whole[KEY])
            break
        except ValidationError as invalid:
            errors = invalid.errors()
        # A list all of whose items are wrong is not an empty one.
        items = {error["loc"][:-1] for error in errors}
        errors = [error for error in errors if error["type"] != "too_short" or error["loc"] not in items]
        misspelt = [error for error in errors if error["type"] == "extra_forbidden"]
        for error in misspelt or errors:
            place, text, right = _explain(error)
            problems.append(line(place, text))
            *path, last = (KEY, *place)
            parent = reduce(getitem, path, whole)
            if misspelt:
                wrong = parent.pop(last)
                if right:
                    parent.setdefault(right, wrong)
            else:
                parent[last] = right
                replaced.append(place)
    else:
        raise SettingsError(problems)

    for place, grounds, text in cluster.conflicts(folder):
        pairs = itertools.product(replaced, grounds)
        if not any(old == ground[: len(old)] or ground == old[: len(ground)] for old, ground in pairs):
            problems.append(line(place, text))
    if problems:
        raise SettingsError(problems)
    return cluster.completed()


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
_ROOT = FieldInfo(annotation=Vms | Gke, discriminator="target", examples=[MINIMAL])


def _explain(error: dict[str, Any]) -> tuple[Place, str, Any]:
    """Where an error is, a sentence about it, and what would be right: a key for a key, else a value."""
    kind, context = error["type"], error.get("ctx", {})
    place, section, field = _look_up(error["loc"])
    keys = [str(known.alias) for known in section.model_fields.values()]
    if kind == "extra_forbidden":
        nearest = difflib.get_close_matches(str(place[-1]), keys, n=1)
        remedy = f"did you mean {nearest[0]}?" if nearest else f"the keys here are {', '.join(keys)}"
        return place, f"is not a key that is known here; {remedy}", "".join(nearest)

    right = field.examples[0] if field.examples else field.default
    if isinstance(right, Section):
        right = right.model_dump(by_alias=True, mode="json")
    if kind.startswith("union_tag"):
        tag = str(field.discriminator)
        place, right = (*place, tag), right[tag]
    elif place and isinstance(place[-1], int):
        right = right[0]
    words = {"found": shown(error["input"]), "right": shown(right), "keys": ", ".join(keys), **context}
    return place, _SENTENCES.get(kind, _ELSE).format(**words), right


def _look_up(location: Place) -> tuple[Place, type[Section], FieldInfo]:
    """A pydantic location without the tags of unions, the section of its last key, and that key's field."""
    place: Place = ()
    section, field = Vms, _ROOT
    for part in location:
        if field.discriminator and (tagged := [kind for kind in _sections(field) if part in _tags(kind, field)]):
            section, field = tagged[0], Field()
            continue
        place += (part,)
        if isinstance(part, str):
            known = {field.alias: field for field in section.model_fields.values()}
            field = known.get(part) or Field(None, examples=_values(field))
            section = next(iter(_sections(field)), section)
    return place, section, field


def _values(field: FieldInfo) -> list[Any] | None:
    """Examples of what stands under the keys of a field that has any keys."""
    example = field.examples[0] if field.examples else None
    return list(example.values()) or None if isinstance(example, dict) else None


def _sections(field: FieldInfo) -> list[type[Section]]:
    kinds = (field.annotation, *get_args(field.annotation))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]


def _tags(section: type[Section], field: FieldInfo) -> tuple[str, ...]:
    """The words by which the field's discriminator picks this section."""
    return get_args(section.model_fields[str(field.discriminator)].annotation)
