"""Leaves out machines that cannot join a cluster: python -m tools.missing_machines STACK [EVENTS]

`up` of a stack with `workers.atLeast` runs it before Pulumi, without EVENTS: the list `workers.missing` in the stack
file becomes empty, so that every machine is tried. If Pulumi then fails, EVENTS is its log of events. Machines that
cannot join according to it are added to the list if enough others remain; otherwise the exit status is 1.
"""

import re
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from daskstack import configuration, engine
from daskstack.configuration import KEY
from settings import ExistingSource, MachinesTarget, SettingsError, parse
from tools.google_errors import errors

PLACE = f"{KEY}.workers.missing"
# A machine in the report of on_this_computer.preflight.
REPORT = re.compile(r"^ *([a-z0-9-]+) \(\S+\):\n((?: *- .*\n|  .*\n)+)", re.MULTILINE)


def unfit(events: str, cluster: MachinesTarget) -> dict[str, str]:
    """The machines that cannot join, and why, by Pulumi's log of events."""
    found: dict[str, str] = {}
    for resource, message in errors(events):
        if key := re.fullmatch("machines-(.+)-host-key", resource):
            if said := re.search("^ *error: (.* shows no ed25519 host key.*)", message, re.MULTILINE):
                found[key[1]] = said[1].strip()
        elif resource == "dask-preflight":
            for name, reasons in REPORT.findall(message):
                found[name] = "; ".join(re.findall("^ *- (.*)", reasons, re.MULTILINE))
    hosts = cluster.machines.hosts if isinstance(cluster.machines, ExistingSource) else ()
    for host in hosts:
        if host.bastion in found:
            found.setdefault(host.name, f"its bastion {host.bastion} does not work")
    return {name: why for name, why in found.items() if name in cluster.machine_names}


def joined(state: Iterable[Mapping]) -> set[str]:
    """The machines of a stack's state that have steps of the cluster, or that the stack has created."""
    found = set()
    for each in state:
        parent = re.search("dask:index:Machine::dask-(.+)$", each.get("parent", ""))
        if each["type"] == "command:remote:Command" and parent:
            found.add(parent[1])
        elif each["type"] == "gcp:compute/instance:Instance":
            found.add(each["urn"].rpartition("::machines-")[2])
    return found


def refusal(cluster: MachinesTarget, unfit: Collection[str], joined: Collection[str]) -> str | None:
    """Why the cluster cannot do without these machines; None if it can.

    A machine that has joined never becomes missing, because leaving it out would remove the cluster from it.
    """
    head = cluster.machines.scheduler_name
    if head in unfit:
        return f"{head} runs the scheduler"
    if cluster.data.machine in unfit:
        return f"{cluster.data.machine} has the shared directory"
    if members := [name for name in unfit if name in joined]:
        return f"{', '.join(members)} has joined the cluster before"
    left = without(cluster, unfit).processes
    least = cluster.workers.at_least or 0
    if left < least:
        return f"the other machines provide {left} worker processes, and workers.atLeast is {least}"
    return None


def without(cluster: MachinesTarget, machines: Collection[str]) -> MachinesTarget:
    missing = (*cluster.workers.missing, *machines)
    return cluster.model_copy(update={"workers": cluster.workers.model_copy(update={"missing": missing})})


def leave_out(stack: str, cluster: MachinesTarget, unfit: Mapping[str, str], joined: Collection[str]) -> None:
    """Adds machines to the list, or ends the program with status 1 if the cluster cannot do without them."""
    if problem := refusal(cluster, unfit.keys(), joined):
        sys.exit(f"error: `up` cannot continue without {', '.join(unfit)}: {problem}")
    for index, (name, why) in enumerate(unfit.items(), len(cluster.workers.missing)):
        arguments = ["--path", "--type", "string", f"{PLACE}[{index}]", name]
        if engine.pulumi(stack, "config", "set", *arguments).returncode:
            raise engine.EngineError(f"could not write {configuration.file(stack).name}; Pulumi's error is above")
        print(f"missing: {name}: {why}", file=sys.stderr)
    print(f"`up` continues without them ({configuration.file(stack).name}: workers.missing).\n", file=sys.stderr)


def main(stack: str, events: str | None = None) -> None:
    found = configuration.read(stack)
    if events is None:
        if found["workers"].get("missing"):
            engine.pulumi(stack, "config", "rm", "--path", PLACE)
        return
    cluster = parse(found, engine.PROJECT)
    assert isinstance(cluster, MachinesTarget)
    file = Path(events)
    failed = unfit(file.read_text(), cluster) if file.exists() else {}
    if not failed:
        sys.exit(1)
    leave_out(stack, cluster, failed, joined(engine.resources(stack)))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except SettingsError:
        sys.exit(1)  # `up` has reported them
    except engine.EngineError as error:
        sys.exit(f"error: {error}")
