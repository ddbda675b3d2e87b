"""Settings of a GKE cluster that the stack creates (`cluster.source: gke`)."""

import ipaddress
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from settings.common import Conflict, Listed, Networks, Place, Section, dotted, format_value, world_conflicts


def matching(pattern: str, expected: str) -> AfterValidator:
    """Check a string against `pattern`. `expected` describes it, e.g. "a zone; write e.g. us-central1-a"."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r} is not {expected}")
        return text

    return AfterValidator(check)


LABEL_NAME = r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
LABEL_VALUE = r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?"
Labels = dict[
    Annotated[str, matching(LABEL_NAME, "a Kubernetes label's name; write e.g. example.com/team")],
    Annotated[str, matching(LABEL_VALUE, "a Kubernetes label's value; write e.g. research")],
]


def object_matching(patterns: dict[str, str], required: set[str], expected: str) -> AfterValidator:
    """Check the keys and values of an object that Kubernetes or Google would reject only later."""

    def check(found: dict[str, Any]) -> dict[str, Any]:
        texts = {key: str(value) for key, value in found.items() if type(value) in (str, int)}
        right = texts.keys() == found.keys() and required <= found.keys() <= patterns.keys()
        if not right or not all(re.fullmatch(patterns[key], text) for key, text in texts.items()):
            raise ValueError(f"{format_value(found)} is not {expected}")
        return found

    return AfterValidator(check)


Taint = Annotated[
    dict[str, Any],
    object_matching(
        {"key": LABEL_NAME, "value": LABEL_VALUE, "effect": "NO_SCHEDULE|PREFER_NO_SCHEDULE|NO_EXECUTE"},
        {"key", "effect"},
        'a taint of GKE; write e.g. {"key": "team", "value": "a", "effect": "NO_SCHEDULE"}',
    ),
]

# Private networks and shared address space. Google rejects loopback, link-local and multicast addresses.
PRIVATE = [ipaddress.IPv4Network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")]


def valid_private(text: str) -> str:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not a network; write e.g. 10.8.0.0/20") from None
    if network.version != 4 or not any(network.subnet_of(private) for private in PRIVATE):
        raise ValueError(f"{text} is not a private network; write one within 10.0.0.0/8, e.g. 10.8.0.0/20")
    if text != str(network):
        raise ValueError(f"{text} is not in standard form; write {network}")
    return text


NAME = r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
GoogleLabels = dict[
    Annotated[str, matching(r"[a-z][a-z0-9_-]{0,62}", "a label's name; write e.g. team")],
    Annotated[str, matching(r"[a-z0-9_-]{0,63}", "a label's value; write e.g. research")],
]
Project = Annotated[str, matching(r"[a-z][a-z0-9-]{4,28}[a-z0-9]", "a project ID; write e.g. my-project")]
Location = Annotated[
    str, matching(r"[a-z]+-[a-z]+[0-9]+(-[a-z])?", "a zone or region; write e.g. us-central1-a, or us-central1")
]
Zone = Annotated[str, matching(r"[a-z]+-[a-z]+[0-9]+-[a-z]", "a zone; write e.g. us-central1-a")]
ARM = ("t2a", "c4a", "n4a", "a4x")  # Google's families with ARM processors


def valid_architecture(machine: str) -> str:
    if machine.startswith(tuple(f"{family}-" for family in ARM)):
        raise ValueError(f"{machine} has ARM processors, and the cluster needs x86_64; write e.g. n2-standard-4")
    return machine


Machine = Annotated[
    str,
    matching(r"[a-z][a-z0-9]*(-[a-z0-9]+){1,4}", "a machine type; write e.g. e2-standard-4"),
    AfterValidator(valid_architecture),
]
Email = Annotated[str, matching(r"[^@\s:]+@[^@\s:]+\.[^@\s:]+", "an e-mail address; write e.g. me@example.com")]
Name = Annotated[str, matching(NAME, "a name in Google Cloud; write e.g. my-network")]
Private = Annotated[str, AfterValidator(valid_private)]
KmsKey = Annotated[
    str,
    matching(
        r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+",
        "a Cloud KMS key; write e.g. projects/my-project/locations/us-central1/keyRings/ring/cryptoKeys/key",
    ),
]


class GivenNetwork(Section):
    """An existing network."""

    name: Name = Field(examples=["my-network"])
    """The network."""
    project: Project | None = Field(None, examples=["my-host-project"])
    """The host project of a Shared VPC; the stack's own project by default."""
    subnetwork: Name = Field(examples=["my-subnetwork"])
    """Its subnetwork."""
    pods: Name = Field(examples=["pods"])
    """The name of the subnetwork's range for pods."""
    services: Name = Field(examples=["services"])
    """The name of the subnetwork's range for services."""


class Ranges(Section):
    """Address ranges of the network that the stack creates."""

    nodes: Private = "10.8.0.0/22"
    """Addresses for nodes."""
    pods: Private = "10.12.0.0/17"
    """Addresses for pods. GKE assigns 256 to each node."""
    services: Private = "10.8.16.0/22"
    """Addresses for services."""


