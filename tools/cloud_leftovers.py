"""Lists a stack's remaining resources in Google Cloud: python -m tools.cloud_leftovers STACK

Finds them with gcloud, by the stack's label, by its network, and by the labels that GKE puts on resources that it
creates.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from daskstack import configuration
from daskstack.configuration import StackKind
from settings import cost

Found = dict[str, Any]


class Kind(NamedTuple):
    """A kind of resource. KINDS has the order in which gcloud can delete them."""

    group: str
    """The group of gcloud's commands, such as `compute disks`."""
    price: Callable[[Found], float | None]
    """Dollars per hour; None if unknown."""


def nothing(found: Found) -> float:
    return 0.0


def other(name: str) -> Callable[[Found], float]:
    return lambda found: cost.prices()["others"][name]


def disk(found: Found) -> float | None:
    month = cost.prices()["others"].get(last(found.get("type", "pd-balanced")))
    return None if month is None else int(found["sizeGb"]) * month / cost.HOURS


def address(found: Found) -> float:
    return 0.0 if found.get("addressType") == "INTERNAL" else cost.prices()["others"]["address"]


KINDS = [
    Kind("container clusters", other("cluster")),
    Kind(
        "compute instances",
        lambda found: cost.machine_price(
            last(found["machineType"]), found.get("scheduling", {}).get("provisioningModel") == "SPOT", {}
        ),
    ),
    Kind("compute disks", disk),
    Kind("compute forwarding-rules", other("loadBalancer")),
    Kind("compute addresses", address),
    Kind("compute firewall-rules", nothing),
    Kind("compute routers", nothing),
    Kind("compute networks subnets", nothing),
    Kind("compute networks", nothing),
    Kind("iam roles", nothing),
    Kind("iam service-accounts", nothing),
]


def last(url: str) -> str:
    """The last part of a resource's URL, or of its name."""
    return url.rpartition("/")[2]


def belongs(found: Found, stack: str) -> bool:
    """Whether the resource belongs to the stack, or its cluster created it."""
    name = f"dask-{stack}"
    labels = {**found.get("labels", {}), **found.get("resourceLabels", {})}
    return (
        labels.get("dask-stack") == stack
        or labels.get("goog-k8s-cluster-name") == name
        or last(found.get("network", "")) == name
        or found["name"] == name
        or any(last(user) == name for user in found.get("users", []))
        or found.get("description") == f"dask-stack: {stack}"
        or f'"{name}/' in found.get("description", "")  # created for a Service in the stack's namespace
    )


def command(kind: Kind, found: Found, project: str) -> str:
    """The command that deletes the resource."""
    name = found.get("email") or last(found["name"])
    place = ""
    for part in ("zone", "region"):
        if found.get(part):
            place = f" --{part} {last(found[part])}"
    if kind.group == "container clusters":
        place = f" --location {found['location']}"
    elif not place and kind.group in ("compute forwarding-rules", "compute addresses"):
        place = " --global"
    return f"gcloud {kind.group} delete {name}{place} --project {project}"


def left(stack: str, project: str, listed: Mapping[str, list[Found]]) -> Iterator[tuple[str, float | None, str]]:
    """The stack's resources: kind and name, dollars per month, and the command that deletes it."""
    for kind in KINDS:
        for found in listed[kind.group]:
            if belongs(found, stack):
                price = kind.price(found)
                name = last(found.get("email") or found["name"])
                month = None if price is None else price * cost.HOURS
                yield f"{kind.group.split()[-1]} {name}", month, command(kind, found, project)


def look(kind: Kind, project: str) -> list[Found]:
    words = ["gcloud", *kind.group.split(), "list", "--project", project, "--format", "json", "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if done.returncode:
        if "has not been used" in done.stderr or "SERVICE_DISABLED" in done.stderr:
            return []  # a project that never enabled the API has no such resources
        raise RuntimeError(f"`{' '.join(words)}` failed: {done.stderr.strip()}")
    return json.loads(done.stdout or "[]")


def project_of(stack: str) -> str:
    if not (project := StackKind.of(configuration.read(stack)).project):
        raise RuntimeError(f"stack {stack} names no project in Google Cloud, so nothing of it can be left there")
    return project


def report(stack: str, project: str) -> str:
    with ThreadPoolExecutor() as pool:
        listed = dict(zip((kind.group for kind in KINDS), pool.map(lambda k: look(k, project), KINDS), strict=True))
    rows = list(left(stack, project, listed))
    if not rows:
        return f"nothing of stack {stack} is left in project {project}"
    lines = [f"{'dollars a month':>15}  resource, and the command that deletes it"]
    for name, month, deleting in rows:
        lines += [f"{'unknown' if month is None else f'{month:.2f}':>15}  {name}", f"{'':>15}  {deleting}"]
    return "\n".join(lines)


def main(stack: str) -> None:
    if not shutil.which("gcloud"):
        raise RuntimeError("gcloud is not on PATH; install it: https://cloud.google.com/sdk/docs/install")
    print(report(Path(stack).name, project_of(stack)))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        sys.exit(f"error: {error}")
