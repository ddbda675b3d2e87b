"""What a stack may say about a cluster that it makes in Google Cloud."""

import ipaddress
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from settings.common import Conflict, Listed, Networks, Section, not_the_world


def matching(pattern: str, what: str) -> AfterValidator:
    """A check that a text is `what`, such as "a project's id, e.g. my-project"."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r} is not {what}")
        return text

    return AfterValidator(check)


# Where networks of one's own lie. Google refuses loopback, link-local and multicast addresses; the rest has other uses.
PRIVATE = [ipaddress.IPv4Network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")]


def valid_private(text: str) -> str:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not a network; write e.g. 10.8.0.0/20") from None
    if network.version != 4 or not any(network.subnet_of(private) for private in PRIVATE):
        raise ValueError(f"{text} is not a private network; write one within 10.0.0.0/8, e.g. 10.8.0.0/20")
    if text != str(network):
        raise ValueError(f"{text} does not name a network; write {network}")
    return text


NAME = r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
Project = Annotated[str, matching(r"[a-z][a-z0-9-]{4,28}[a-z0-9]", "a project's id; write e.g. my-project")]
Location = Annotated[
    str, matching(r"[a-z]+-[a-z]+[0-9]+(-[a-z])?", "a zone or region; write e.g. us-central1-a, or us-central1")
]
Machine = Annotated[str, matching(r"[a-z][a-z0-9]*(-[a-z0-9]+){1,4}", "a machine type; write e.g. n1-standard-4")]
Email = Annotated[str, matching(r"[^@\s:]+@[^@\s:]+\.[^@\s:]+", "an e-mail address; write e.g. me@example.com")]
Name = Annotated[str, matching(NAME, "a name in Google Cloud; write e.g. my-network")]
Private = Annotated[str, AfterValidator(valid_private)]
KmsKey = Annotated[
    str,
    matching(
        r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+",
        "a key; write e.g. projects/my-project/locations/us-central1/keyRings/ring/cryptoKeys/key",
    ),
]


class GivenNetwork(Section):
    """A network that is there already: a subnetwork of it, and the subnetwork's ranges for pods and services."""

    name: Name = Field(examples=["my-network"])
    """The network."""
    subnetwork: Name = Field(examples=["my-subnetwork"])
    """Its subnetwork."""
    pods: Name = Field(examples=["pods"])
    """The subnetwork's range for pods."""
    services: Name = Field(examples=["services"])
    """The subnetwork's range for services."""


class Ranges(Section):
    """Addresses of a network of the stack's own: GKE gives each node 256 for its pods."""

    nodes: Private = "10.8.0.0/22"
    """Addresses of nodes."""
    pods: Private = "10.12.0.0/17"
    """Addresses of pods; each node takes 256."""
    services: Private = "10.8.16.0/22"
    """Addresses of services."""


class Pool(Section):
    """Machines of one kind; `disk` is in GB."""

    machine: Machine = "e2-standard-2"
    """The machine type."""
    disk: int = Field(50, ge=20, le=65536)
    """Size of each node's disk in GB."""
    max_nodes: int | None = Field(None, ge=1, le=1000, examples=[10])
    """The largest number of nodes; 3 by default."""

    @property
    def most(self) -> int:
        return self.max_nodes or 3


class Accelerators(Section):
    """GPUs of each node; each worker asks for one."""

    type: Name = Field(examples=["nvidia-tesla-t4"])
    """The kind of GPU."""
    count: int = Field(1, ge=1, le=16)
    """GPUs of each machine or node. Each worker uses one."""


class WorkerPool(Pool):
    machine: Machine = "n1-standard-4"
    """The machine type."""
    disk: int = Field(100, ge=20, le=65536)
    """Size of each node's disk in GB."""
    spot: bool = False
    """Spot nodes: cheaper, and Google can stop them at any time."""
    min_nodes: int = Field(0, ge=0, le=1000)
    """Nodes that are kept while no worker needs them."""
    accelerators: Accelerators | None = Field(None, examples=[{"type": "nvidia-tesla-t4"}])
    """GPUs of each node."""
    labels: dict[str, str] = Field({})
    """Labels of the nodes."""
    taints: Annotated[tuple[dict[str, Any], ...], Listed] = Field(
        (), examples=[[{"key": "team", "value": "a", "effect": "NO_SCHEDULE"}]]
    )
    """Taints of the nodes."""


# The control plane's own logs are APISERVER, CONTROLLER_MANAGER and SCHEDULER.
Log = Literal["SYSTEM_COMPONENTS", "WORKLOADS", "APISERVER", "CONTROLLER_MANAGER", "SCHEDULER"]


