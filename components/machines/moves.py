"""Scheduler and data stay on their machines unless the setting `moves` lets them go."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pulumi import ComponentResource, Output, ResourceOptions, RunError, Stash

from components.machines.step import Host
from settings import MachinesTarget

CONSEQUENCES = {
    "scheduler": "running work ends, and a new authority signs the credentials of all machines",
    "data": "the files stay on the old machine's disk and are not copied; the cluster continues with the files that the"
    " new machine has at data.path",
}
SETTINGS = {"scheduler": "machines.scheduler", "data": "data.machine"}


def refusal(old: Mapping[str, str], new: Mapping[str, str], moves: Sequence[str]) -> str | None:
    """The error if `scheduler` or `data` would move to another machine and `moves` does not list it."""
    moved = [what for what in CONSEQUENCES if old[what] != new[what] and what not in moves]
    if not moved:
        return None
    lines = [
        f"{what} would move from {old[what]} to {new[what]}: {CONSEQUENCES[what]}."
        f" To keep it there: {SETTINGS[what]}: {old[what]}"
        for what in moved
    ]
    return "\n  ".join(
        ["a move must be allowed; nothing was changed", *lines, f"To allow it: moves: [{', '.join(moved)}]"]
    )


def guarded(name: str, component: ComponentResource, hosts: Sequence[Host], settings: MachinesTarget) -> list[Host]:
    """The hosts, on which no step runs if scheduler or data would move without permission.

    The state records the machines of the first `up`. Each host's identity waits for the comparison, and all steps need
    the identity.
    """
    here = {"scheduler": hosts[0].name, "data": settings.data.machine or hosts[0].name}

    def recorded(what: str, machine: str) -> Output[str]:
        kept = [] if what in settings.moves else ["input"]
        opts = ResourceOptions(parent=component, ignore_changes=kept, replace_on_changes=["input"])
        return Stash(f"{name}-{what}-machine", input=machine, opts=opts).output

    def allow(before: dict[str, str]) -> bool:
        if problem := refusal(before, here, settings.moves):
            raise RunError(problem)
        return True

    allowed = Output.all(**{what: recorded(what, machine) for what, machine in here.items()}).apply(allow)
    return [replace(host, identity=Output.all(host.identity, allowed).apply(lambda known: known[0])) for host in hosts]
