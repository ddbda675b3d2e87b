"""Settings of machines that the stack creates in Google Cloud (`machines.source: compute`)."""

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field

from settings import cost
from settings.common import (
    MACHINES,
    Conflict,
    Limits,
    Listed,
    Numbered,
    Place,
    Section,
    dotted,
    memory,
    seconds,
    valid_duration,
)
from settings.existing import unknown_machine
from settings.gke import NAME, Accelerators, GoogleLabels, LocalSsds, Machine, Name, Private, Project, Zone, matching

if TYPE_CHECKING:
    from settings.groups import Group
    from settings.machines import MachinesTarget

IAP = "35.235.240.0/20"  # source addresses of Google's Identity-Aware Proxy

POWER_PORTS = range(22001, 22001 + MACHINES)  # of 127.0.0.1 on the scheduler's machine, one for each worker's machine

Image = Annotated[
    str, matching(rf"({NAME}/)?{NAME}|projects/.+", "an image with its project; write e.g. debian-cloud/debian-12")
]
# Basic roles and roles that manage permissions. Any task could use them on the entire project.
BROAD = re.compile(r"roles/(owner|editor|viewer|iam\..*|resourcemanager\..*|.*admin.*)", re.IGNORECASE)


def valid_role(text: str) -> str:
    if BROAD.fullmatch(text):
        raise ValueError(
            f"{text} is too broad, because every task on the machines has these roles; write narrow ones, e.g."
            " roles/storage.objectViewer to read from buckets or roles/storage.objectUser to write to them"
        )
    return text


Role = Annotated[
    str,
    matching(r"(projects/[^/]+/)?roles/[\w.]+", "a role; write e.g. roles/storage.objectViewer"),
    AfterValidator(valid_role),
]


class Instance(Section):
    """The type and the disk of a machine."""

    machine: Machine = "e2-standard-2"
    """The machine type."""
    disk: int = Field(30, ge=10, le=65536)
    """Size of the boot disk in GB."""


class MachineCapacity(Section):
    """A kind of machines. What it does not say is like the other settings of these machines."""

    zone: Zone | None = Field(None, examples=["us-central1-b"])
    """The zone, in the region of `machines.zone`, which is the default."""
    machine: Machine | None = Field(None, examples=["n2-standard-4"])
    """The machine type."""
    spot: bool | None = Field(None, examples=[True])
    """Use spot machines."""


class WorkerInstance(Instance):
    machine: Machine = "e2-standard-4"
    """The machine type."""
    disk: int = Field(50, ge=10, le=65536)
    """Size of the boot disk in GB."""
    spot: bool = False
    """Use spot machines. They are cheaper, but Google can stop them with 30 seconds' notice. Workers use this time to
    hand over their results. The next `up` starts the machines again; with `workers.min` or `workers.max`, the cluster.
    """
    accelerators: Accelerators | None = Field(None, examples=[{"type": "nvidia-tesla-t4"}])
    """GPUs of each worker machine. They require an image with drivers; Debian's image has none."""
    local_ssds: LocalSsds = 0
    """Local SSDs of each worker machine, 375 GB each, to which its workers spill. They are empty after every boot."""
    capacity: Annotated[tuple[MachineCapacity, ...], Listed] = Field((), examples=[[{"spot": True}, {"spot": False}]])
    """Kinds of machines, the preferred one first. If Google has none of a kind, `daskstack up` tries the next one, and
    records it in `machines.placement`.
    """


class DataDisk(Section):
    """The disk of the shared directory."""

    size: int = Field(100, ge=10, le=65536)
    """Size in GB."""
    type: Literal["pd-standard", "pd-balanced", "pd-ssd"] = "pd-balanced"
    """The disk type."""
    name: Name | None = Field(None, examples=["my-disk"])
    """An existing disk to use instead of a new one. `destroy` does not delete it."""


class GivenSubnetwork(Section):
    """An existing network."""

    name: Name = Field(examples=["my-network"])
    """The network."""
    project: Project | None = Field(None, examples=["my-host-project"])
    """The host project of a Shared VPC, in which the stack creates its firewall rules; the stack's own project by
    default.
    """
    subnetwork: Name = Field(examples=["my-subnetwork"])
    """Its subnetwork."""
    range: Private = Field(examples=["10.1.0.0/24"])
    """The subnetwork's address range."""


