"""The JSON that Google documents for its API and gcloud."""

import json
from collections.abc import Iterator
from typing import Any

from daskstack.engine import PROJECT

SHAPES = json.loads((PROJECT / "rehearsal" / "cloud" / "shapes.json").read_text())
PRIMITIVES = {"string": str, "integer": int, "number": int | float, "boolean": bool, "any": object}


def wrong(group: str, answer: Any) -> list[str]:
    """Differences between an answer of a group of gcloud commands and Google's documentation."""
    return list(_wrong(SHAPES["groups"][group], answer, group))


def kind_of(group: str, path: str) -> str:
    """The type of a field in shapes.json; fails if Google has no such field."""
    kind = SHAPES["groups"][group]
    for key in path.split("."):
        kind = SHAPES["types"][kind.strip("[]{}")][key]
    return kind


def _wrong(kind: str, value: Any, place: str) -> Iterator[str]:
    if kind.startswith("["):
        items = enumerate(value) if isinstance(value, list) else [("not a list", None)]
        for number, item in items:
            yield from _wrong(kind[1:-1], item, f"{place}[{number}]")
    elif kind.startswith("{"):
        for key, item in value.items() if isinstance(value, dict) else [("not a map", None)]:
            yield from _wrong(kind[1:-1], item, f"{place}.{key}")
    elif kind in SHAPES["types"]:
        known = SHAPES["types"][kind]
        for key, item in value.items() if isinstance(value, dict) else [("not an object", None)]:
            if key in known:
                yield from _wrong(known[key], item, f"{place}.{key}")
            else:
                yield f"{place}.{key}: there is no such field"
    elif "|" in kind:
        if value not in kind.split("|"):
            yield f"{place}: expected {kind}, found {value!r}"
    elif kind == "string:int64":
        if not (isinstance(value, str) and value.isdigit()):
            yield f"{place}: expected a number as a text, found {value!r}"
    elif not isinstance(value, PRIMITIVES[kind]) or (kind in ("integer", "number") and isinstance(value, bool)):
        yield f"{place}: expected {kind}, found {value!r}"
