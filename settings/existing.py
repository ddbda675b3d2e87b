"""What a stack may say about machines that the user has already."""

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from settings.common import Conflict, Listed, Place, Section, dotted, valid_network


def valid_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError(f"{text!r} cannot be a host name; use up to 63 of a-z, 0-9 and -, e.g. worker-1")
    if text == "client":
        raise ValueError("client is the name of your own certificate; choose another, e.g. worker-1")
    return text


def valid_address(text: str) -> str:
    """An IP address, or a name that this computer can resolve."""
    label = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
    name = re.fullmatch(rf"({label}\.)*(?![0-9]+$){label}", text)
    if not (name or as_ip(text)):
        raise ValueError(f"{text!r} is neither an address nor a host name; write e.g. 203.0.113.5")
    return text


def as_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    # Python takes any text for the interface behind a %, which is part of a command on the way through a bastion.
    if "%" in text and not re.fullmatch(r"[^%]+%[A-Za-z0-9_.-]+", text):
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def valid_inside(text: str) -> str:
    ip = as_ip(text)
    if not isinstance(ip, ipaddress.IPv4Address):
        raise ValueError(f"{text!r} is not an IPv4 address, by which machines reach each other; write e.g. 10.1.0.5")
    if ip.is_loopback or ip.is_unspecified or ip.is_multicast or ip.is_link_local:
        raise ValueError(f"{text} is no address at which other machines reach this one; write e.g. 10.1.0.5")
    return text


