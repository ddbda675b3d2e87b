"""Values files for the official chart, as `helm show values dask/dask` prints them and people edit them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from settings.chart import KUBERNETES_OBJECTS, default_values
from settings.common import Place

# The chart's own images, also those of earlier versions. Our pods install the packages of the lock instead.
IMAGES = {f"{place}/{name}" for place in ("ghcr.io/dask", "daskdev") for name in ("dask", "dask-notebook")}
LOCK = "pods install the packages of environment.lock; write image instead if it contains all packages"
# Keys that have no meaning in our chart, and what to use instead.
REPLACEMENTS = {
    r".*\.metrics": "let Prometheus read /metrics on the ports of the dashboards, 8787 and 8790",
    r".*\.default_resources": "use workers.cpu and workers.memory",
    r"jupyter\.password(Hint)?": "use `pulumi config set --secret dask:jupyterPassword`",
    r"jupyter\.rbac": "use jupyter.serviceAccount to give notebooks rights",
    r"jupyter\.replicas": "there is one notebook server",
}
COPY = 10  # equal values that tell an edited copy of the file from a few values


def edits(values: dict[str, Any], chart: str) -> tuple[dict[str, Any], dict[Place, str]]:
    """What `values` changes, and notes on the keys that have another effect than in the official chart, or none.

    If `values` is a copy of the official file, the values that nobody edited do not override the stack's settings.
    """
    official, notes = default_values("official"), {}
    leaves = list(_leaves(values, official))
    equal = sum(leaves)
    if equal >= COPY and equal >= len(leaves) / 2:
        changed = _changed(values, official)
        values = _own_images(changed, values, notes) if chart == "own" else changed
    if chart == "own":
        values = _known(values, notes, ())
    return values, notes


def _sections(value: Any, default: Any, key: str) -> bool:
    return isinstance(value, dict) and isinstance(default, dict) and bool(default) and key not in KUBERNETES_OBJECTS


def _leaves(values: Mapping[str, Any], official: Mapping[str, Any]) -> Iterator[bool]:
    """For each value, whether it is the default of the official chart."""
    for key, value in values.items():
        if _sections(value, official.get(key), key):
            yield from _leaves(value, official[key])
        else:
            yield key in official and value == official[key]


def _changed(values: Mapping[str, Any], official: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        if _sections(value, official.get(key), key):
            if inner := _changed(value, official[key]):
                found[key] = inner
        elif key not in official or value != official[key]:
            found[key] = value
    return found


def _own_images(changed: dict[str, Any], values: dict[str, Any], notes: dict[Place, str]) -> dict[str, Any]:
    """Keeps the repository and the tag of an image together, and leaves out the official chart's images."""
    result = dict(changed)
    for part in ("scheduler", "worker", "jupyter"):
        image = dict(changed.get(part, {}).get("image", {}))
        if not image.keys() & {"repository", "tag"}:
            continue
        whole = default_values("official")[part]["image"] | values[part]["image"]
        if whole["repository"] in IMAGES:
            notes[part, "image"] = f"has no effect; {LOCK}"
            image = {key: value for key, value in image.items() if key not in ("repository", "tag")}
        else:
            notes[part, "image"] = f"in this image, {LOCK}"
            image |= {key: whole[key] for key in ("repository", "tag")}
        result[part] = {**changed[part], "image": image}
    return result


def _known(values: Any, notes: dict[Place, str], place: Place) -> Any:
    """The values without the keys that only the official chart has."""
    if isinstance(values, list):
        return [_known(each, notes, (*place, index)) for index, each in enumerate(values)]
    if not isinstance(values, dict) or (place and place[-1] in KUBERNETES_OBJECTS):
        return values
    found = {}
    for key, value in values.items():
        here = (*place, key)
        name = ".".join(map(str, here))
        if remedy := next((text for known, text in REPLACEMENTS.items() if re.fullmatch(known, name)), ""):
            notes[here] = f"has no effect; {remedy}"
        else:
            found[key] = _known(value, notes, here)
    return found