class MachineLimits(Limits):
    """Limits on idle time, cost and the age of machines."""

    max_age: Annotated[str, AfterValidator(valid_duration)] | None = Field(None, examples=["7d"])
    """Google deletes each machine this long after it started. It does not delete the data disk."""


class ComputeSource(Numbered):
    """Compute Engine machines. Only the scheduler's is reachable from outside."""

    source: Literal["compute"] = Field(examples=["compute"])
    """Compute Engine machines that the stack creates. Only the scheduler's is reachable from outside."""
    project: Project = Field(examples=["my-project"])
    """Your Google Cloud project."""
    zone: Zone = Field(examples=["us-central1-a"])
    """The zone of all machines but those for which `capacity` names another."""
    scheduler: Instance = Instance()
    """The scheduler's machine."""
    worker: WorkerInstance = WorkerInstance()
    """The workers' machines."""
    placement: dict[str, Annotated[int, Field(ge=0)]] = Field({}, examples=[{"worker-2": 1}])
    """The entry of `capacity` of each machine, counted from 0. Machines that are not named have the first one.
    `daskstack up` writes it.
    """
    image: Image = "debian-cloud/debian-12"
    """The boot image. GPUs require an image with their drivers."""
    data_disk: DataDisk = DataDisk()
    """The disk of the shared directory."""
    labels: GoogleLabels = Field({}, examples=[{"team": "research"}])
    """Labels for machines, disks and addresses."""
    network: GivenSubnetwork | None = Field(
        None, examples=[{"name": "my-network", "subnetwork": "my-subnetwork", "range": "10.1.0.0/24"}]
    )
    """An existing network to use instead of a new one. The stack does not change its NAT or its firewall rules;
    `firewall.ssh` controls access to the machines.
    """
    range: Private = "10.9.0.0/24"
    """The address range of the network that the stack creates."""
    roles: Annotated[tuple[Role, ...], Listed] = Field((), examples=[["roles/storage.objectViewer"]])
    """Roles of the machines' service account in the whole project. Every task has them, so broad roles are rejected.
    For buckets, use `data.buckets`, which gives access to the named ones alone. Without either, tasks cannot reach the
    metadata server.
    """
    secure_boot: bool = True
    """Machines boot only signed software. Set it to `false` for unsigned drivers."""
    iap_port: int | None = Field(None, ge=1024, le=65535, examples=[2222])
    """A port on your computer for a tunnel through Google's Identity-Aware Proxy. The scheduler's machine then has no
    public address.
    """

    @property
    def region(self) -> str:
        return self.zone.rpartition("-")[0]

    @property
    def cidr(self) -> str:
        """The network in which the machines reach each other."""
        return self.network.range if self.network else self.range

    def conflicts(self, ssh: tuple[str, ...], needed: int) -> Iterator[Conflict]:
        """`ssh` is `firewall.ssh`, and `needed` the number of all machines."""
        place: Place = ("firewall", "ssh")
        if not ssh and not self.iap_port:
            text = (
                'is empty, so nobody could reach the scheduler\'s machine; write e.g. ["203.0.113.7/32"] for your own'
                " address, or set machines.iapPort to use a tunnel through Google's IAP"
            )
            yield Conflict(place, text)
        for index, network in enumerate(ssh):
            if ":" in network:
                text = f"{network} is an IPv6 network, but these machines have only IPv4 addresses; remove it"
                yield Conflict((*place, index), text)
        if self.network and "range" in self.model_fields_set:
            place = ("machines", "range")
            yield Conflict(place, "applies only to a network that the stack creates; remove it or machines.network")
        usable = ipaddress.ip_network(self.cidr).num_addresses - 4  # Google reserves four
        if usable < needed:
            place = ("machines", "network", "range") if self.network else ("machines", "range")
            text = f"{self.cidr} has room for {max(usable, 0)} machines, not {needed}; write a larger range"
            yield Conflict(place, text)


class Placed(NamedTuple):
    """A kind of machines in a zone."""

    kind: Instance
    zone: str

    @property
    def name(self) -> str:
        return f"{self.kind.machine}{' spot' if getattr(self.kind, 'spot', False) else ''} in {self.zone}"


