"""What a stack may say about machines that it makes in Google Cloud."""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from settings import cost
from settings.common import Conflict, Limits, Listed, Numbered, Place, Section, memory, seconds, valid_duration
from settings.gke import NAME, Accelerators, Machine, Name, Private, Project, matching

if TYPE_CHECKING:
    from settings.machines import MachinesTarget

IAP = "35.235.240.0/20"  # where Google's IAP connects from

Zone = Annotated[str, matching(r"[a-z]+-[a-z]+[0-9]+-[a-z]", "a zone; write e.g. us-central1-a")]
Image = Annotated[
    str, matching(rf"({NAME}/)?{NAME}|projects/.+", "an image; write e.g. debian-cloud/debian-12, with its project")
]
# Basic roles, and those that give or take rights: any task could use them on the whole project.
BROAD = re.compile(r"roles/(owner|editor|viewer|iam\..*|resourcemanager\..*|.*admin.*)", re.IGNORECASE)


def valid_role(text: str) -> str:
    if BROAD.fullmatch(text):
        raise ValueError(
            f"{text} is too broad: every task on the machines has the roles that are listed here;"
            " name narrow ones, e.g. roles/storage.objectViewer to read from buckets, roles/storage.objectUser to write"
        )
    return text


Role = Annotated[
    str,
    matching(r"(projects/[^/]+/)?roles/[\w.]+", "a role; write e.g. roles/storage.objectViewer"),
    AfterValidator(valid_role),
]


class Instance(Section):
    """A kind of machine; `disk` is in GB."""

    machine: Machine = "e2-standard-2"
    """The machine type."""
    disk: int = Field(30, ge=10, le=65536)
    """Size of the boot disk in GB."""


class WorkerInstance(Instance):
    machine: Machine = "n1-standard-4"
    """The machine type."""
    disk: int = Field(50, ge=10, le=65536)
    """Size of the boot disk in GB."""
    spot: bool = False
    """Spot machines: cheaper, and Google can stop them with half a minute's notice, in which they hand over their
    results. The next `up` starts them again.
    """
    accelerators: Accelerators | None = Field(None, examples=[{"type": "nvidia-tesla-t4"}])
    """GPUs of each worker. They need an image that has drivers; Debian's has none."""


class DataDisk(Section):
    """The disk that holds the shared directory, `size` in GB; one that is there already is used by its `name`."""

    size: int = Field(100, ge=10, le=65536)
    """Size in GB."""
    type: Literal["pd-standard", "pd-balanced", "pd-ssd"] = "pd-balanced"
    """The disk type."""
    name: Name | None = Field(None, examples=["my-disk"])
    """A disk that exists already; it stays when the stack is destroyed."""


class GivenSubnetwork(Section):
    """A network that is there already, and its subnetwork with the range of addresses that this has."""

    name: Name = Field(examples=["my-network"])
    """The network."""
    subnetwork: Name = Field(examples=["my-subnetwork"])
    """Its subnetwork."""
    range: Private = Field(examples=["10.1.0.0/24"])
    """The subnetwork's range of addresses."""


class MachineLimits(Limits):
    """`max_age` ends each machine for good, so long after it was started."""

    max_age: Annotated[str, AfterValidator(valid_duration)] | None = Field(None, examples=["7d"])
    """Google deletes each machine this long after its start. The data disk stays."""


