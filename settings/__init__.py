"""The settings of a stack: models, validation, and readable errors.

`parse` reports all errors together, each with its remedy.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from settings.common import SECRET_ENV, Place, Section, format_value, line
from settings.compute import ComputeSource
from settings.existing import HOST_KEY, Bastion, ExistingSource, Host
from settings.gke import GkeSource
from settings.kubernetes import KubernetesTarget
from settings.machines import LOCAL_RELEASES, LocalSource, MachinesTarget

__all__ = [
    "HOST_KEY", "LOCAL_RELEASES", "Bastion", "ComputeSource", "ExistingSource", "GkeSource", "Host",
    "KubernetesTarget", "LocalSource", "MachinesTarget", "SettingsError", "parse",
]  # fmt: skip

MINIMAL = {"target": "machines", "machines": {"source": "local", "workers": 2}}


class SettingsError(ValueError):
    """`problems` has one line per error: the setting, what is wrong, and what to write instead."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n  ".join([f"found {len(problems)} problem(s) in the stack's settings:", *problems]))
        self.problems = problems


Cluster = Annotated[MachinesTarget | KubernetesTarget, Field(discriminator="target")]


# Values of `target` and `source` in earlier versions, and their replacements.
RENAMED: dict[Place, str] = {
    ("target", "vms"): "machines",
    ("target", "gke"): "kubernetes",
    ("machines", "source", "gcp"): "compute",
    ("cluster", "source", "gcp"): "gke",
}

# The stack's secrets have their own configuration keys. These commands set them.
SECRETS = {
    "dask:secretEnv": SECRET_ENV,
    "dask:jupyterPassword": "pulumi config set --secret dask:jupyterPassword",
    "dask:sshKey": "pulumi config set --secret dask:sshKey < KEYFILE",
}


def parse(value: Any, folder: Path) -> MachinesTarget | KubernetesTarget:
    """Validate `value` and return it as settings. `folder` is the project's, which contains the lock file.

    The first phase validates each value. If all are valid, the second phase checks them against each other and against
    the lock. Raises SettingsError with all problems of the first phase that has any.
    """
    try:
        cluster = TypeAdapter(Cluster).validate_python(value)
    except ValidationError as invalid:
        raise SettingsError(list(_shape_problems(invalid.errors()))) from None
    if problems := [line(place, text) for place, text in cluster.conflicts(folder)]:
        raise SettingsError(problems)
    return cluster.completed()