def entries(kind: Instance, zone: str) -> list[Placed]:
    """The entries of `capacity`, or the only kind of these machines. `zone` is the default."""

    def entry(each: MachineCapacity) -> Placed:
        changed = {name: value for name in ("machine", "spot") if (value := getattr(each, name)) is not None}
        return Placed(kind.model_copy(update=changed), each.zone or zone)

    capacity = kind.capacity if isinstance(kind, WorkerInstance) else ()
    return [entry(each) for each in capacity] or [Placed(kind, zone)]


def choices(cluster: "MachinesTarget", machines: ComputeSource, name: str) -> list[Placed]:
    """The kinds of which a machine can be, the preferred one first."""
    kind = machines.scheduler if name == machines.scheduler_name else cluster.group_of(name).instance
    assert kind
    return entries(kind, machines.zone)


def placed(cluster: "MachinesTarget", machines: ComputeSource, name: str) -> Placed:
    """The kind of a machine, and its zone."""
    return choices(cluster, machines, name)[machines.placement.get(name, 0)]


def instances(cluster: "MachinesTarget", machines: ComputeSource) -> dict[Place, Instance]:
    """The kinds of machines, by their places in the settings."""
    found: dict[Place, Instance] = {("machines", "scheduler"): machines.scheduler}
    for group in cluster.groups:
        if group.instance:
            here, listed = group.instance_place, entries(group.instance, machines.zone)
            places = [(*here, "capacity", index) for index in range(len(listed))] if group.instance.capacity else [here]
            found |= {place: each.kind for place, each in zip(places, listed, strict=True)}
    return found


def bill(cluster: "MachinesTarget", machines: ComputeSource) -> list[cost.Item]:
    """The cost, item by item. Disks cost money even while their machines are stopped.

    With bounds, the largest number of workers works, and the smallest is idle. Tasks can start all machines.
    """
    prices, region = cluster.prices, machines.region
    count = len(cluster.groups[0].machines)
    others = cost.others(prices, region)
    kept = 0 if cluster.limits.idle else 1
    # The cluster spreads its workers over the machines.
    low, high = (count if bound is None else min(bound, count) for bound in cluster.bounds)
    items = [*cost.pool("the scheduler", machines.scheduler, 1, kept, prices, region, disks=1)]
    items += _pools(cluster, machines, "workers", cluster.groups[0], high, kept * low)
    groups = [group for group in cluster.groups if "groups" in group.place]
    for given, group in zip(cluster.workers.groups, groups, strict=True):
        number = len(group.machines)
        items += _pools(cluster, machines, f"group {given.name}", group, number, kept * number)
    if not machines.data_disk.name:
        disk = machines.data_disk.size * others[machines.data_disk.type] / cost.HOURS
        items.append(cost.Item(f"the data disk, {machines.data_disk.size} GB", disk, disk))
    if not machines.iap_port:
        items.append(cost.Item("the scheduler's address", others["address"], others["address"]))
    if not machines.network:
        nat = others["address"] + others["nat"] * len(cluster.machine_names)
        items.append(cost.Item("Cloud NAT", nat, kept * nat))
    return items


def _pools(
    cluster: "MachinesTarget", machines: ComputeSource, title: str, group: "Group", up: int, idle: int
) -> Iterator[cost.Item]:
    """The cost of machines that are alike but for their entries of `capacity`.

    The largest cost is that of the most expensive entry, because `daskstack up` may move them all to it.
    """
    prices, region = cluster.prices, machines.region
    listed = entries(group.instance or machines.worker, machines.zone)
    # A wrong entry is a conflict.
    at = [min(machines.placement.get(name, 0), len(listed) - 1) for name in group.machines]
    working, kept = Counter(at[:up]), Counter(at[:idle])
    usual: list[cost.Item] = []
    for index, number in sorted(Counter(at).items()):
        kind = listed[index].kind
        usual += cost.pool(title, kind, working[index], kept[index], prices, region, disks=number, most=number)
    yield from usual
    others = {each.name: list(cost.pool(title, each.kind, len(at), 0, prices, region)) for each in listed[1:]}
    yield from cost.fallbacks(usual, others)


