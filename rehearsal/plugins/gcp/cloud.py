"""The simulated cloud: one JSON file per resource in the rehearsal's folder, at a path equal to its ID.

A disk's contents are in the file `NAME.img` next to it. Removing a file simulates deleting the resource by hand.
"""

import base64
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from command import wire
from command.output import CommandError
from gcp import checks
from gcp.kinds import Kind, State, last
from gcp.table import KINDS

Record = dict[str, Any]  # type, inputs (plain), outputs (plain), links, made; `kubernetes` of a cluster


class Cloud:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, identity: str) -> Record | None:
        path = self._path(identity)
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, identity: str, record: Record) -> None:
        path = self._path(identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(record, indent=1) + "\n")
        new.replace(path)

    def create(self, identity: str, record: Record) -> None:
        self.admit(identity, record)
        self._path(identity).with_suffix(".img").unlink(missing_ok=True)  # a new disk is blank
        self.write(identity, record)

    def admit(self, identity: str, record: Record) -> None:
        """Fail if the resource already exists, or if a resource that it needs does not."""
        if self.read(identity) and not KINDS[record["type"]].joins:
            raise CommandError(f"{identity} already exists (alreadyExists); delete it, or import it into the stack")
        for link, _ in links_of(record):
            if last(link) != "default" and self.read(link) is None:
                raise CommandError(
                    f"{link} was not found (notFound); {identity} refers to it, and a rehearsal starts empty"
                )

    def trust(self, authority: str) -> None:
        """Store the certificate authority (base64) of a cluster's endpoint as `ca.pem`, for SSL_CERT_FILE.

        The DNS endpoint of a real cluster has a publicly trusted certificate.
        """
        path = self._folder / "ca.pem"
        path.write_bytes(base64.b64decode(authority)) if authority else path.unlink(missing_ok=True)

    def delete(self, identity: str) -> None:
        """Delete the resource and its parts. It may not exist. Fails while other resources need it."""
        parts = []
        for other, record in self.records():
            for link, part in links_of(record):
                if link == identity and not part:
                    raise CommandError(
                        f"{identity} is used by {other} (resourceInUseByAnotherResource); delete that first"
                    )
                if link == identity:
                    parts.append(other)
        for each in (*parts, identity):
            self._path(each).unlink(missing_ok=True)
            self._path(each).with_suffix(".img").unlink(missing_ok=True)

    def records(self, kind: str = "") -> Iterator[tuple[str, Record]]:
        """All resources, or all of one type, sorted by age with the oldest first."""
        found = []
        for path in self._folder.rglob("*.json"):
            record = json.loads(path.read_text())
            if not kind or record.get("type") == kind:
                found.append((str(path.relative_to(self._folder).with_suffix("")), record))
        return iter(sorted(found, key=lambda pair: pair[1].get("made", 0)))

    def _path(self, identity: str) -> Path:
        # Only IAM members contain a double slash: principal://iam.googleapis.com/...
        if not identity or any(part in ("", ".", "..") for part in identity.replace("://", "/").split("/")):
            raise CommandError(f"{identity!r} is not a resource ID")
        return self._folder / f"{identity}.json"


def links_of(record: Record) -> Iterator[tuple[str, bool]]:
    """The IDs that a record refers to, each with whether the resource is a part of it."""
    return ((link, part) for link, part in record.get("links", []))


def simulated_cloud() -> Cloud:
    folder = os.environ.get("DASKSTACK_REHEARSAL")
    if not folder:
        raise CommandError("the stand-in for gcp only works in a rehearsal, but DASKSTACK_REHEARSAL is not set")
    return Cloud(Path(folder) / "gcp")


def places(inputs: dict[str, Any], config: dict[str, Any]) -> dict[str, str]:
    """Project, region, zone and location of a resource, from its inputs or the provider's."""
    whole = next((str(inputs[name]) for name in ("cluster", "instance") if "/" in str(inputs.get(name))), "")
    named = {
        key: found[1] for key in ("project", "location", "zone") if (found := re.search(rf"{key}s/([^/]+)/", whole))
    }
    project, location = named.get("project"), inputs.get("location") or named.get("location") or config.get("zone")
    zone = last(inputs.get("zone") or named.get("zone") or config.get("zone") or "")
    region = last(inputs.get("region") or "") or re.sub(r"-[a-z]$", "", inputs.get("location") or "")
    found = {
        "project": inputs.get("project") or project or config.get("project"),
        "region": region or config.get("region") or re.sub(r"-[a-z]$", "", zone),
        "zone": zone,
        "location": location,
    }
    return {name: value for name, value in found.items() if value}


