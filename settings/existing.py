"""Settings of machines that the user already has (`machines.source: existing`)."""

import base64
import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from daskstack.ssh import USER
from settings.common import Conflict, Listed, Place, Section, dotted, valid_network


def valid_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError(f"{text!r} is not a host name; write up to 63 of a-z, 0-9 and -, e.g. worker-1")
    if text == "client":
        raise ValueError("client is reserved for your own certificate; write another name, e.g. worker-1")
    return text


def valid_address(text: str) -> str:
    """An IP address, or a name that this computer can resolve."""
    label = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
    name = re.fullmatch(rf"({label}\.)*(?![0-9]+$){label}", text)
    if not (name or as_ip(text)):
        raise ValueError(f"{text!r} is neither an address nor a host name; write e.g. 203.0.113.5")
    return text


def as_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    # Python accepts any text after the %, and the address becomes part of a command when a bastion is used.
    if "%" in text and not re.fullmatch(r"[^%]+%[A-Za-z0-9_.-]+", text):
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def valid_internal_address(text: str) -> str:
    ip = as_ip(text)
    if not isinstance(ip, ipaddress.IPv4Address):
        raise ValueError(f"{text!r} is not an IPv4 address; write e.g. 10.1.0.5")
    if ip.is_loopback or ip.is_unspecified or ip.is_multicast or ip.is_link_local:
        raise ValueError(f"{text} is not reachable from other machines; write e.g. 10.1.0.5")
    return text


def valid_user(text: str) -> str:
    if len(text) > 255 or not re.fullmatch(USER, text):
        raise ValueError(f"{text!r} is not a user name; write e.g. admin, jane@corp.example or CORP\\jane")
    if text == "dask":
        raise ValueError("dask is the user that runs the cluster; write root, or a user with password-less sudo")
    return text


def valid_host_key(text: str) -> str:
    """The key without its comment."""
    words = text.split()
    try:
        kind, blob = words[0], base64.b64decode(words[1], validate=True)
        right = kind == "ssh-ed25519" and len(blob) == 51 and blob.startswith(b"\0\0\0\x0bssh-ed25519\0\0\0 ")
    except (IndexError, ValueError):  # ValueError for text that is not base64
        right = False
    if not right:
        raise ValueError(
            f"{text[:40]!r} is not an ed25519 host key; write the first two words of the machine's"
            ' /etc/ssh/ssh_host_ed25519_key.pub: "ssh-ed25519 AAAA..."'
        )
    return " ".join(words[:2])


Port = Annotated[int, Field(ge=1, le=65535)]
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDqBmXsmbJZp2sJe7Nq4Pz1u9bS0mXhVxLZb1yGZ3w5F"


class Bastion(Section):
    """A jump host: SSH connections pass through it to the hosts that name it."""

    name: Annotated[str, AfterValidator(valid_name)] = Field(examples=["gate"])
    """The machine's name in the cluster."""
    address: Annotated[str, AfterValidator(valid_address)] = Field(examples=["203.0.113.4"])
    """The address at which your computer reaches the machine."""
    port: Port = 22
    """The SSH port at which your computer reaches the machine."""
    user: Annotated[str, AfterValidator(valid_user)] = "root"
    """The user to log in as: root, or a user with password-less sudo."""
    host_key: Annotated[str, AfterValidator(valid_host_key)] | None = Field(None, examples=[HOST_KEY])
    """The machine's ed25519 host key. Without it, the first connection trusts the network and prints the key's
    fingerprint. If the key changes later, `up` fails. After you reinstall a machine, write its new key; `up` then runs
    all its steps again.
    """


class Host(Bastion):
    """A machine of the user's."""

    address: Annotated[str, AfterValidator(valid_address)] = Field(examples=["203.0.113.5"])
    """The address at which your computer, or the `bastion`, reaches the machine."""
    private_address: Annotated[str, AfterValidator(valid_internal_address)] | None = Field(None, examples=["10.1.0.5"])
    """The IPv4 address at which the other machines reach this one; `address` by default."""
    bastion: str | None = Field(None, examples=["gate"])
    """The name of the host, or of the entry in `bastions`, through which `up` connects. Only one hop is possible."""
    gone: bool = False
    """Set to `true` if the machine no longer exists. The next `up`, and every `destroy` after it,
    run no commands on it."""

    @property
    def internal_address(self) -> str:
        """The address at which the other machines reach this one."""
        return self.private_address or self.address


HOSTS_EXAMPLE = [{"name": "head", "address": "203.0.113.5"}, {"name": "worker-1", "address": "203.0.113.6"}]