class Pool(Section):
    """A node pool."""

    machine: Machine = "e2-standard-2"
    """The machine type."""
    disk: int = Field(50, ge=20, le=65536)
    """Size of each node's disk in GB."""
    max_nodes: int | None = Field(None, ge=1, le=1000, examples=[10])
    """The largest number of nodes; 3 by default."""

    @property
    def node_limit(self) -> int:
        return self.max_nodes or 3


# The machine type decides which numbers are possible; see prices.yaml.
LocalSsds = Annotated[int, Field(ge=0, le=32)]


class Accelerators(Section):
    """The GPUs of a machine or node."""

    type: Name = Field(examples=["nvidia-tesla-t4"])
    """The GPU type."""
    count: int = Field(1, ge=1, le=16)
    """GPUs per machine or node."""


WORKERS = "workers"  # the name of the workers' common pool; that of a group's own pool begins with it


class Capacity(Section):
    """A kind of nodes. What it does not say is like the pool."""

    zone: Zone | None = Field(None, examples=["us-central1-b"])
    """The nodes' zone, in the region of the cluster; by default the zones of the cluster."""
    machine: Machine | None = Field(None, examples=["n2-standard-4"])
    """The machine type."""
    spot: bool | None = Field(None, examples=[True])
    """Use spot nodes."""


class WorkerPool(Pool):
    machine: Machine = "e2-standard-4"
    """The machine type."""
    disk: int = Field(100, ge=20, le=65536)
    """Size of each node's disk in GB."""
    spot: bool = False
    """Use spot nodes. They are cheaper, but Google can stop them at any time."""
    min_nodes: int = Field(0, ge=0, le=1000)
    """Nodes that keep running even if no worker needs them."""
    max_nodes: int | None = Field(None, ge=1, le=1000, examples=[10])
    """The largest number of nodes; by default one more than there are workers."""
    accelerators: Accelerators | None = Field(None, examples=[{"type": "nvidia-tesla-t4"}])
    """GPUs of each node. Each worker uses one."""
    local_ssds: LocalSsds = 0
    """Local SSDs of each node, 375 GB each, for its pods' temporary files and its workers' spilled data."""
    labels: Labels = Field({})
    """Labels of the nodes."""
    taints: Annotated[tuple[Taint, ...], Listed] = Field(
        (), examples=[[{"key": "team", "value": "a", "effect": "NO_SCHEDULE"}]]
    )
    """Taints of the nodes."""
    capacity: Annotated[tuple[Capacity, ...], Listed] = Field((), examples=[[{"spot": True}, {"spot": False}]])
    """Kinds of nodes, the preferred one first. If Google has none of a kind, GKE tries the next one. Later, it moves
    workers back to the preferred kind. Each kind can have `maxNodes` nodes.
    """


# APISERVER, CONTROLLER_MANAGER and SCHEDULER are components of the control plane.
Log = Literal["SYSTEM_COMPONENTS", "WORKLOADS", "APISERVER", "CONTROLLER_MANAGER", "SCHEDULER"]


class Hardening(Section):
    """The defaults follow Google's hardening guide. Options after `cost_allocation` are off because they cost extra."""

    private_nodes: bool = True
    """Nodes have no public address."""
    dataplane: Literal["ADVANCED_DATAPATH", "LEGACY_DATAPATH"] = "ADVANCED_DATAPATH"
    """ADVANCED_DATAPATH enforces NetworkPolicies."""
    workload_identity: bool = True
    """Pods do not inherit the permissions of their node."""
    shielded_nodes: bool = True
    """Nodes prove their identity to the control plane."""
    secure_boot: bool = True
    """Nodes boot only signed software."""
    integrity_monitoring: bool = True
    """Nodes compare their boot sequence with a baseline."""
    image_type: Literal["COS_CONTAINERD", "UBUNTU_CONTAINERD"] = "COS_CONTAINERD"
    """The nodes' operating system."""
    auto_repair: bool = True
    """GKE replaces unhealthy nodes."""
    logging: Annotated[tuple[Log, ...], Listed] = ("SYSTEM_COMPONENTS", "WORKLOADS")
    """Components whose logs Cloud Logging stores."""
    monitoring: Annotated[tuple[str, ...], Listed] = ("SYSTEM_COMPONENTS",)
    """Components whose metrics Cloud Monitoring stores."""
    security_posture: Literal["BASIC", "DISABLED"] = "BASIC"
    """GKE scans workloads for known misconfigurations."""
    cost_allocation: bool = True
    """Google's bill splits costs by namespace and label."""
    database_key: KmsKey | None = Field(None, examples=["projects/p/locations/l/keyRings/r/cryptoKeys/k"])
    """Your own Cloud KMS key for encrypting the cluster's Secrets."""
    disk_key: KmsKey | None = Field(None, examples=["projects/p/locations/l/keyRings/r/cryptoKeys/k"])
    """Your own Cloud KMS key for encrypting the nodes' disks."""
    binary_authorization: bool = False
    """Only images that your project's policy allows can run."""
    intranode_visibility: bool = False
    """Firewall rules and flow logs cover traffic between pods on the same node."""
    flow_logs: bool = False
    """Flow logs of the network that the stack creates. Cloud Logging bills you for them."""
    sandbox: bool = False
    """Workers run in the gVisor sandbox. Not available with GPUs."""


