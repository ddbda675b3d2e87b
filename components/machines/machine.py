"""The machines of a cluster, as the tree of `pulumi up` shows them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pulumi import ComponentResource, Input, Resource, ResourceOptions
from pulumi_command import local, remote

from components.machines.step import Host, Step
from settings import MachinesTarget

# All steps that a machine with `gone: true` may have had. Its certificates are not among them: they were signed on the
# scheduler's machine, which revokes them.
STATES = ("firewall", "keys", "authority", "credentials", "data", "environment", "service", "jupyter", "jobs")

Variables = Mapping[str, Input[str] | Path]


class Machine(ComponentResource):
    """A machine and its steps. Each step runs after the one before it."""

    name: str
    host: Host
    scripts: local.Command
    """Its copies of the steps; every step runs after it."""
    steps: list[Step]

    def __init__(self, name: str, host: Host, opts: ResourceOptions | None = None):
        super().__init__("dask:index:Machine", name, {}, opts)
        self.name = name
        self.host = host
        self.steps = []

    def step(self, state: str, variables: Variables, *, after: Sequence[Step | Resource] = ()) -> Step:
        """Adds a step, which runs after this machine's earlier steps and after the steps in `after`."""
        name = f"{self.name}-{state}"
        step = Step(
            name, state, self.host, variables, parent=self, after=[*(self.steps[-1:] or [self.scripts]), *after]
        )
        self.steps.append(step)
        return step


@dataclass(frozen=True)
class Cluster:
    """The machines of one cluster, on which its steps run."""

    name: str
    """The names of the cluster's resources begin with it."""
    component: ComponentResource
    """The parent of the resources that belong to no single machine."""
    settings: MachinesTarget
    hosts: Sequence[Host]
    """The machines that exist, the scheduler's first."""

    @cached_property
    def machines(self) -> dict[str, Machine]:
        """The machines by their names in the cluster."""
        return {host.name: self._machine(host) for host in self.hosts}

    @cached_property
    def head(self) -> Machine:
        """The scheduler's machine, which also signs the others' credentials."""
        return self.machines[self.hosts[0].name]

    @cached_property
    def workers(self) -> list[str]:
        """The names of the machines that run workers."""
        works = self.settings.machines.scheduler_works
        return [name for name, machine in self.machines.items() if works or machine is not self.head]

    @property
    def steps(self) -> list[Step]:
        return [step for machine in self.machines.values() for step in machine.steps]

    def everywhere(self, state: str, variables: Callable[[Machine], Variables], *, first: Machine) -> None:
        """Runs a step on one machine, then on all others at the same time."""
        lead = first.step(state, variables(first))
        for machine in self.machines.values():
            if machine is not first:
                machine.step(state, variables(machine), after=[lead])

    def on_head(
        self, state: str, variables: Variables, after: Sequence[Step | Resource], *, show: bool = False
    ) -> Step:
        """Runs a step for all machines together, on the scheduler's machine."""
        name, host = f"{self.name}-{state}", self.head.host
        after = after or [self.head.scripts]
        return Step(name, state, host, variables, parent=self.component, after=after, show=show)

    def head_seen_from(self, machine: Machine) -> Input[str]:
        """The address of the scheduler's machine; empty on that machine, which needs no network to reach itself."""
        return "" if machine is self.head else self.head.host.address

    def forget(self, host: Host) -> None:
        """Keeps the steps of a machine that is gone in the state, and deletes them without running their undo.

        We cannot know which steps the machine had, so we register all of them. Those that it did not have run `true` on
        the scheduler's machine.
        """
        machine = self._machine(host)
        opts = ResourceOptions(parent=machine, ignore_changes=["*"], retain_on_delete=True)
        connection = remote.ConnectionArgs(**self.head.host.connection)
        for state in STATES:
            remote.Command(f"{machine.name}-{state}", connection=connection, create="true", opts=opts)
        for sent in ("files", "scripts"):
            local.Command(f"{machine.name}-{sent}", create="true", opts=opts)

    def _machine(self, host: Host) -> Machine:
        return Machine(f"{self.name}-{host.name}", host, ResourceOptions(parent=self.component))
