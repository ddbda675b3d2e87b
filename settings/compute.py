"""What a stack may say about machines that it makes in Google Cloud."""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from settings import cost
from settings.common import Conflict, Limits, Listed, Numbered, Place, Section, valid_duration
from settings.gke import NAME, Accelerators, Machine, Name, Private, Project, matching

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
    disk: int = Field(30, ge=10, le=65536)


class WorkerInstance(Instance):
    machine: Machine = "n1-standard-4"
    disk: int = Field(50, ge=10, le=65536)
    spot: bool = False
    accelerators: Accelerators | None = Field(None, examples=[{"type": "nvidia-tesla-t4"}])


class DataDisk(Section):
    """The disk that holds the shared directory, `size` in GB; one that is there already is used by its `name`."""

    size: int = Field(100, ge=10, le=65536)
    type: Literal["pd-standard", "pd-balanced", "pd-ssd"] = "pd-balanced"
    name: Name | None = Field(None, examples=["my-disk"])


class GivenSubnetwork(Section):
    """A network that is there already, and its subnetwork with the range of addresses that this has."""

    name: Name = Field(examples=["my-network"])
    subnetwork: Name = Field(examples=["my-subnetwork"])
    range: Private = Field(examples=["10.1.0.0/24"])


class MachineLimits(Limits):
    """`max_age` ends each machine for good, so long after it was started."""

    max_age: Annotated[str, AfterValidator(valid_duration)] | None = Field(None, examples=["7d"])


class ComputeSource(Numbered):
    """Compute Engine machines, of which the scheduler's alone can be reached from outside."""

    source: Literal["compute"] = Field(examples=["compute"])
    project: Project = Field(examples=["my-project"])
    zone: Zone = Field(examples=["us-central1-a"])
    scheduler: Instance = Instance()
    worker: WorkerInstance = WorkerInstance()
    image: Image = "debian-cloud/debian-12"
    data_disk: DataDisk = DataDisk()
    labels: dict[
        Annotated[str, matching(r"[a-z][a-z0-9_-]{0,62}", "a label's name; write e.g. team")],
        Annotated[str, matching(r"[a-z0-9_-]{0,63}", "a label's value; write e.g. research")],
    ] = Field({}, examples=[{"team": "research"}])
    network: GivenSubnetwork | None = Field(
        None, examples=[{"name": "my-network", "subnetwork": "my-subnetwork", "range": "10.1.0.0/24"}]
    )
    range: Private = "10.9.0.0/24"  # of a network of its own
    roles: Annotated[tuple[Role, ...], Listed] = Field((), examples=[["roles/storage.objectViewer"]])
    secure_boot: bool = True
    iap_port: int | None = Field(None, ge=1024, le=65535, examples=[2222])  # of this computer, held by a gcloud tunnel

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
            yield place, [place], text
        for index, network in enumerate(ssh):
            if ":" in network:
                yield (*place, index), [place], f"{network} is of IPv6, which these machines do not have; leave it out"
        if self.network and "range" in self.model_fields_set:
            place = ("machines", "range")
            yield place, [place, ("machines", "network")], "is that of a network of its own; leave out one of the two"
        usable = ipaddress.ip_network(self.cidr).num_addresses - 4  # Google keeps four
        if usable < len(self.machine_names):
            place = ("machines", "network", "range") if self.network else ("machines", "range")
            text = (
                f"{self.cidr} has room for {max(usable, 0)} machines, not {len(self.machine_names)}; write a larger one"
            )
            yield place, [place, ("machines", "workers")], text

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