def identify(kind: Kind, inputs: dict[str, Any], where: dict[str, str]) -> str:
    """The ID of a resource, from its known place and name."""
    names = {name: last(value) if name in kind.links else value for name, value in inputs.items()}
    identity = kind.identity.format_map(names | where)
    title = inputs.get("condition", {}).get("title") if "{member}" in kind.identity else None
    return f"{identity}/{title}" if title else identity


def missing_places(kind: Kind, where: dict[str, str]) -> list[str]:
    return [
        name
        for name in ("project", "region", "zone", "location")
        if f"{{{name}}}" in kind.identity and name not in where
    ]


def resolved(kind: Kind, inputs: dict[str, Any], where: dict[str, str]) -> list[tuple[str, bool]]:
    """The IDs that the arguments refer to, each with whether the resource is a part of it."""
    found = []
    for path, link in kind.links.items():
        for _, value in checks.at(whole(kind, inputs), path):
            full = re.search(r"projects/.*", value) if "/" in value else None
            found.append((full[0] if full else link.identity.format(last(value), **where), link.part))
    return found


def effective(kind: Kind, inputs: dict[str, Any], config: dict[str, Any]) -> Any:
    """All labels of a resource: its own, the provider's, and Pulumi's attribution label."""
    if wire.UNKNOWN in (inputs.get(kind.labels), config.get("defaultLabels")):
        return wire.UNKNOWN
    given = inputs.get(kind.labels, {})
    pulumi = {} if config.get("addPulumiAttributionLabel") in (False, "false") else {"goog-pulumi-provisioned": "true"}
    return pulumi | config.get("defaultLabels", {}) | given


def new_record(
    token: str,
    inputs: dict[str, Any],
    config: dict[str, Any],
    made: int = 0,
    known: Iterable[tuple[str, Record]] = (),
    **more: Any,
) -> tuple[str, Record]:
    """A resource's ID and its new record. `known` are all records of the cloud."""
    kind, where = KINDS[token], places(inputs, config)
    identity = identify(kind, inputs, where)
    made = made or time.time_ns()
    links = resolved(kind, inputs, where)
    others = {name: record["outputs"] for name, record in known}
    around = {"before": others.pop(identity, {}), "others": others, "links": [link for link, _ in links]}
    state = State(identity, whole(kind, inputs), where, made, effective(kind, inputs, config), **around, **more)
    filled: dict[str, Any] = {}
    for path, value in kind.filled.items():
        put(filled, path, value(state), inputs)
    outputs = over(filled, settled(kind, inputs, config))
    return identity, {"type": token, "made": made, "inputs": inputs, "outputs": outputs, "links": links} | more


def settled(kind: Kind, inputs: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The outputs that are known in a preview: arguments, defaults, and the place."""
    where = {name: value for name, value in places(inputs, config).items() if f"{{{name}}}" in kind.identity}
    where |= {name: last(inputs[name]) for name in ("region", "zone") if isinstance(inputs.get(name), str)}
    labels = effective(kind, inputs, config) if kind.labels else None
    shown = {"effectiveLabels": labels, "pulumiLabels": labels} if labels is not None else {}
    return whole(kind, inputs) | where | shown


def whole(kind: Kind, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with the plugin's defaults."""
    return checks.with_defaults(kind.token, over(kind.defaults, inputs))


def over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """A deep merge, in which `above` takes precedence."""
    merged = below | above
    for key in below.keys() & above.keys():
        one, other = below[key], above[key]
        if isinstance(one, dict) and isinstance(other, dict):
            merged[key] = over(one, other)
        elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            pairs = zip(one, other, strict=True)
            merged[key] = [over(a, b) if isinstance(a, dict) and isinstance(b, dict) else b for a, b in pairs]
    return merged


def put(tree: dict[str, Any], path: str, value: Any, like: Any) -> None:
    """Set a value at a path. A `[]` in the path stands for as many list items as `like` has there."""
    first, _, rest = path.partition(".")
    if not rest:
        tree[first] = value
    elif first.endswith("[]"):
        key = first.removesuffix("[]")
        items = like.get(key) if isinstance(like, dict) else None
        for number, item in enumerate(items if isinstance(items, list) else []):
            into = tree.setdefault(key, [{} for _ in items])
            put(into[number], rest, value, item)
    else:
        put(tree.setdefault(first, {}), rest, value, like.get(first) if isinstance(like, dict) else None)