def _shape_problems(errors: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line per mistake; pydantic can report several errors for one."""
    inside = {error["loc"][:depth] for error in errors for depth in range(len(error["loc"]))}
    explained = [
        (error, *_explain(error))
        for error in errors
        if error["type"] != "too_short" or error["loc"] not in inside  # pydantic drops invalid items from the list
    ]
    meant = {(*place[:-1], right) for error, place, _, right in explained if error["type"] == "extra_forbidden"}
    for error, place, text, _ in explained:
        if error["type"] != "missing" or place not in meant:  # a misspelled key is one mistake, not two
            yield line(place, text)


# Messages by pydantic's error type.
_SENTENCES = {
    "bool_type": "{found} is neither true nor false; write e.g. {right}",
    "dict_type": "{found} is not a mapping; write e.g. {right}",
    "greater_than_equal": "{found} is too small; write {ge} or more",
    "int_type": "{found} is not a whole number; write e.g. {right}",
    "less_than_equal": "{found} is too large; write {le} or less",
    "literal_error": "{found} is not allowed here; write {expected}",
    "missing": "is missing; write e.g. {right}",
    "model_attributes_type": "{found} is not a mapping; the keys here are {keys}",
    "model_type": "{found} is not a mapping; the keys here are {keys}",
    "string_type": "{found} is not a string; write e.g. {right}",
    "too_short": "the list is empty; write e.g. {right}",
    "tuple_type": "{found} is not a list; write e.g. {right}",
    "union_tag_invalid": "{tag} is not allowed here; write one of {expected_tags}",
    "union_tag_not_found": "is missing; write e.g. {right}",
    "value_error": "{error}",
}
_ELSE = "{found} is not allowed here; write e.g. {right}"
_ROOT = FieldInfo(annotation=MachinesTarget | KubernetesTarget, discriminator="target", examples=[MINIMAL])


# Keys that users expect in the settings, but that are secrets.
_SECRETS = {
    "password": SECRETS["dask:jupyterPassword"],
    "privateKey": SECRETS["dask:sshKey"],
    "secretEnv": SECRETS["dask:secretEnv"],
    "sshKey": SECRETS["dask:sshKey"],
}


def _is_about_key(error: Mapping[str, Any]) -> bool:
    """Whether the error concerns a key that the user chose, such as a label's name, rather than its value."""
    return len(error["loc"]) > 1 and error["loc"][-1] == "[key]" and error["input"] == error["loc"][-2]


def _explain(error: Mapping[str, Any]) -> tuple[Place, str, Any]:
    """The place of an error, its message, and its correction: a valid value, or the key that an unknown one means."""
    kind, context = error["type"], error.get("ctx", {})
    place, section, field = _look_up(error["loc"][:-1] if _is_about_key(error) else error["loc"])
    keys = [str(known.alias) for known in section.model_fields.values()]
    if kind == "extra_forbidden":
        nearest = difflib.get_close_matches(str(place[-1]), keys, n=1)
        remedy = f"did you mean {nearest[0]}?" if nearest else f"the keys here are {', '.join(keys)}"
        if secret := _SECRETS.get(str(place[-1])):
            nearest, remedy = [], f"set it as a secret: {secret}"
        return place, f"unknown key; {remedy}", "".join(nearest)

    right = field.examples[0] if field.examples else field.default
    if isinstance(right, Section):
        right = right.model_dump(by_alias=True, mode="json")
    if kind.startswith("union_tag"):
        tag = str(field.discriminator)
        right = _guess(field, error["input"])
        place = (*place, tag)
        if renamed := RENAMED.get((*place, context.get("tag", ""))):
            return place, f"{context['tag']} was renamed; write {renamed}", renamed
    elif place and isinstance(place[-1], int):
        right = right[0]
    elif kind == "string_type" and right is None:  # the value of a key that the user chose
        right = json.dumps(error["input"]) if isinstance(error["input"], bool | int | float) else "text"
    words = {
        "found": format_value(error["input"]),
        "right": format_value(right, None),
        "keys": ", ".join(keys),
        **context,
    }
    if words.get("tag") == "None":
        words["tag"] = format_value(None)
    if "error" in words and isinstance(error["input"], str):
        words["error"] = _truncate_value(str(words["error"]), error["input"])
    return place, _SENTENCES.get(kind, _ELSE).format(**words), right


def _truncate_value(sentence: str, found: str) -> str:
    """The message, with a long value cut short."""
    for text in (found, repr(found)[1:-1]) if len(found) > 80 else ():
        sentence = sentence.replace(text, text[:60] + " ...")
    return sentence


def _guess(field: FieldInfo, section: dict[str, Any]) -> str:
    """The tag that a section with a missing or unknown tag probably means, judged by its spelling or its keys."""
    keys = {_tags(kind, field)[0]: {known.alias for known in kind.model_fields.values()} for kind in sections(field)}
    nearest = difflib.get_close_matches(str(section.get(str(field.discriminator))).lower(), keys, n=1)
    return nearest[0] if nearest else max(keys, key=lambda tag: len(keys[tag] & section.keys()))


def _look_up(location: Place) -> tuple[Place, type[Section], FieldInfo]:
    """Return a pydantic location without union tags, the section that holds its last key, and that key's field."""
    place: Place = ()
    section, field = MachinesTarget, _ROOT
    for part in location:
        if field.discriminator and (tagged := [kind for kind in sections(field) if part in _tags(kind, field)]):
            section, field = tagged[0], FieldInfo()
            continue
        place += (part,)
        if isinstance(part, str):
            known = {field.alias: field for field in section.model_fields.values()}
            field = known.get(part) or FieldInfo(default=None, examples=_values(field))
            section = next(iter(sections(field)), section)
    return place, section, field


def _values(field: FieldInfo) -> list[Any] | None:
    """Example values for a field that is a mapping with the user's own keys."""
    example = field.examples[0] if field.examples else None
    return list(example.values()) or None if isinstance(example, dict) else None


def sections(field: FieldInfo) -> list[type[Section]]:
    """The sections that a field can hold."""
    kinds = (field.annotation, *get_args(field.annotation))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]


def _tags(section: type[Section], field: FieldInfo) -> tuple[str, ...]:
    """The values of the field's discriminator that select this section."""
    return get_args(section.model_fields[str(field.discriminator)].annotation)