class GkeSource(Section):
    """A GKE cluster that the stack creates."""

    source: Literal["gke"] = Field(examples=["gke"])
    """A GKE cluster that the stack creates."""
    project: Project = Field(examples=["my-project"])
    """Your Google Cloud project."""
    location: Location = Field(examples=["us-central1-a"])
    """A zone for a zonal cluster, or a region for a regional one."""
    release_channel: Literal["RAPID", "REGULAR", "STABLE", "EXTENDED"] = "REGULAR"
    """The GKE release channel for upgrades."""
    version: Annotated[str, matching(r"1\.[0-9]+(\.[0-9]+(-gke\.[0-9]+)?)?", 'a version; write e.g. "1.33"')] | None = (
        Field(None, examples=["1.33"])
    )
    """A fixed Kubernetes version; by default the release channel's."""
    labels: GoogleLabels = Field({}, examples=[{"team": "research"}])
    """Labels for the cluster, its nodes and their disks."""
    deletion_protection: bool = False
    """Google refuses to delete the cluster. To destroy it, set this to `false` and run `up` first."""
    authorized_networks: Networks = Field((), examples=[["203.0.113.7/32"]])
    """Networks that can reach the control plane's IP address. If the list is empty, clients reach the control plane by
    its DNS name and a Google login.
    """
    admins: Annotated[tuple[Email, ...], Listed] = Field((), examples=[["me@example.com"]])
    """E-mail addresses of users who get the role `cluster-admin`."""
    security_group: (
        Annotated[
            str,
            matching(r"gke-security-groups@[^@\s:]+\.[^@\s:]+", "a group; write e.g. gke-security-groups@example.com"),
        ]
        | None
    ) = Field(None, examples=["gke-security-groups@example.com"])
    """The Google group whose member groups can be subjects of role bindings."""
    network: GivenNetwork | None = Field(
        None, examples=[{"name": "n", "subnetwork": "s", "pods": "pods", "services": "services"}]
    )
    """An existing network to use instead of a new one."""
    ranges: Ranges = Ranges()
    """Address ranges of the network that the stack creates."""
    system: Pool = Pool()
    """Nodes for the scheduler and Jupyter."""
    workers: WorkerPool = WorkerPool()
    """Nodes for the workers."""
    hardening: Hardening = Hardening()
    """Options from Google's hardening guide; see [HARDENING.md](../components/gke/HARDENING.md)."""

    @property
    def region(self) -> str:
        return "-".join(self.location.split("-")[:2])

    def conflicts(self) -> Iterator[Conflict]:
        place = ("cluster", "authorizedNetworks")
        yield from world_conflicts({place: self.authorized_networks})
        if self.network and "ranges" in self.model_fields_set:
            place = ("cluster", "ranges")
            yield Conflict(place, "applies only to a network that the stack creates; remove it or cluster.network")
        ranges = {name: ipaddress.ip_network(getattr(self.ranges, name)) for name in Ranges.model_fields}
        for (one, first), (other, second) in combinations(ranges.items(), 2):
            if first.overlaps(second):
                place = ("cluster", "ranges", other)
                yield Conflict(place, f"{second} overlaps cluster.ranges.{one}, {first}; write another range")
        yield from self.pool_conflicts(("cluster", "workers"), self.workers)
        hardening = self.hardening
        if self.network and hardening.flow_logs:
            place = ("cluster", "hardening", "flowLogs")
            text = "applies only to a network that the stack creates; remove it, and enable them in the network itself"
            yield Conflict(place, text)
        if not hardening.shielded_nodes and hardening.secure_boot:
            place = ("cluster", "hardening", "secureBoot")
            text = "requires shielded nodes; write false, or remove shieldedNodes: false"
            yield Conflict(place, text)

    def pool_conflicts(self, place: Place, pool: WorkerPool) -> Iterator[Conflict]:
        """Settings of the pool at `place` that contradict each other or the cluster's."""
        most, least = pool.max_nodes, pool.min_nodes
        if most is not None and most < least:
            yield Conflict((*place, "maxNodes"), f"{most} is less than minNodes, {least}; write {least} or more")
        if pool.capacity and least:
            text = "is not possible together with capacity, whose nodes start only for workers; remove it"
            yield Conflict((*place, "minNodes"), text)
        for index, kind in enumerate(pool.capacity):
            if kind.zone and not kind.zone.startswith(f"{self.region}-"):
                text = f"{kind.zone} is not in the region of the cluster; write a zone of {self.region}"
                yield Conflict((*place, "capacity", index, "zone"), text)
        if self.hardening.sandbox and pool.accelerators:
            text = f"does not support GPUs here; remove it or {dotted((*place, 'accelerators'))[1:]}"
            yield Conflict(("cluster", "hardening", "sandbox"), text)