def valid_user(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", text):
        raise ValueError(f"{text!r} cannot be a user's name; write e.g. admin")
    if text == "dask":
        raise ValueError("dask is the cluster's own user; log in as root, or as a user that may use sudo")
    return text


def valid_host_key(text: str) -> str:
    """The key without a comment."""
    words = text.split()
    try:
        kind, blob = words[0], base64.b64decode(words[1], validate=True)
        right = kind == "ssh-ed25519" and len(blob) == 51 and blob.startswith(b"\0\0\0\x0bssh-ed25519\0\0\0 ")
    except (IndexError, binascii.Error):
        right = False
    if not right:
        raise ValueError(
            f"{text[:40]!r} is not an ed25519 host key; write both words that begin"
            ' /etc/ssh/ssh_host_ed25519_key.pub there: "ssh-ed25519 AAAA..."'
        )
    return " ".join(words[:2])


Port = Annotated[int, Field(ge=1, le=65535)]
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDqBmXsmbJZp2sJe7Nq4Pz1u9bS0mXhVxLZb1yGZ3w5F"


class Bastion(Section):
    """A machine that is only passed through, on the way to those that name it as their bastion."""

    name: Annotated[str, AfterValidator(valid_name)] = Field(examples=["gate"])
    """Its name in the cluster."""
    address: Annotated[str, AfterValidator(valid_address)] = Field(examples=["203.0.113.4"])
    """Where you reach it."""
    port: Port = 22
    """The port of its sshd, as you reach it."""
    user: Annotated[str, AfterValidator(valid_user)] = "root"
    """Who logs in: root, or a user with password-less sudo."""
    host_key: Annotated[str, AfterValidator(valid_host_key)] | None = Field(None, examples=[HOST_KEY])
    """Its ed25519 host key. Without it, the first contact trusts the network once and prints the fingerprint. A key
    that changes later fails `up`; for a machine that was reinstalled, write its new key, and all its steps run
    again.
    """


class Host(Bastion):
    """A machine of the user's. `address` and `port` are where `up` reaches it, through `bastion` where it has one."""

    address: Annotated[str, AfterValidator(valid_address)] = Field(examples=["203.0.113.5"])
    """Where you reach it, through `bastion` if it has one."""
    private_address: Annotated[str, AfterValidator(valid_inside)] | None = Field(None, examples=["10.1.0.5"])
    """The IPv4 address at which the other machines reach it; `address` by default."""
    bastion: str | None = Field(None, examples=["gate"])
    """The host, or the entry of `bastions`, through which `up` reaches it; one hop at most."""
    gone: bool = False
    """The machine is dead for good: no command runs on it any more, and its steps are forgotten at the end."""

    @property
    def inside(self) -> str:
        """Where the other machines reach it."""
        return self.private_address or self.address


HOSTS_EXAMPLE = [{"name": "head", "address": "203.0.113.5"}, {"name": "worker-1", "address": "203.0.113.6"}]


class ExistingSource(Section):
    """Machines that the user has already."""

    source: Literal["existing"] = Field(examples=["existing"])
    """Machines that you have, reached over SSH."""
    hosts: Annotated[tuple[Host, ...], Listed] = Field(min_length=1, examples=[HOSTS_EXAMPLE])
    """The machines."""
    bastions: Annotated[tuple[Bastion, ...], Listed] = Field(
        (), examples=[[{"name": "gate", "address": "203.0.113.4"}]]
    )
    """Machines that are only passed through."""
    network: Annotated[str, AfterValidator(valid_network)] | None = Field(None, examples=["10.1.0.0/24"])
    """The IPv4 network in which the machines reach each other. Without it, their firewalls list the machines one by
    one, and a new machine changes the firewall of all others.
    """
    ssh_port: Port | None = Field(None, examples=[22])
    """The port at which their sshd answers each other; the hosts' `port` by default. Required if ports differ."""
    scheduler: str | None = Field(None, examples=["head"])
    """The host that runs the scheduler and signs the others' keys; the first one by default."""
    scheduler_works: bool = False
    """The scheduler's machine runs workers too."""

    @property
    def scheduler_name(self) -> str:
        return self.scheduler or self.hosts[0].name

    @property
    def inner_port(self) -> int:
        return self.ssh_port or self.hosts[0].port

    @property
    def machine_names(self) -> tuple[str, ...]:
        """Without those that are gone; the scheduler's first."""
        names = [host.name for host in self.hosts if not host.gone]
        return tuple(sorted(names, key=lambda name: name != self.scheduler_name))


def not_one_of(names: tuple[str, ...]) -> str:
    known = ", ".join(names if len(names) < 6 else [*names[:3], "...", names[-1]])
    return f"is not one of the machines; choose one of {known}"


def existing_conflicts(machines: ExistingSource) -> Iterator[Conflict]:
    hosts: list[tuple[Place, Host]] = [(("machines", "hosts", i), host) for i, host in enumerate(machines.hosts)]
    bastions: list[tuple[Place, Bastion]] = [(("machines", "bastions", i), b) for i, b in enumerate(machines.bastions)]

    for place, first in _twice(((*place, "name"), each.name) for place, each in [*hosts, *bastions]):
        yield Conflict(place, f"has the same name as {dotted(first[:-1])[1:]}; use each name once")
    listed = list(_twice(((*place, "address"), (host.address, host.port)) for place, host in hosts))
    for place, first in listed:
        yield Conflict(place, f"address and port are those of {dotted(first[:-1])[1:]}; list each machine once")

    network = ipaddress.ip_network(machines.network) if machines.network else None
    if network and network.version != 4:
        place = ("machines", "network")
        yield Conflict(place, f"{network} is not of IPv4, by which machines reach each other; write e.g. 10.1.0.0/24")
        network = None
    inside = [((*place, "privateAddress" if host.private_address else "address"), host.inside) for place, host in hosts]
    for place, first in _twice(inside):
        if (place, first) not in listed:
            text = (
                f"is where {dotted(first[:-1])[1:]} is reached inside the cluster already; each needs its own address"
            )
            yield Conflict(place, text)
    for place, address in inside:
        try:
            valid_inside(address)
        except ValueError as error:
            yield Conflict(place, f"{error} as its privateAddress")
            continue
        if network and ipaddress.ip_address(address) not in network:
            text = f"{address} is outside machines.network {network}; write the machine's address inside it as"
            yield Conflict(place, f"{text} privateAddress, or correct the network")
        elif network and network.prefixlen < 31 and address in (str(network[0]), str(network[-1])):
            text = f"{address} is the network's own or its broadcast address, and no machine's; write the machine's"
            yield Conflict(place, text)

    passed = {each.name: each for _, each in [*bastions, *hosts]}
    for place, host in hosts:
        by = passed.get(host.bastion or host.name)
        problem = None
        if by is None:
            problem = "is neither in machines.bastions nor in machines.hosts; add it to either"
        elif host.bastion == host.name:
            problem = "is this machine itself; name another, or leave it out"
        elif host.bastion and isinstance(by, Host) and by.bastion:
            problem = f"is itself behind {by.bastion}; choose one that is reached without a bastion"
        elif host.bastion and isinstance(by, Host) and by.gone and not host.gone:
            problem = "is marked gone; choose another"
        if problem:
            yield Conflict((*place, "bastion"), f"{host.bastion} {problem}")

    for place, host in hosts:
        if host.port != hosts[0][1].port and not machines.ssh_port:
            text = (
                f"{host.port} is not {hosts[0][1].port}, that of machines.hosts[0]; machines reach each other at one"
                " port, on which each sshd must listen: write it as machines.sshPort"
            )
            yield Conflict((*place, "port"), text)

    names = machines.machine_names
    if machines.scheduler_name not in names:
        place = ("machines", "scheduler")
        text = f"{machines.scheduler_name} {not_one_of(names)}"
        if any(host.name == machines.scheduler_name for _, host in hosts):
            text = (
                f"{machines.scheduler_name} is marked gone; choose another and allow the move (moves: [scheduler]), or"
                " forget a cluster of which nothing is left: pulumi stack rm --force"
            )
        yield Conflict(place, text)
    elif len(names) == 1 and not machines.scheduler_works:
        text = "no machine is left to work but the scheduler's; add one, or set machines.schedulerWorks: true"
        yield Conflict(("machines", "hosts"), text)


def _twice(values: Iterable[tuple[Place, object]]) -> Iterator[tuple[Place, Place]]:
    """Each place of a value that is at an earlier place too, with the first such place."""
    seen: dict[object, Place] = {}
    for place, value in values:
        if seen.setdefault(value, place) != place:
            yield place, seen[value]
