"""Settings of groups of machines whose workers differ from the others (`workers.groups`)."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from settings.common import MACHINES, Conflict, GroupName, Listed, Place, Resources, Section, valid_memory
from settings.compute import ComputeSource, WorkerInstance
from settings.existing import ExistingSource, unknown_machine

if TYPE_CHECKING:
    from settings.machines import MachinesTarget

LOCAL = 240  # machines, without the scheduler's, for which the /24 network of local machines has room
RESERVED = ("scheduler", "worker")  # their machines have such names


class MachineGroup(Section):
    """Machines whose workers differ from the others."""

    name: GroupName = Field(examples=["big"])
    """The group's name, with which the names of its machines begin, except for those that you already have."""
    machines: int | None = Field(None, ge=1, le=MACHINES, examples=[2])
    """Number of machines, in addition to `machines.workers`; 1 by default. Not with `machines.source: existing`."""
    hosts: Annotated[tuple[str, ...], Listed] = Field((), examples=[["store-1"]])
    """The names of those `machines.hosts` that belong to the group. Only with `machines.source: existing`."""
    per_machine: int | None = Field(None, ge=1, le=64, examples=[4])
    """Number of worker processes per machine. The default is the number of GPUs if `worker` has some, and otherwise
    that of `workers`.
    """
    threads: int | None = Field(None, ge=1, examples=[2])
    """Threads per worker process; by default those of `workers`."""
    memory_limit: Annotated[str, AfterValidator(valid_memory)] | None = Field(None, examples=["4 GiB"])
    """Memory limit of each worker process; by default that of `workers`."""
    resources: Resources = Field({}, examples=[{"GPU": 1}])
    """Dask resources of each worker process. Tasks that ask for them run only there:
    `client.submit(..., resources={"GPU": 1})`.
    """
    worker: WorkerInstance | None = Field(None, examples=[{"machine": "n2-highmem-8"}])
    """The group's machines; by default they are like `machines.worker`. Only with `machines.source: compute`."""


@dataclass(frozen=True)
class Group:
    """Machines whose workers are alike, with all defaults."""

    machines: tuple[str, ...]
    per_machine: int
    threads: int | None
    memory_limit: str | None
    resources: Mapping[str, float] = field(default_factory=dict)
    instance: WorkerInstance | None = None
    """The machines' type, if the stack creates them in Google Cloud."""
    place: Place = ("workers",)
    """Where the settings have the group."""
    instance_place: Place = ("machines", "worker")
    """Where the settings have `instance`."""

    @property
    def processes(self) -> int:
        """The number of worker processes that the machines provide."""
        return len(self.machines) * self.per_machine

    def without(self, machines: Collection[str]) -> "Group":
        return replace(self, machines=tuple(name for name in self.machines if name not in machines))

    @property
    def has_bounds(self) -> bool:
        """Whether `workers.min` and `workers.max` apply to the group."""
        return self.place == Group.place

    @property
    def gpu_each(self) -> bool:
        """Whether each worker process has a GPU of its own."""
        return self.per_machine == gpus(self.instance)


def gpus(instance: WorkerInstance | None) -> int:
    return instance.accelerators.count if instance and instance.accelerators else 0


def machine_names(cluster: "MachinesTarget", group: MachineGroup) -> tuple[str, ...]:
    if isinstance(cluster.machines, ExistingSource):
        return tuple(name for name in cluster.machines.machine_names if name in group.hosts)
    return tuple(f"{group.name}-{number}" for number in range(1, (group.machines or 1) + 1))


def groups(cluster: "MachinesTarget") -> list[Group]:
    """All machines that run workers, and those in `workers.missing`. The first group has those that are in no other.

    The scheduler's machine is a group of its own, because it has no GPUs.
    """
    workers, machines = cluster.workers, cluster.machines
    instance = machines.worker if isinstance(machines, ComputeSource) else None

    def grouped(place: Place, group: MachineGroup) -> Group:
        kind = group.worker or instance
        return Group(
            machines=machine_names(cluster, group),
            per_machine=group.per_machine or gpus(group.worker) or workers.per_machine or gpus(kind) or 1,
            threads=group.threads or workers.threads,
            memory_limit=group.memory_limit or workers.memory_limit,
            resources=group.resources,
            instance=kind,
            place=place,
            instance_place=(*place, "worker") if group.worker else Group.instance_place,
        )

    def ungrouped(names: Sequence[str], kind: WorkerInstance | None) -> Group:
        per_machine = workers.per_machine or gpus(kind) or 1
        return Group(tuple(names), per_machine, workers.threads, workers.memory_limit, instance=kind)

    others = [grouped(("workers", "groups", index), group) for index, group in enumerate(workers.groups)]
    taken = {machine for group in others for machine in group.machines}
    rest = [name for name in machines.machine_names if name not in taken]
    head = machines.scheduler_name
    main = ungrouped([name for name in rest if name != head], instance)
    works = [ungrouped([head], None)] if machines.scheduler_works and head in rest else []
    return [main, *works, *others]


def group_conflicts(cluster: "MachinesTarget") -> Iterator[Conflict]:
    workers, machines = cluster.workers, cluster.machines
    names: list[str] = []
    hosts: list[str] = []
    for index, group in enumerate(workers.groups):
        place: Place = ("workers", "groups", index)
        if group.name in (*RESERVED, *names):
            yield Conflict((*place, "name"), f"{group.name} is already the name of other machines; write another one")
        names.append(group.name)
        if group.worker and not isinstance(machines, ComputeSource):
            yield Conflict((*place, "worker"), "applies only to machines in Google Cloud; remove it")
        if isinstance(machines, ExistingSource):
            yield from _host_conflicts(place, group, machines, hosts)
            hosts += group.hosts
        elif group.hosts:
            text = "applies only to machines that you already have; write e.g. machines: 2"
            yield Conflict((*place, "hosts"), text)
    count = len(cluster.listed) - 1
    if not isinstance(machines, (ExistingSource, ComputeSource)) and count > LOCAL:
        text = f"the network has no room for {count} local machines besides the scheduler's; write {LOCAL} or less"
        yield Conflict(("machines", "workers"), text)


def _host_conflicts(
    place: Place, group: MachineGroup, machines: ExistingSource, taken: Sequence[str]
) -> Iterator[Conflict]:
    """`taken` are the hosts of the groups before this one."""
    if group.machines is not None:
        text = "applies only to machines that the stack creates; remove it, and list the machines in hosts"
        yield Conflict((*place, "machines"), text)
    known = tuple(host.name for host in machines.hosts)
    if not group.hosts:
        yield Conflict((*place, "hosts"), f"is missing; write names of machines.hosts, e.g. [{known[-1]}]")
    for index, name in enumerate(group.hosts):
        here = (*place, "hosts", index)
        if name not in known:
            yield Conflict(here, unknown_machine(name, known))
        elif name in taken or name in group.hosts[:index]:
            yield Conflict(here, f"{name} is already in a group; list each machine once")
        elif name == machines.scheduler_name and not machines.scheduler_works:
            text = f"{name} runs the scheduler and no workers; remove it, or set machines.schedulerWorks: true"
            yield Conflict(here, text)
