"""Tries other kinds of machines if Google has no capacity: python -m tools.next_capacity STACK EVENTS TRIED

`up` of a stack with `machines.source: compute` runs it after a failure. EVENTS is Pulumi's log of events, and TRIED a
file that remembers which entries of `capacity` this `up` has tried for each machine. Each machine for which Google has
no capacity moves to the first entry that was not tried, in `machines.placement` in the stack file. If there is none for
a machine, it becomes one of `workers.missing` if enough others remain; otherwise its placement is again what it was,
and the exit status is 1.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from daskstack import configuration, engine
from daskstack.configuration import KEY
from daskstack.wake_machines import STOCKOUT
from settings import ComputeSource, MachinesTarget, SettingsError, parse
from settings.compute import choices
from tools.google_errors import errors
from tools.missing_machines import leave_out

PLACE = f"{KEY}.machines.placement"


def lacking(events: str, cluster: MachinesTarget) -> list[str]:
    """The machines for which Google has no capacity."""
    found = {resource for resource, message in errors(events) if re.search(STOCKOUT, message)}
    return [name for name in cluster.machine_names if f"machines-{name}" in found]


def place(stack: str, placement: Mapping[str, int], changed: Mapping[str, int]) -> None:
    """Writes the entries of these machines to the stack file."""
    for name, index in changed.items():
        if placement.get(name, 0) == index:
            continue
        placement = {**placement, name: index}
        rest = [other for other, at in placement.items() if at]
        if index:
            words = ["set", "--path", f"{PLACE}.{name}", str(index)]
        else:
            words = ["rm", "--path", f"{PLACE}.{name}" if rest else PLACE]
        if engine.pulumi(stack, "config", *words).returncode:
            raise engine.EngineError(f"could not write {configuration.file(stack).name}; Pulumi's error is above")


def main(stack: str, events: str, tried: str) -> None:
    cluster = parse(configuration.read(stack), engine.PROJECT)
    assert isinstance(cluster, MachinesTarget) and isinstance(cluster.machines, ComputeSource)
    machines, log, memory = cluster.machines, Path(events), Path(tried)
    without = lacking(log.read_text(), cluster) if log.exists() else []
    if not without or machines.scheduler_name in without:
        sys.exit(1)
    known: dict[str, list[int]] = json.loads(memory.read_text()) if memory.exists() else {}
    moved: dict[str, int] = {}
    lost: dict[str, str] = {}
    said = []
    for name in without:
        listed, at = choices(cluster, machines, name), machines.placement.get(name, 0)
        known.setdefault(name, []).append(at)
        left = [index for index in range(len(listed)) if index not in known[name]]
        if left:
            moved[name] = left[0]
            said.append(f"{name}: Google has no {listed[at].name} now; trying {listed[left[0]].name}")
        else:
            kinds = ", ".join(listed[index].name for index in known[name])
            lost[name] = f"Google has no capacity for it now; tried {kinds}"
    memory.write_text(json.dumps(known))
    original = {name: known[name][0] for name in without}
    try:
        if lost and cluster.workers.at_least is None:
            sys.exit("\n".join(f"error: {name}: {why}" for name, why in lost.items()))
        if lost:
            # Even if they were part of the cluster: they are off, or gone.
            leave_out(stack, cluster, lost, joined=())
    except SystemExit:
        place(stack, machines.placement, original)
        raise
    place(stack, machines.placement, original | moved)
    for line in said:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except SettingsError:
        sys.exit(1)  # `up` has reported them
    except engine.EngineError as error:
        sys.exit(f"error: {error}")
