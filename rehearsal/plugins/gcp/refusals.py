"""Quotas, policies and lacking rights of the simulated project: what Google rejects although the settings are right.

The file limits.json in the rehearsal's folder has them, all optional: `quotas` (numbers by name), `constraints` (names
of the organization's policies), `labels` (which one of its own policies requires), `missing` (machine types that the
zone lacks), `denied` (permissions) and `capacity` (the number of machines of a kind that can run; see
rehearsal/compute). The messages are Google's.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gcp.kinds import VM, last

Record = dict[str, Any]
FIREWALL, DISK = "compute/firewall:Firewall", "compute/disk:Disk"
PERMISSIONS = {FIREWALL: "compute.firewalls.create", VM: "compute.instances.create", DISK: "compute.disks.create"}


def limits() -> dict[str, Any]:
    file = Path(os.environ.get("DASKSTACK_REHEARSAL", "")) / "limits.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def refusal(identity: str, record: Record, known: Iterable[tuple[str, Record]], limits: dict[str, Any]) -> str | None:
    """Google's message if the project's limits forbid to create the resource."""
    if not limits:
        return None
    inputs, kind, project = record["inputs"], record["type"], identity.split("/")[1]
    permission = PERMISSIONS.get(kind)
    if permission in limits.get("denied", ()):
        return f"googleapi: Error 403: Required '{permission}' permission for '{identity}', forbidden"
    if kind in (VM, DISK) and (lacking := set(limits.get("labels", ())) - inputs.get("labels", {}).keys()):
        rule = f'["customConstraints/custom.requireLabels": "Resources need the labels {", ".join(sorted(lacking))}"]'
        return f"googleapi: Error 412: Operation denied by custom org policies: {rule}., conditionNotMet"
    if kind == VM:
        machine, zone = last(inputs["machineType"]), identity.split("/")[3]
        if machine in limits.get("missing", ()):
            link = f"https://www.googleapis.com/compute/v1/projects/{project}/zones/{zone}/machineTypes/{machine}"
            return (
                "Error creating instance: googleapi: Error 400: Invalid value for field 'resource.machineType':"
                f" '{link}'."
                f" Machine type with name '{machine}' does not exist in zone '{zone}'., invalid"
            )
        for name, broken in _constraints(inputs, identity):
            if broken and name in limits.get("constraints", ()):
                return f"Error creating instance: googleapi: Error 412: {broken}, conditionNotMet"
    used = dict(_used(record))
    for name, limit in limits.get("quotas", {}).items():
        others = sum(dict(_used(other)).get(name, 0) for _, other in known)
        if used.get(name, 0) and others + used[name] > limit:
            where = "globally" if name.endswith("ALL_REGIONS") else f"in region {_region(identity)}"
            return f"Error waiting for instance to create: Quota '{name}' exceeded.  Limit: {limit:.1f} {where}."
    return None


def _constraints(inputs: dict[str, Any], identity: str) -> Iterator[tuple[str, str]]:
    """The name of each policy, and Google's message if the machine breaks it."""
    login = str(inputs.get("metadata", {}).get("enable-oslogin", "")).upper()
    text = f"Constraint constraints/compute.requireOsLogin violated for project {identity.split('/')[1]}."
    yield "compute.requireOsLogin", text if login == "FALSE" else ""
    text = (
        "Constraint constraints/compute.vmExternalIpAccess violated for project 123456789012. Add instance"
        f" {identity} to the constraint to use external IP with it."
    )
    yield "compute.vmExternalIpAccess", text if _external(inputs) else ""


def _external(inputs: dict[str, Any]) -> int:
    return sum(len(each.get("accessConfigs") or ()) for each in inputs.get("networkInterfaces", ()))


def _used(record: Record) -> Iterator[tuple[str, float]]:
    """What a resource uses of each quota."""
    inputs = record["inputs"]
    if record["type"] == VM:
        cpus = re.search(r"-(\d+)$", last(inputs["machineType"]))
        yield "CPUS", int(cpus[1]) if cpus else 2
        yield "IN_USE_ADDRESSES", _external(inputs)
        yield "SSD_TOTAL_GB", inputs["bootDisk"].get("initializeParams", {}).get("size", 10)
        yield "GPUS_ALL_REGIONS", sum(each["count"] for each in inputs.get("guestAccelerators", ()))
    elif record["type"] == DISK and inputs.get("type") != "pd-standard":
        yield "SSD_TOTAL_GB", inputs.get("size", 10)


def _region(identity: str) -> str:
    return identity.split("/")[3].rpartition("-")[0]
