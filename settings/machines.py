"""What a stack with `target: machines` may say."""

import base64
import binascii
import ipaddress
import itertools
import posixpath
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from settings import cost
from settings.common import (
    OPEN_ARGUMENTS,
    OPEN_CONFIG,
    Conflict,
    Credentials,
    Environment,
    Listed,
    Networks,
    Numbered,
    Place,
    Prices,
    Section,
    config_conflicts,
    dotted,
    lock_conflicts,
    memory,
    not_the_world,
    seconds,
    valid_argument,
    valid_memory,
    valid_network,
)
from settings.compute import ComputeSource, MachineLimits

MINIMAL = {"target": "machines", "machines": {"source": "local", "workers": 2}}

# Checks of single values: each returns its argument or raises ValueError with the rest of a sentence.


def valid_port(lowest: int, port: int) -> int:
    if port == 22:
        raise ValueError("22 is SSH's own port; choose another, and list who may reach SSH in firewall.ssh")
    if not lowest <= port <= 65535:
        raise ValueError(f"{port} is not a port that can be used here; choose one from {lowest} to 65535")
    return port


def is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


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


_IN_MEMORY = "is in memory and is lost at a reboot"
_SYSTEM = "is a folder that the machine itself needs"
_OWN = "is a folder of the cluster's own"
_SERVICE = "is where services of the machine keep their data"
_NO_FOLDER = {
    r"/(dev|proc|run|sys|var/lock|var/run)(/.*)?": _IN_MEMORY,
    r"/(home|media|mnt|opt|srv|tmp|var|var/lib|var/tmp)?": _SYSTEM,
    r"/(bin|boot|etc|lib(32|64|x32)?|root|sbin|usr|var/(cache|log|mail|spool))(/.*)?": _SYSTEM,
    r"/var/lib/(apt|dbus|dpkg|systemd)(/.*)?": _SYSTEM,
    r"/home/[^/]+": "is a user's home",
}
_NO_DATA = _NO_FOLDER | {
    r"/(opt|var/lib)/daskstack(/.*)?": _OWN,
    r"/(srv/(ftp|git|tftp|www)|var/(backups|crash|games|lib|opt|www))(/.*)?": _SERVICE,
    r"/var/tmp/.*": "loses old files to the machine's own cleaning",
}
_NO_SPILL = _NO_FOLDER | {
    r"/opt/daskstack(/.*)?|/var/lib/daskstack": _OWN,
    r"/(srv/(ftp|git|tftp|www)|var/(backups|crash|games|lib(?!/daskstack/)|opt|www))(/.*)?": _SERVICE,
    r"/tmp/.*": "is in memory on newer systems",
}


def valid_folder(refused: dict[str, str], example: str, path: str) -> str:
    """A folder that units can name without quotes, on a disk, and not one that somebody else needs."""
    if not path.startswith("/"):
        raise ValueError(f"{path or 'an empty path'} does not start at the root; write e.g. {example}")
    if odd := sorted(set(re.findall(r"[^A-Za-z0-9._/-]", path))):
        shown = ", ".join("a space" if character == " " else ascii(character) for character in odd)
        raise ValueError(f"{path} has {shown} in it; use only letters, digits, and . _ - /, e.g. {example}")
    if path != (plain := "/" + posixpath.normpath(path).lstrip("/")):
        right = example if any(re.fullmatch(pattern, plain) for pattern in refused) else plain
        raise ValueError(f"{path} has . or .. or a / too many in it; write it plainly, e.g. {right}")
    for pattern, reason in refused.items():
        if re.fullmatch(pattern, path):
            raise ValueError(f"{path} {reason}; choose another, e.g. {example}")
    return path


# How fast the mount is, and nothing about who is trusted, what is run, or whose the files are.
MOUNT_OPTIONS = {
    *("attr_timeout", "auto_cache", "cache_timeout", "compression", "dcache_max_size", "dcache_timeout", "dir_cache"),
    *("direct_io", "entry_timeout", "kernel_cache", "max_conns", "max_read", "negative_timeout", "noatime"),
    *("no_readahead", "sync_readdir"),
    *("Ciphers", "Compression", "ConnectTimeout", "IPQoS", "KexAlgorithms", "MACs", "RekeyLimit", "TCPKeepAlive"),
}