class Hardening(Section):
    """Each default is what Google's hardening guide asks for. What follows `cost_allocation` is off: it has a price."""

    private_nodes: bool = True
    """Nodes have no address on the internet."""
    dataplane: Literal["ADVANCED_DATAPATH", "LEGACY_DATAPATH"] = "ADVANCED_DATAPATH"
    """ADVANCED_DATAPATH enforces NetworkPolicies."""
    workload_identity: bool = True
    """Pods get no rights from their node."""
    shielded_nodes: bool = True
    """Nodes prove their identity to the control plane."""
    secure_boot: bool = True
    """Nodes start signed software only."""
    integrity_monitoring: bool = True
    """Nodes compare how they booted with a baseline."""
    image_type: Literal["COS_CONTAINERD", "UBUNTU_CONTAINERD"] = "COS_CONTAINERD"
    """The nodes' operating system."""
    auto_repair: bool = True
    """GKE replaces nodes that are not healthy."""
    logging: Annotated[tuple[Log, ...], Listed] = ("SYSTEM_COMPONENTS", "WORKLOADS")
    """Components whose logs are kept."""
    monitoring: Annotated[tuple[str, ...], Listed] = ("SYSTEM_COMPONENTS",)
    """Components whose metrics are kept."""
    security_posture: Literal["BASIC", "DISABLED"] = "BASIC"
    """GKE scans workloads for known misconfigurations."""
    cost_allocation: bool = True
    """Splits the bill by namespace and label."""
    database_key: KmsKey | None = Field(None, examples=["projects/p/locations/l/keyRings/r/cryptoKeys/k"])
    """A key of yours that encrypts the cluster's Secrets."""
    disk_key: KmsKey | None = Field(None, examples=["projects/p/locations/l/keyRings/r/cryptoKeys/k"])
    """A key of yours that encrypts the nodes' disks."""
    binary_authorization: bool = False
    """Only images that your project's policy allows may run."""
    intranode_visibility: bool = False
    """Firewall rules and flow logs see traffic between pods of one node."""
    flow_logs: bool = False
    """Flow logs of the stack's own network; Cloud Logging bills them."""
    sandbox: bool = False
    """Workers run under gVisor."""


class GkeSource(Section):
    """A GKE cluster of the stack's own; zonal where `location` is a zone."""

    source: Literal["gke"] = Field(examples=["gke"])
    """A GKE cluster that the stack creates."""
    project: Project = Field(examples=["my-project"])
    """Your Google Cloud project."""
    location: Location = Field(examples=["us-central1-a"])
    """A zone, or a region for a regional cluster."""
    release_channel: Literal["RAPID", "REGULAR", "STABLE", "EXTENDED"] = "REGULAR"
    """Which versions GKE upgrades to."""
    version: Annotated[str, matching(r"1\.[0-9]+(\.[0-9]+(-gke\.[0-9]+)?)?", 'a version; write e.g. "1.33"')] | None = (
        Field(None, examples=["1.33"])
    )
    """A fixed version of Kubernetes; the channel's default without it."""
    deletion_protection: bool = False
    """Nobody can delete the cluster by mistake; to destroy it, set this to `false` and run `up` first."""
    authorized_networks: Networks = Field((), examples=[["203.0.113.7/32"]])
    """Networks that may reach the control plane's address. Without any, it is reached by its DNS name, with your Google
    login.
    """
    admins: Annotated[tuple[Email, ...], Listed] = Field((), examples=[["me@example.com"]])
    """E-mail addresses that become cluster-admin."""
    security_group: (
        Annotated[
            str,
            matching(r"gke-security-groups@[^@\s:]+\.[^@\s:]+", "a group; write e.g. gke-security-groups@example.com"),
        ]
        | None
    ) = Field(None, examples=["gke-security-groups@example.com"])
    """The Google group whose member groups role bindings can name."""
    network: GivenNetwork | None = Field(
        None, examples=[{"name": "n", "subnetwork": "s", "pods": "pods", "services": "services"}]
    )
    """A network that exists; a new one by default."""
    ranges: Ranges = Ranges()
    """Ranges of addresses of the stack's own network."""
    system: Pool = Pool()
    """Nodes of the scheduler and Jupyter."""
    workers: WorkerPool = WorkerPool()
    """Nodes of the workers. By default one for each worker and one more."""
    hardening: Hardening = Hardening()
    """The lines of Google's hardening guide; see [HARDENING.md](../components/gke/HARDENING.md)."""

    @property
    def region(self) -> str:
        return "-".join(self.location.split("-")[:2])

    def conflicts(self) -> Iterator[Conflict]:
        place = ("cluster", "authorizedNetworks")
        yield from not_the_world({place: self.authorized_networks})
        if self.network and "ranges" in self.model_fields_set:
            place = ("cluster", "ranges")
            yield Conflict(place, "are those of a network of its own; leave out one of the two")
        ranges = {name: ipaddress.ip_network(getattr(self.ranges, name)) for name in Ranges.model_fields}
        for (one, first), (other, second) in combinations(ranges.items(), 2):
            if first.overlaps(second):
                place = ("cluster", "ranges", other)
                yield Conflict(place, f"{second} overlaps {one}, {first}; choose another")
        most, least = self.workers.max_nodes, self.workers.min_nodes
        if most is not None and most < least:
            place = ("cluster", "workers", "maxNodes")
            text = f"{most} is less than minNodes, {least}; write at least {least}"
            yield Conflict(place, text)
        hardening = self.hardening
        if self.network and hardening.flow_logs:
            place = ("cluster", "hardening", "flowLogs")
            text = "are those of a network of its own; turn them on in the network's own settings"
            yield Conflict(place, text)
        if not hardening.shielded_nodes and hardening.secure_boot:
            place = ("cluster", "hardening", "secureBoot")
            text = "needs shielded nodes; set it to false, too, or leave out shieldedNodes: false"
            yield Conflict(place, text)
        if hardening.sandbox and self.workers.accelerators:
            place = ("cluster", "hardening", "sandbox")
            text = "has no GPUs in this program; leave out one of the two"
            yield Conflict(place, text)