def priced(cluster: "MachinesTarget", machines: ComputeSource) -> set[str]:
    """The machine and GPU types for which `prices` may give a price."""
    kinds = instances(cluster, machines).values()
    accelerators = [each.accelerators for each in kinds if isinstance(each, WorkerInstance) and each.accelerators]
    return {each.machine for each in kinds} | {each.type for each in accelerators}


def compute_conflicts(cluster: "MachinesTarget", machines: ComputeSource) -> Iterator[Conflict]:
    """Settings that Google Cloud does not support, or that have no effect there."""
    place: Place
    kinds = instances(cluster, machines)
    for place, kind in kinds.items():
        yield from map(cost.of_all_entries, cost.machine_conflicts(place, kind, cluster.prices))
    if cluster.firewall.open:
        place = ("firewall", "open")
        yield Conflict(place, "has no effect in Google Cloud, where the network admits only SSH; remove it")
    if cluster.data.delete and machines.data_disk.name:
        place = ("data", "delete")
        text = f"has no effect on disk {machines.data_disk.name}, which the stack did not create; remove it"
        yield Conflict(place, text)
    yield from _capacity_conflicts(cluster, machines)
    holder = cluster.data.machine or machines.scheduler_name
    at_head = holder == machines.scheduler_name
    place = ("machines", "scheduler") if at_head else cluster.group_of(holder).instance_place
    if place not in kinds:
        text = f"{holder} holds the data disk, which stays in {machines.zone}; remove it, or write data.machine: "
        yield Conflict((*place, "capacity"), f"{text}{machines.scheduler_name}")
    elif cost.disk_type(kinds[place].machine) != "pd-balanced":
        text = f"{kinds[place].machine} cannot have the data disk, a {machines.data_disk.type}"
        remedy = "write e.g. e2-standard-4, or write another machine for data.machine"
        yield Conflict((*place, "machine"), f"{text}; {remedy}")
    idle, oldest, place = cluster.limits.idle, cluster.limits.max_age, ("limits", "maxAge")
    if oldest and seconds(oldest) > 120 * 86400:
        yield Conflict(place, f"{oldest} is longer than the 120 days that Google allows; write 120d or less")
    elif idle and oldest and seconds(idle) >= seconds(oldest):
        text = f"{oldest} is not longer than limits.idle, {idle}; write a longer duration, or a shorter limits.idle"
        yield Conflict(place, text)
    for group in cluster.groups:
        own = [where for where in kinds if where[: len(group.instance_place)] == group.instance_place]
        for where in own if group.instance else []:
            kind = kinds[where]
            size = cost.machine(kind.machine)
            if size and group.memory_limit and group.per_machine * memory(group.memory_limit) > size.memory * 2**30:
                text = (
                    f"{group.per_machine} times {group.memory_limit} exceeds the {size.memory:g} GB of machine type"
                    f" {kind.machine}; write less, or a larger {dotted(where)[1:]}.machine"
                )
                yield Conflict((*group.place, "memoryLimit"), text)


def _capacity_conflicts(cluster: "MachinesTarget", machines: ComputeSource) -> Iterator[Conflict]:
    """Lists in other regions or with repetitions, and placements of machines or on entries that do not exist."""
    for group in cluster.groups:
        listed = entries(group.instance, machines.zone) if group.instance and group.instance.capacity else []
        for index, each in enumerate(listed):
            place: Place = (*group.instance_place, "capacity", index)
            if not each.zone.startswith(f"{machines.region}-"):
                text = f"{each.zone} is not in the region of machines.zone; write a zone of {machines.region}"
                yield Conflict((*place, "zone"), text)
            if each in listed[:index]:
                yield Conflict(place, f"is {each.name}, like entry {listed.index(each)}; remove one of them")
    names = tuple(name for name in cluster.listed if name != machines.scheduler_name)
    for name, index in machines.placement.items():
        place = ("machines", "placement", name)
        if name not in names:
            yield Conflict(place, f"{unknown_machine(name, names)}, or remove it")
        elif name in cluster.machine_names and index >= (count := len(choices(cluster, machines, name))):
            yield Conflict(place, f"there is no entry {index} in its capacity; write {count - 1} or less, or remove it")