class ExistingSource(Section):
    """Machines that the user already has."""

    source: Literal["existing"] = Field(examples=["existing"])
    """Machines that you already have and can reach over SSH."""
    hosts: Annotated[tuple[Host, ...], Listed] = Field(min_length=1, examples=[HOSTS_EXAMPLE])
    """The machines."""
    bastions: Annotated[tuple[Bastion, ...], Listed] = Field(
        (), examples=[[{"name": "gate", "address": "203.0.113.4"}]]
    )
    """Jump hosts that are not part of the cluster."""
    network: Annotated[str, AfterValidator(valid_network)] | None = Field(None, examples=["10.1.0.0/24"])
    """The IPv4 network in which the machines reach each other. Without it, each firewall lists all machines, and adding
    a machine changes every firewall.
    """
    ssh_port: Port | None = Field(None, examples=[22])
    """The SSH port that the machines use among themselves; the hosts' `port` by default. Required if the hosts have
    different ports.
    """
    scheduler: str | None = Field(None, examples=["head"])
    """The host that runs the scheduler and signs the other machines' keys; the first one by default."""
    scheduler_works: bool = False
    """`true` also runs workers on the scheduler's machine."""

    @property
    def scheduler_name(self) -> str:
        return self.scheduler or self.hosts[0].name

    @property
    def cluster_ssh_port(self) -> int:
        return self.ssh_port or self.hosts[0].port

    @property
    def machine_names(self) -> tuple[str, ...]:
        """The scheduler's machine, then the others, without those marked gone."""
        names = [host.name for host in self.hosts if not host.gone]
        return tuple(sorted(names, key=lambda name: name != self.scheduler_name))


def unknown_machine(name: str, names: tuple[str, ...]) -> str:
    known = ", ".join(names if len(names) < 6 else [*names[:3], "...", names[-1]])
    return f"{name} is not one of the machines; write one of {known}"


def existing_conflicts(machines: ExistingSource) -> Iterator[Conflict]:
    hosts: list[tuple[Place, Host]] = [(("machines", "hosts", i), host) for i, host in enumerate(machines.hosts)]
    bastions: list[tuple[Place, Bastion]] = [(("machines", "bastions", i), b) for i, b in enumerate(machines.bastions)]

    for place, first in _duplicates(((*place, "name"), each.name) for place, each in [*hosts, *bastions]):
        yield Conflict(place, f"is the same name as that of {dotted(first[:-1])[1:]}; use each name once")
    listed = list(_duplicates(((*place, "address"), (host.address, host.port)) for place, host in hosts))
    for place, first in listed:
        yield Conflict(place, f"is the same address and port as {dotted(first[:-1])[1:]}; list each machine once")

    network = ipaddress.ip_network(machines.network) if machines.network else None
    if network and network.version != 4:
        place = ("machines", "network")
        yield Conflict(place, f"{network} is not an IPv4 network; write e.g. 10.1.0.0/24")
        network = None
    inside = [
        ((*place, "privateAddress" if host.private_address else "address"), host.internal_address)
        for place, host in hosts
    ]
    for place, first in _duplicates(inside):
        if (place, first) not in listed:
            text = f"is also the internal address of {dotted(first[:-1])[1:]}; write a different one for each machine"
            yield Conflict(place, text)
    for place, address in inside:
        try:
            valid_internal_address(address)
        except ValueError as error:
            yield Conflict(place, f"{error} as its privateAddress")
            continue
        if network and ipaddress.ip_address(address) not in network:
            text = f"{address} is outside machines.network, {network}; write the machine's address in it as"
            yield Conflict(place, f"{text} privateAddress, or correct the network")
        elif network and network.prefixlen < 31 and address in (str(network[0]), str(network[-1])):
            text = f"{address} is the network address or the broadcast address of {network}; write the machine's own"
            yield Conflict(place, text)

    passed = {each.name: each for _, each in [*bastions, *hosts]}
    for place, host in hosts:
        by = passed.get(host.bastion or host.name)
        problem = None
        if by is None:
            problem = "is in neither machines.bastions nor machines.hosts; add it to one of them"
        elif host.bastion == host.name:
            problem = "is this machine itself; write another, or remove it"
        elif host.bastion and isinstance(by, Host) and by.bastion:
            problem = f"is itself behind bastion {by.bastion}; write a machine that needs no bastion"
        elif host.bastion and isinstance(by, Host) and by.gone and not host.gone:
            problem = "is marked gone; write another"
        if problem:
            yield Conflict((*place, "bastion"), f"{host.bastion} {problem}")

    for place, host in hosts:
        if host.port != hosts[0][1].port and not machines.ssh_port:
            text = (
                f"{host.port} differs from {hosts[0][1].port}, the port of machines.hosts[0]; set machines.sshPort to a"
                " port on which sshd listens on every machine"
            )
            yield Conflict((*place, "port"), text)

    names = machines.machine_names
    if machines.scheduler_name not in names:
        place = ("machines", "scheduler")
        text = unknown_machine(machines.scheduler_name, names)
        if any(host.name == machines.scheduler_name for _, host in hosts):
            text = (
                f"{machines.scheduler_name} is marked gone; write another and allow the move with moves: [scheduler],"
                " or run pulumi stack rm --force if nothing of the cluster is left"
            )
        yield Conflict(place, text)
    elif len(names) == 1 and not machines.scheduler_works:
        text = "has no machine for workers; add one, or set machines.schedulerWorks: true"
        yield Conflict(("machines", "hosts"), text)


def _duplicates(values: Iterable[tuple[Place, object]]) -> Iterator[tuple[Place, Place]]:
    """Each place whose value occurred before, with the place of its first occurrence."""
    seen: dict[object, Place] = {}
    for place, value in values:
        if seen.setdefault(value, place) != place:
            yield place, seen[value]