class ComputeSource(Numbered):
    """Compute Engine machines, of which the scheduler's alone can be reached from outside."""

    source: Literal["compute"] = Field(examples=["compute"])
    """Compute Engine machines; only the scheduler's can be reached from outside."""
    project: Project = Field(examples=["my-project"])
    """Your Google Cloud project."""
    zone: Zone = Field(examples=["us-central1-a"])
    """The zone of all machines."""
    scheduler: Instance = Instance()
    """The scheduler's machine."""
    worker: WorkerInstance = WorkerInstance()
    """The workers' machines."""
    image: Image = "debian-cloud/debian-12"
    """The boot image. GPUs need one that has their drivers."""
    data_disk: DataDisk = DataDisk()
    """The disk of the shared directory."""
    labels: dict[
        Annotated[str, matching(r"[a-z][a-z0-9_-]{0,62}", "a label's name; write e.g. team")],
        Annotated[str, matching(r"[a-z0-9_-]{0,63}", "a label's value; write e.g. research")],
    ] = Field({}, examples=[{"team": "research"}])
    """Labels of machines, disks and addresses."""
    network: GivenSubnetwork | None = Field(
        None, examples=[{"name": "my-network", "subnetwork": "my-subnetwork", "range": "10.1.0.0/24"}]
    )
    """A network that exists; its own way out and firewall rules are left alone, and `firewall.ssh` decides who reaches
    the machines. A new network by default.
    """
    range: Private = "10.9.0.0/24"
    """The range of addresses of the stack's own network."""
    roles: Annotated[tuple[Role, ...], Listed] = Field((), examples=[["roles/storage.objectViewer"]])
    """Roles of the machines' account. Every task has them, so broad ones are refused. Without roles, tasks cannot reach
    the metadata server.
    """
    secure_boot: bool = True
    """`false` allows drivers that are not signed."""
    iap_port: int | None = Field(None, ge=1024, le=65535, examples=[2222])
    """A port of your computer for a tunnel of Google's Identity-Aware Proxy. The scheduler's machine then has no
    address on the internet.
    """

    @property
    def region(self) -> str:
        return self.zone.rpartition("-")[0]

    @property
    def cidr(self) -> str:
        """Where the machines reach each other."""
        return self.network.range if self.network else self.range

    def conflicts(self, ssh: tuple[str, ...]) -> Iterator[Conflict]:
        place: Place = ("firewall", "ssh")
        if not ssh and not self.iap_port:
            text = (
                "is empty: nobody could reach the scheduler's machine; write the networks that may, e.g."
                ' ["203.0.113.7/32"] for your own address, or machines.iapPort for a tunnel of Google\'s IAP'
            )
            yield Conflict(place, text)
        for index, network in enumerate(ssh):
            if ":" in network:
                yield Conflict((*place, index), f"{network} is of IPv6, which these machines do not have; leave it out")
        if self.network and "range" in self.model_fields_set:
            place = ("machines", "range")
            yield Conflict(place, "is that of a network of its own; leave out one of the two")
        usable = ipaddress.ip_network(self.cidr).num_addresses - 4  # Google keeps four
        if usable < len(self.machine_names):
            place = ("machines", "network", "range") if self.network else ("machines", "range")
            text = (
                f"{self.cidr} has room for {max(usable, 0)} machines, not {len(self.machine_names)}; write a larger one"
            )
            yield Conflict(place, text)

    def bill(self, limits: Limits, prices: Mapping[str, float]) -> list[cost.Item]:
        """What it costs, part by part; machines that are switched off keep their disks."""
        others = cost.prices()["others"] | prices
        stays = 0 if limits.idle else 1
        items = [
            *cost.pool("the scheduler", self.scheduler, 1, stays, prices, disks=1),
            *cost.pool("workers", self.worker, self.workers, stays * self.workers, prices, disks=self.workers),
        ]
        if not self.data_disk.name:
            disk = self.data_disk.size * others[self.data_disk.type] / cost.HOURS
            items.append(cost.Item(f"the data's disk, {self.data_disk.size} GB", disk, disk))
        if not self.iap_port:
            items.append(cost.Item("the scheduler's address", others["address"], others["address"]))
        if not self.network:
            way_out = others["address"] + others["nat"] * len(self.machine_names)
            items.append(cost.Item("the machines' way out, Cloud NAT", way_out, stays * way_out))
        return items

    def priced(self) -> set[str]:
        """The names that its prices can have."""
        accelerators = self.worker.accelerators
        return {self.scheduler.machine, self.worker.machine, *([accelerators.type] if accelerators else [])}


def compute_conflicts(cluster: "MachinesTarget", machines: ComputeSource) -> Iterator[Conflict]:
    """What Google does not have, or what would have no effect there."""
    place: Place
    for name in ("scheduler", "worker"):
        yield from cost.machine_conflicts(("machines", name), getattr(machines, name), cluster.prices)
    if cluster.firewall.open:
        place = ("firewall", "open")
        yield Conflict(place, "opens nothing in Google Cloud, whose network lets SSH in alone; leave it out")
    if cluster.data.delete and machines.data_disk.name:
        place = ("data", "delete")
        text = f"has no effect on disk {machines.data_disk.name}, which is not the stack's and stays; leave it out"
        yield Conflict(place, text)
    idle, oldest, place = cluster.limits.idle, cluster.limits.max_age, ("limits", "maxAge")
    if oldest and seconds(oldest) > 120 * 86400:
        yield Conflict(place, f"{oldest} is more than the 120 days that Google allows; write less, or leave it out")
    elif idle and oldest and seconds(idle) >= seconds(oldest):
        text = f"{oldest} ends machines before they are idle for {idle}; write a longer one, or a shorter limits.idle"
        yield Conflict(place, text)
    size, workers = cost.machine(machines.worker.machine), cluster.workers
    if size and workers.memory_limit and workers.per_machine * memory(workers.memory_limit) > size.memory * 2**30:
        place = ("workers", "memoryLimit")
        text = (
            f"{workers.per_machine} times {workers.memory_limit} is more than the {size.memory:g} GB of a"
            f" {machines.worker.machine}; write less, or a larger machines.worker.machine"
        )
        yield Conflict(place, text)