def valid_mount_option(option: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*(=[A-Za-z0-9_.:/@+-]+)?", option):
        raise ValueError(f"{option!r} is not one option of sshfs; write e.g. compression=no")
    name = option.split("=")[0]
    if name not in MOUNT_OPTIONS:
        known = ", ".join(sorted(sorted(MOUNT_OPTIONS, reverse=True), key=str.lower))
        raise ValueError(f"{name} is not an option that can be set here; the options are {known}")
    return option


ARGUMENTS = {
    "--(port|dashboard-address)": "use dask.ports",
    "--(worker|nanny)-port": "use dask.ports.workers",
    "--nthreads": "use workers.threads",
    "--nworkers": "use workers.perMachine",
    "--memory-limit": "use workers.memoryLimit",
    "--local-directory": "use workers.spill",
    "--protocol|--tls-.*": "use dask.tls",
    "--(contact-address|host|interface|listen-address|name|pid-file|scheduler-(file|port)|version)": "leave it out",
    **OPEN_ARGUMENTS,
}


CONFIG = {
    r"distributed\.comm\.(default-scheme|require-encryption|tls(\..*)?)": "use dask.tls",
    "temporary-directory": "use workers.spill",
    **OPEN_CONFIG,
}


Arguments = Annotated[tuple[Annotated[str, AfterValidator(partial(valid_argument, ARGUMENTS))], ...], Listed]
DaskPort = Annotated[int, AfterValidator(partial(valid_port, 1024))]
ARGUMENTS_EXAMPLE = [["--preload", "my.module"]]
OPEN_EXAMPLE = [[{"port": 9100, "sources": ["203.0.113.0/24"]}]]
DATA = "/srv/daskdata"
SPILL = "/var/lib/daskstack/spill"


class LocalSource(Numbered):
    """Machines on this computer."""

    source: Literal["local"] = Field(examples=["local"])
    """Machines on this computer, to try a cluster out."""


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


class Workers(Section):
    """Dask's worker processes; what is None is shared out among those of a machine."""

    per_machine: int = Field(1, ge=1, le=64)
    """Worker processes on each machine."""
    threads: int | None = Field(None, ge=1, examples=[2])
    """Threads of each process; by default the machine's processors divided by its processes."""
    memory_limit: Annotated[str, AfterValidator(valid_memory)] | None = Field(None, examples=["2 GiB"])
    """Memory of each process; by default the machine's memory divided by its processes."""
    spill: Annotated[str, AfterValidator(partial(valid_folder, _NO_SPILL, SPILL))] = SPILL
    """A folder on the machine's own disk for data that does not fit into memory. Workers use a folder `daskstack` in
    it; nothing else there is touched.
    """


class Open(Section):
    """A TCP port that networks outside the cluster may reach on every machine."""

    port: Annotated[int, AfterValidator(partial(valid_port, 1))] = Field(examples=[9100])
    """The TCP port, on every machine."""
    sources: Networks = Field(min_length=1, examples=[["203.0.113.0/24"]])
    """The networks that may reach it; the whole world is refused."""


class Firewall(Section):
    """What reaches the machines from outside the cluster's own network; not `manage`d, it is only verified."""

    manage: bool = True
    """`false` leaves the machines' firewalls alone; `up` then says what they must let in."""
    close_others: bool = False
    """Also closes ports on which other services listen now."""
    ssh: Networks = Field((), examples=[["203.0.113.7/32"]])
    """Networks that may reach SSH, in addition to the cluster's own. On Google Cloud they reach the scheduler's machine
    only.
    """
    open: Annotated[tuple[Open, ...], Listed] = Field((), examples=OPEN_EXAMPLE)
    """Further ports to open. Not on Google Cloud."""
    metadata: bool = False
    """Lets tasks use the account that a cloud gives the machine. On Google Cloud, `machines.roles` decides."""


class Data(Section):
    """The directory that all machines share, and the machine whose disk it is on."""

    path: Annotated[str, AfterValidator(partial(valid_folder, _NO_DATA, DATA))] = DATA
    """The shared directory, at the same path on every machine. On a disk of your own, use a folder below its mount."""
    machine: str | None = Field(None, examples=["scheduler"])
    """The machine on whose disk the files are; the scheduler's by default."""
    options: Annotated[tuple[Annotated[str, AfterValidator(valid_mount_option)], ...], Listed] = Field(
        (), examples=[["compression=no"]]
    )
    """Further sshfs options: those of caches, ciphers and compression."""
    delete: bool = False
    """`destroy` deletes the files in the shared directory too. Refused with `machines.dataDisk.name`, whose disk always
    stays.
    """


class Packages(Environment):
    """Where `source` is missing, `completed` fills it in: existing machines have an index, local ones do not."""

    source: Literal["index", "wheelhouse"] | None = Field(None, examples=["wheelhouse"])
    """`wheelhouse`: your computer downloads the packages and sends them to the scheduler's machine once; the others
    take them from there. `index`: each machine uses its package index, and its own /etc/uv/uv.toml counts. By
    default `wheelhouse` for local machines, `index` for others.
    """


class Ports(Section):
    """`workers` is the first of a block: worker, nanny and dashboard of each process on a machine."""

    scheduler: DaskPort = 8786
    """The scheduler's port."""
    dashboard: DaskPort = 8787
    """The dashboard's port."""
    workers: DaskPort = 9000
    """The first of a block of ports: three for each worker process on a machine."""


class Dask(Section):
    """Dask's own settings; `config` is what a YAML file of Dask's would hold."""

    ports: Ports = Ports()
    """Ports of Dask's services, open to the cluster's machines only."""
    scheduler_args: Arguments = Field((), examples=ARGUMENTS_EXAMPLE)
    """Further arguments of `dask scheduler`."""
    worker_args: Arguments = Field((), examples=ARGUMENTS_EXAMPLE)
    """Further arguments of `dask worker`."""
    config: dict[str, Any] = Field({})
    """Dask configuration, as in Dask's own YAML files."""
    tls: bool = True
    """Mutual TLS between scheduler, workers and clients."""


class MachinesTarget(Section):
    """A cluster on machines that are reached over SSH."""

    target: Literal["machines"] = Field(examples=["machines"])
    """A cluster on machines that are reached over SSH."""
    machines: LocalSource | ExistingSource | ComputeSource = Field(
        discriminator="source", examples=[MINIMAL["machines"]]
    )
    """Where the machines come from."""
    workers: Workers = Workers()
    """Dask's worker processes."""
    firewall: Firewall = Firewall()
    """Who may reach the machines from outside the cluster's network."""
    data: Data = Data()
    """The directory that all machines share."""
    environment: Packages = Packages()
    """The Python packages of every process."""
    dask: Dask = Dask()
    """Dask's own settings."""
    credentials: Credentials = Credentials()
    """Keys and certificates."""
    limits: MachineLimits = MachineLimits()
    """When machines stop, and what the stack may cost."""
    prices: Prices = Field({}, examples=[{"n1-standard-4": 0.15}])
    """Your own prices in US dollars per hour, by name; list prices by default."""
    moves: Annotated[tuple[Literal["scheduler", "data"], ...], Listed] = Field((), examples=[["scheduler"]])
    """Allows the scheduler or the data to move to another machine on the next `up`; remove it afterwards."""

    def completed(self) -> "MachinesTarget":
        """With what follows from other settings filled in."""
        machine = self.data.machine or self.machines.scheduler_name
        source = self.environment.source or ("wheelhouse" if self.machines.source == "local" else "index")
        data = self.data.model_copy(update={"machine": machine})
        environment = self.environment.model_copy(update={"source": source})
        return self.model_copy(update={"data": data, "environment": environment})

    def bill(self) -> list[cost.Item]:
        """What machines in Google Cloud cost, part by part."""
        return self.machines.bill(self.limits, self.prices)

    def conflicts(self, folder: Path) -> Iterator[Conflict]:
        """Where settings contradict each other or the lock."""
        names, machine = self.machines.machine_names, self.data.machine
        if isinstance(self.machines, ExistingSource):
            yield from _machine_conflicts(self.machines)
        yield from _cloud_conflicts(self)
        if machine and machine not in names:
            place = ("data", "machine")
            yield Conflict(place, f"{machine} {_not_one_of(self.machines)}")

        path, spill = self.data.path, self.workers.spill
        if is_below(path, spill) or is_below(spill, path):
            text = f"{spill} and data.path {path} overlap; spill to a folder apart, on the machine's own disk"
            yield Conflict(("workers", "spill"), text)

        if self.environment.source == "index" and self.machines.source == "local":
            place = ("environment", "source")
            text = "index cannot be used with local machines, which have no route to one; write wheelhouse"
            yield Conflict(place, text)

        lists: dict[Place, tuple[str, ...]] = {("firewall", "ssh"): self.firewall.ssh}
        for index, opened in enumerate(self.firewall.open):
            lists["firewall", "open", index, "sources"] = opened.sources
        yield from not_the_world(lists)
        yield from config_conflicts(self.dask.config, CONFIG)
        yield from _port_conflicts(self)
        yield from lock_conflicts(self.environment, folder)


def _cloud_conflicts(cluster: MachinesTarget) -> Iterator[Conflict]:
    """What concerns machines in Google Cloud, and what concerns no others."""
    machines, limits = cluster.machines, cluster.limits
    if isinstance(machines, ComputeSource):
        yield from machines.conflicts(cluster.firewall.ssh)
        yield from _compute_conflicts(cluster, machines)
        yield from cost.conflicts(limits, cluster.bill(), cluster.prices, machines.priced())
        return
    for name, what in ("maxAge", limits.max_age), ("hourlyCost", limits.hourly_cost):
        if what is not None:
            place = ("limits", name)
            yield Conflict(place, "is for machines in Google Cloud alone; leave it out")
    if limits.idle and isinstance(machines, ExistingSource):
        place = ("limits", "idle")
        text = "would power off machines that nobody could start again from here; leave it out"
        yield Conflict(place, text)


def _compute_conflicts(cluster: MachinesTarget, machines: ComputeSource) -> Iterator[Conflict]:
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


def _not_one_of(machines: LocalSource | ExistingSource | ComputeSource) -> str:
    names = machines.machine_names
    known = ", ".join(names if len(names) < 6 else [*names[:3], "...", names[-1]])
    return f"is not one of the machines; choose one of {known}"


def _machine_conflicts(machines: ExistingSource) -> Iterator[Conflict]:
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
        text = f"{machines.scheduler_name} {_not_one_of(machines)}"
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


def _port_conflicts(cluster: MachinesTarget) -> Iterator[Conflict]:
    ports, processes = cluster.dask.ports, cluster.workers.per_machine
    block = range(ports.workers, ports.workers + 3 * processes)
    block_place = ("dask", "ports", "workers")
    need = f"{len(block)} ports, 3 for each worker process on a machine"
    if block[-1] > 65535:
        text = f"{block[0]} is too high for {need}; choose {65536 - len(block)} or less"
        yield Conflict(block_place, text)

    taken: list[tuple[Place, range]] = [
        (("dask", "ports", "scheduler"), range(ports.scheduler, ports.scheduler + 1)),
        (("dask", "ports", "dashboard"), range(ports.dashboard, ports.dashboard + 1)),
        (block_place, block),
    ]
    if isinstance(cluster.machines, ExistingSource) and cluster.machines.inner_port != 22:
        ssh = cluster.machines.inner_port
        place = ("machines", "sshPort") if cluster.machines.ssh_port else ("machines", "hosts", 0, "port")
        taken.insert(0, (place, range(ssh, ssh + 1)))
    for index, opened in enumerate(cluster.firewall.open):
        taken.append((("firewall", "open", index, "port"), range(opened.port, opened.port + 1)))
    for (first, one), (second, other) in itertools.combinations(taken, 2):
        if one[0] > other[-1] or other[0] > one[-1]:
            continue
        used = " to ".join(str(port) for port in sorted({other[0], other[-1]}))
        if first[0] == "firewall":
            remedy = "put all its sources into one entry"
        elif first[0] == "machines" and second[0] == "firewall":
            remedy = "list who may reach SSH in firewall.ssh"
        elif second[0] == "firewall":
            remedy = "leave it closed, and reach Dask through an SSH tunnel"
        else:
            remedy = f"choose another for {need}" if second == block_place else "choose another"
        yield Conflict(second, f"{used} is taken by {dotted(first)[1:]} already; {remedy}")
