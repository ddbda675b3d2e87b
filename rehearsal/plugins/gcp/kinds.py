"""The resource types of the simulated cloud: names, defaults, replacing changes, and values that Google sets."""

import base64
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from command.output import Found
from gcp.checks import Check

COMPUTE = "https://www.googleapis.com/compute/v1"
NETWORK = "projects/{project}/global/networks/{}"
SUBNETWORK = "projects/{project}/regions/{region}/subnetworks/{}"
CLUSTER, POOL = "container/cluster:Cluster", "container/nodePool:NodePool"
VM = "compute/instance:Instance"
DISK = "projects/{project}/zones/{zone}/disks/{}"
INSTANCE = "projects/{project}/zones/{zone}/instances/{}"
KUBERNETES = "1.34.2"  # facts about the rehearsal's Kubernetes


@dataclass(frozen=True)
class State:
    """A resource: `given` are its arguments with defaults; `where` has project, region, zone and location."""

    identity: str
    given: dict[str, Any]
    where: dict[str, str]
    made: int  # creation time in nanoseconds
    labels: dict[str, str]
    before: dict[str, Any] = field(default_factory=dict)  # its previous outputs
    others: dict[str, dict[str, Any]] = field(default_factory=dict)  # the outputs of all other resources, by id
    links: list[str] = field(default_factory=list)  # the IDs that it refers to
    kubernetes: dict[str, str] = field(default_factory=dict)

    @property
    def link(self) -> str:
        return f"{COMPUTE}/{self.identity}"

    @property
    def number(self) -> str:
        """A number that Google generates once."""
        return str(int(digest(f"{self.identity} {self.made}"), 16) % 10**19)

    @property
    def moment(self) -> str:
        return datetime.fromtimestamp(self.made // 10**9, UTC).isoformat()


@dataclass(frozen=True)
class Link:
    """An argument that refers to another resource, which must exist, and which can only be deleted with its parts."""

    identity: str
    part: bool = False


@dataclass(frozen=True)
class Kind:
    """Facts about a resource that are not in arguments.json, which comes from the package's documentation."""

    identity: str
    token: str = ""
    named: str = "name"  # the argument that is generated if it is not set; empty: none
    longest: int = 63
    checks: dict[str, Check] = field(default_factory=dict)
    apart: tuple[tuple[str, str], ...] = ()
    rules: Callable[[dict[str, Any]], Iterator[Found]] = lambda inputs: iter(())
    fixed: tuple[str, ...] = ()  # arguments whose change replaces the resource
    defaults: dict[str, Any] = field(default_factory=dict)
    filled: dict[str, Callable[[State], Any]] = field(default_factory=dict)  # used if the program sets nothing
    # Values that Google reports for arguments. If the program sets others, that is a change.
    reported: Callable[[dict[str, Any]], dict[str, Any]] = lambda inputs: {}
    growing: tuple[str, ...] = ()  # arguments that replace the resource if they shrink
    counted: tuple[str, ...] = ()  # lists whose change in length replaces the resource
    stopping: tuple[str, ...] = ()  # arguments that require stopping the machine
    links: dict[str, Link] = field(default_factory=dict)
    labels: str = ""  # the argument for labels
    joins: bool = False  # whether creating an existing resource is allowed


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def last(value: str) -> str:
    """The name in a link or a name."""
    return value.rsplit("/", 1)[-1]


def fingerprint(value: Any) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(repr(value).encode()).digest()[:8]).decode()


def link(state: State) -> str:
    return state.link


def moment(state: State) -> str:
    return state.moment


def number(state: State) -> str:
    return state.number


def always(value: Any) -> Callable[[State], Any]:
    return lambda state: value


def label_fingerprint(state: State) -> str:
    return fingerprint(sorted(state.labels.items()))
