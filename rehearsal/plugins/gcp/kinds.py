"""The resources that the pretended cloud has: names, defaults, what replaces them, and what Google fills in."""

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
KUBERNETES = "1.34.2"  # what a rehearsal's Kubernetes says of itself


@dataclass(frozen=True)
class State:
    """A resource as it is: `given` are its arguments with defaults, `where` has project, region, zone and location."""

    identity: str
    given: dict[str, Any]
    where: dict[str, str]
    made: int  # when, in nanoseconds
    labels: dict[str, str]
    before: dict[str, Any] = field(default_factory=dict)  # its outputs until now
    others: dict[str, dict[str, Any]] = field(default_factory=dict)  # the outputs of all other resources, by id
    links: list[str] = field(default_factory=list)  # the ids that it names
    kubernetes: dict[str, str] = field(default_factory=dict)

    @property
    def link(self) -> str:
        return f"{COMPUTE}/{self.identity}"

    @property
    def number(self) -> str:
        """What Google makes up for it, and keeps."""
        return str(int(digest(f"{self.identity} {self.made}"), 16) % 10**19)

    @property
    def moment(self) -> str:
        return datetime.fromtimestamp(self.made // 10**9, UTC).isoformat()


@dataclass(frozen=True)
class Link:
    """What an argument names: it has to be there, and cannot go before what names it, unless that is a part of it."""

    identity: str
    part: bool = False


@dataclass(frozen=True)
class Kind:
    """What the package's documentation says of a resource is in arguments.json; here is what it does not say."""

    identity: str
    token: str = ""
    named: str = "name"  # the argument that is made up where it is not given; empty: none
    longest: int = 63
    checks: dict[str, Check] = field(default_factory=dict)
    apart: tuple[tuple[str, str], ...] = ()
    rules: Callable[[dict[str, Any]], Iterator[Found]] = lambda inputs: iter(())
    fixed: tuple[str, ...] = ()  # where a change asks for another resource
    defaults: dict[str, Any] = field(default_factory=dict)
    filled: dict[str, Callable[[State], Any]] = field(default_factory=dict)  # only where the program gives nothing
    # What Google reports of arguments, given or not: where the program does not give the same, it changes them.
    reported: Callable[[dict[str, Any]], dict[str, Any]] = lambda inputs: {}
    growing: tuple[str, ...] = ()  # where only less asks for another resource
    counted: tuple[str, ...] = ()  # lists of which another length asks for another resource
    stopping: tuple[str, ...] = ()  # what changes only while a machine is off
    links: dict[str, Link] = field(default_factory=dict)
    labels: str = ""  # the argument with its labels
    joins: bool = False  # whether to make what is there already is no mistake


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def last(value: str) -> str:
    """The name in a link, or the name that it is."""
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
