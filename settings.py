"""What a stack may say; every error at once, each with its remedy."""

import base64
import binascii
import difflib
import ipaddress
import itertools
import json
import posixpath
import re
from collections.abc import Iterable, Iterator
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pulumi
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
)
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

import lock

KEY = "dask:cluster"
MINIMAL = {"target": "vms", "machines": {"source": "local", "workers": 2}}

Place = tuple[str | int, ...]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class SettingsError(ValueError):
    """`problems` has a line for each error: where, what was found, what would be right."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n  ".join([f"problems in the stack's settings: {len(problems)}", *problems]))
        self.problems = problems


# Checks of single values: each returns its argument or raises ValueError with the rest of a sentence.


def _port(lowest: int, port: int) -> int:
    if port == 22:
        raise ValueError("22 is SSH's own port; choose another, and list who may reach SSH in firewall.ssh")
    if not lowest <= port <= 65535:
        raise ValueError(f"{port} is not a port that can be used here; choose one from {lowest} to 65535")
    return port


def _world(networks: list[Network]) -> bool:
    """Whether the networks hold half or more of the addresses in use: of IPv4's, or of IPv6's 2000::/3."""
    for version, half in (4, 2**31), (6, 2**124):
        members = ipaddress.collapse_addresses(network for network in networks if network.version == version)
        if sum(network.num_addresses for network in members) >= half:
            return True
    return False


def _network(text: str) -> str:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text} is not a network; write an address and a prefix length, e.g. 203.0.113.7/32"
        ) from None
    if _world([network]):
        extent = "the whole world" if network.prefixlen == 0 else "half of the world or more"
        raise ValueError(f"{text} is open to {extent}; name the networks that need it, e.g. 203.0.113.7/32")
    if text != str(network):
        address = text.split("/")[0]
        alone = (
            ""
            if ipaddress.ip_address(address) == network[0]
            else f", or {address}/{network.max_prefixlen} for one machine"
        )
        raise ValueError(f"{text} does not name a network; write {network}{alone}")
    return text


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError(f"{text!r} cannot be a host name; use up to 63 of a-z, 0-9 and -, e.g. worker-1")
    if text == "client":
        raise ValueError("client is the name of your own certificate; choose another, e.g. worker-1")
    return text


def _address(text: str) -> str:
    """An IP address, or a name that this computer can resolve."""
    label = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
    name = re.fullmatch(rf"({label}\.)*(?![0-9]+$){label}", text)
    if not (name or _ip(text)):
        raise ValueError(f"{text!r} is neither an address nor a host name; write e.g. 203.0.113.5")
    return text


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _inside(text: str) -> str:
    ip = _ip(text)
    if not isinstance(ip, ipaddress.IPv4Address):
        raise ValueError(f"{text!r} is not an IPv4 address, by which machines reach each other; write e.g. 10.1.0.5")
    if ip.is_loopback or ip.is_unspecified or ip.is_multicast or ip.is_link_local:
        raise ValueError(f"{text} is no address at which other machines reach this one; write e.g. 10.1.0.5")
    return text


def _user(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", text):
        raise ValueError(f"{text!r} cannot be a user's name; write e.g. admin")
    if text == "dask":
        raise ValueError("dask is the cluster's own user; log in as root, or as a user that may use sudo")
    return text


def _host_key(text: str) -> str:
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
_NO_FOLDER = {
    r"/(dev|proc|run|sys|var/lock|var/run)(/.*)?": _IN_MEMORY,
    r"/(home|media|mnt|opt|srv|tmp|var|var/lib|var/tmp)?": _SYSTEM,
    r"/(bin|boot|etc|lib(32|64|x32)?|root|sbin|usr|var/(cache|log|mail|spool))(/.*)?": _SYSTEM,
    r"/var/lib/(apt|dbus|dpkg|systemd)(/.*)?": _SYSTEM,
    r"/home/[^/]+": "is a user's home",
}
_NO_DATA = _NO_FOLDER | {
    r"/(opt|var/lib)/daskstack(/.*)?": _OWN,
    r"/var/tmp/.*": "loses old files to the machine's own cleaning",
}
_NO_SPILL = _NO_FOLDER | {
    r"/opt/daskstack(/.*)?|/var/lib/daskstack": _OWN,
    r"/tmp/.*": "is in memory on newer systems",
}


def _folder(refused: dict[str, str], example: str, path: str) -> str:
    """A folder that units can name without quotes, on a disk, and not one that somebody else needs."""
    if not path.startswith("/"):
        raise ValueError(f"{path or 'an empty path'} does not start at the root; write e.g. {example}")
    if odd := sorted(set(re.findall(r"[^A-Za-z0-9._/-]", path))):
        shown = ", ".join("a space" if character == " " else ascii(character) for character in odd)
        raise ValueError(f"{path} has {shown} in it; use only letters, digits, and . _ - /, e.g. {example}")
    if path != (plain := "/" + posixpath.normpath(path).lstrip("/")):
        raise ValueError(f"{path} has . or .. or a / too many in it; write it plainly, e.g. {plain}")
    for pattern, reason in refused.items():
        if re.fullmatch(pattern, path):
            raise ValueError(f"{path} {reason}; choose another, e.g. {example}")
    return path


_MOUNT_OPTIONS = (
    "_netdev|allow_other|allow_root|auto|default_permissions|[ug]id(file)?|idmap|noauto|reconnect|ro|rw|umask|user"
    "|debug|directport|fsname|passive|password_stdin|sftp_server|slave|ssh_command|ssh_protocol|sshfs_debug|subtype"
    "|BatchMode|(User|Global)KnownHostsFile|HostKeyAlias|IdentitiesOnly|IdentityFile|PasswordAuthentication|Port"
    "|ProxyCommand|ProxyJump|ServerAlive(CountMax|Interval)|StrictHostKeyChecking"
)


def _mount_option(option: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*(=[A-Za-z0-9_.:/@+-]+)?", option):
        raise ValueError(f"{option!r} is not one option of sshfs; write e.g. compression=no")
    name = option.split("=")[0]
    if re.fullmatch(_MOUNT_OPTIONS, name, re.IGNORECASE):
        raise ValueError(f"{name} is set by the cluster, or would break its mount; leave it out")
    return option


def _memory(text: str) -> str:
    number = re.fullmatch(r"(\d+(?:\.\d+)?) *(?:[kmgtp]i?b?|b)", text, re.IGNORECASE | re.ASCII)
    if not number or float(number[1]) == 0:
        raise ValueError(f'"{text}" is not an amount of memory; write one above 0 with its unit, e.g. "2 GiB"')
    return text


def _minor_version(found: object) -> object:
    if not isinstance(found, str) or not re.fullmatch(r"3\.(0|[1-9][0-9]?)", found):
        raise ValueError(
            f'{_shown(found)} is not a minor version in quotes; write e.g. "3.11"'
            " (without quotes YAML reads 3.10 as 3.1)"
        )
    return found


_ARGUMENTS = {
    "--(port|dashboard-address)": "use dask.ports",
    "--(worker|nanny)-port": "use dask.ports.workers",
    "--nthreads": "use workers.threads",
    "--nworkers": "use workers.perMachine",
    "--memory-limit": "use workers.memoryLimit",
    "--local-directory": "use workers.spill",
    "--protocol|--tls-.*": "use dask.tls",
    "--(contact-address|host|interface|listen-address|name|pid-file|scheduler-file)": "leave it out",
}


def _argument(word: str) -> str:
    flag = re.split(r"[=\s]", word)[0]
    for pattern, remedy in _ARGUMENTS.items():
        if re.fullmatch(pattern, flag):
            raise ValueError(f"{flag} is set by the cluster; {remedy}")
    if not word.isprintable() or not re.match(r"-[\w-]+(=|$)|[^-]", word):
        raise ValueError(f'{word!r} is not one word of a command line; write e.g. ["--preload", "my.module"]')
    return word


_CONFIG = {
    r"distributed\.comm\.(default-scheme|require-encryption|tls(\..*)?)": "use dask.tls",
    "temporary-directory": "use workers.spill",
}


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        name = prefix + key.replace("_", "-")  # to Dask both are one
        if value and isinstance(value, dict):
            yield from _flat(value, name + ".")
        else:
            yield name


# The shape. A field's example is what its errors show as right; without one that is the default.


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, alias_generator=to_camel)


Listed = Strict(False)  # strict pydantic takes no list for a tuple, and a tuple stays as it is
Networks = Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], Listed]
Arguments = Annotated[tuple[Annotated[str, AfterValidator(_argument)], ...], Listed]
DaskPort = Annotated[int, AfterValidator(partial(_port, 1024))]
ARGUMENTS_EXAMPLE = [["--preload", "my.module"]]
OPEN_EXAMPLE = [[{"port": 9100, "sources": ["203.0.113.0/24"]}]]
DATA = "/srv/daskdata"
SPILL = "/var/lib/daskstack/spill"


class Local(Section):
    """Machines on this computer: one for the scheduler and `workers` more."""

    source: Literal["local"] = Field(examples=["local"])
    workers: int = Field(2, ge=1, le=240)  # their network is a /24
    scheduler_works: bool = False

    @property
    def scheduler_name(self) -> str:
        return "scheduler"

    @property
    def worker_names(self) -> tuple[str, ...]:
        return tuple(f"worker-{number}" for number in range(1, self.workers + 1))

    @property
    def machine_names(self) -> tuple[str, ...]:
        return ("scheduler", *self.worker_names)


Port = Annotated[int, Field(ge=1, le=65535)]
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDqBmXsmbJZp2sJe7Nq4Pz1u9bS0mXhVxLZb1yGZ3w5F"


class Bastion(Section):
    """A machine that is only passed through, on the way to those that name it as their bastion."""

    name: Annotated[str, AfterValidator(_name)] = Field(examples=["gate"])
    address: Annotated[str, AfterValidator(_address)] = Field(examples=["203.0.113.4"])
    port: Port = 22
    user: Annotated[str, AfterValidator(_user)] = "root"
    host_key: Annotated[str, AfterValidator(_host_key)] | None = Field(None, examples=[HOST_KEY])


class Machine(Bastion):
    """A machine of the user's. `address` and `port` are where `up` reaches it, through `bastion` where it has one."""

    address: Annotated[str, AfterValidator(_address)] = Field(examples=["203.0.113.5"])
    private_address: Annotated[str, AfterValidator(_inside)] | None = Field(None, examples=["10.1.0.5"])
    bastion: str | None = Field(None, examples=["gate"])
    gone: bool = False  # for good: nothing is run on it any more

    @property
    def inside(self) -> str:
        """Where the other machines reach it."""
        return self.private_address or self.address


HOSTS_EXAMPLE = [{"name": "head", "address": "203.0.113.5"}, {"name": "worker-1", "address": "203.0.113.6"}]


class Existing(Section):
    """Machines that the user has already."""

    source: Literal["existing"] = Field(examples=["existing"])
    hosts: Annotated[tuple[Machine, ...], Listed] = Field(min_length=1, examples=[HOSTS_EXAMPLE])
    bastions: Annotated[tuple[Bastion, ...], Listed] = Field(
        (), examples=[[{"name": "gate", "address": "203.0.113.4"}]]
    )
    network: Annotated[str, AfterValidator(_network)] | None = Field(None, examples=["10.1.0.0/24"])
    ssh_port: Port | None = Field(None, examples=[22])  # where they reach each other; by default as `up` does
    scheduler: str | None = Field(None, examples=["head"])
    scheduler_works: bool = False

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
    threads: int | None = Field(None, ge=1, examples=[2])  # of each process
    memory_limit: Annotated[str, AfterValidator(_memory)] | None = Field(None, examples=["2 GiB"])  # the same
    spill: Annotated[str, AfterValidator(partial(_folder, _NO_SPILL, SPILL))] = SPILL


class Open(Section):
    """A TCP port that networks outside the cluster may reach on every machine."""

    port: Annotated[int, AfterValidator(partial(_port, 1))] = Field(examples=[9100])
    sources: Networks = Field(min_length=1, examples=[["203.0.113.0/24"]])


class Firewall(Section):
    """What reaches the machines from outside the cluster's own network; not `manage`d, it is only verified."""

    manage: bool = True
    close_others: bool = False  # also ports on which something listens that is not the cluster's
    ssh: Networks = Field((), examples=[["203.0.113.7/32"]])
    open: Annotated[tuple[Open, ...], Listed] = Field((), examples=OPEN_EXAMPLE)


class Data(Section):
    """The directory that all machines share, and the machine whose disk it is on; parse() fills in the scheduler's."""

    path: Annotated[str, AfterValidator(partial(_folder, _NO_DATA, DATA))] = DATA
    machine: str | None = Field(None, examples=["scheduler"])
    options: Annotated[tuple[Annotated[str, AfterValidator(_mount_option)], ...], Listed] = Field(
        (), examples=[["compression=no"]]
    )
    delete: bool = False  # the user's files too, when the cluster is destroyed


class Environment(Section):
    """The Python packages of every machine. `lock` is relative to the project folder.

    Where `source` is missing, parse() fills it in: existing machines have an index, local ones do not.
    """

    lock: str = "environment.lock"
    python: Annotated[str, BeforeValidator(_minor_version)] = "3.11"
    source: Literal["index", "wheelhouse"] | None = Field(None, examples=["wheelhouse"])


class Ports(Section):
    """`workers` is the first of a block: worker, nanny and dashboard of each process on a machine."""

    scheduler: DaskPort = 8786
    dashboard: DaskPort = 8787
    workers: DaskPort = 9000


class Dask(Section):
    """Dask's own settings; `config` is what a YAML file of Dask's would hold."""

    ports: Ports = Ports()
    scheduler_args: Arguments = Field((), examples=ARGUMENTS_EXAMPLE)
    worker_args: Arguments = Field((), examples=ARGUMENTS_EXAMPLE)
    config: dict[str, Any] = {}
    tls: bool = True


class Credentials(Section):
    """A higher `renewal` than the last one renews every certificate."""

    renewal: int = Field(1, ge=1)


class Vms(Section):
    """A cluster on machines that are reached over SSH."""

    target: Literal["vms"] = Field(examples=["vms"])
    machines: Local | Existing = Field(discriminator="source", examples=[MINIMAL["machines"]])
    workers: Workers = Workers()
    firewall: Firewall = Firewall()
    data: Data = Data()
    environment: Environment = Environment()
    dask: Dask = Dask()
    credentials: Credentials = Credentials()
    # What may move to another machine with the next `up`.
    moves: Annotated[tuple[Literal["scheduler", "data"], ...], Listed] = Field((), examples=[["scheduler"]])


# A second target or another source joins here, and in its field above.
Cluster = Annotated[Vms, Field(discriminator="target")]
_BY_TAG: dict[str | int, type[Section]] = {"vms": Vms, "local": Local, "existing": Existing}


def load() -> Vms:
    """The stack's settings; all that is wrong with them in one `pulumi.RunError`."""
    try:
        value = pulumi.Config("dask").get_object("cluster")
    except pulumi.ConfigTypeError:
        value = pulumi.Config("dask").get("cluster")
    try:
        if value is None:
            raise SettingsError(
                [_line((), f"is missing; write under `config:` in the stack's file {KEY}: {_shown(MINIMAL)}")]
            )
        return parse(value, Path(__file__).parent)
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None


def parse(value: dict[str, Any], folder: Path) -> Vms:
    """The settings in `value`, checked against each other and against the lock in the project's `folder`.

    What is wrong is noted and replaced with something right, until the rest can be judged too. Conflicts with
    such a replacement are not reported. Raises SettingsError.
    """
    whole = {KEY: json.loads(json.dumps(value, default=str))}
    problems: list[str] = []
    replaced: list[Place] = []
    for _ in range(20):  # a wrong tag or key hides what is wrong below it: each round uncovers one level
        try:
            cluster = TypeAdapter(Cluster).validate_python(whole[KEY])
            break
        except ValidationError as invalid:
            errors = invalid.errors()
        misspelt = [error for error in errors if error["type"] == "extra_forbidden"]
        for error in misspelt or errors:
            place, text, right = _explain(error)
            problems.append(_line(place, text))
            *path, last = (KEY, *place)
            parent = reduce(getitem, path, whole)
            if misspelt:
                wrong = parent.pop(last)
                if right:
                    parent.setdefault(right, wrong)
            else:
                parent[last] = right
                replaced.append(place)
    else:
        raise SettingsError(problems)

    for place, grounds, text in _conflicts(cluster, folder):
        pairs = itertools.product(replaced, grounds)
        if not any(old == ground[: len(old)] or ground == old[: len(ground)] for old, ground in pairs):
            problems.append(_line(place, text))
    if problems:
        raise SettingsError(problems)
    machine = cluster.data.machine or cluster.machines.scheduler_name
    source = cluster.environment.source or ("wheelhouse" if cluster.machines.source == "local" else "index")
    data = cluster.data.model_copy(update={"machine": machine})
    environment = cluster.environment.model_copy(update={"source": source})
    return cluster.model_copy(update={"data": data, "environment": environment})


def _conflicts(cluster: Vms, folder: Path) -> Iterator[tuple[Place, list[Place], str]]:
    """Where settings contradict each other or the lock: a place, all places that count, and what is wrong."""
    names, machine = cluster.machines.machine_names, cluster.data.machine
    if isinstance(cluster.machines, Existing):
        yield from _machine_conflicts(cluster.machines)
    if machine and machine not in names:
        place = ("data", "machine")
        yield place, [place, ("machines",)], f"{machine} {_not_one_of(cluster.machines)}"

    path, spill = cluster.data.path, cluster.workers.spill
    if _below(path, spill) or _below(spill, path):
        grounds: list[Place] = [("workers", "spill"), ("data", "path")]
        text = f"{spill} and data.path {path} overlap; spill to a folder apart, on the machine's own disk"
        yield grounds[0], grounds, text

    if cluster.environment.source == "index" and cluster.machines.source == "local":
        place = ("environment", "source")
        text = "index cannot be used with local machines, which have no route to one; write wheelhouse"
        yield place, [place, ("machines", "source")], text

    lists: dict[Place, tuple[str, ...]] = {("firewall", "ssh"): cluster.firewall.ssh}
    for index, opened in enumerate(cluster.firewall.open):
        lists["firewall", "open", index, "sources"] = opened.sources
    for place, networks in lists.items():
        if _world([ipaddress.ip_network(network) for network in networks]):
            text = "these cover half of the world or more together; name only the networks that need it"
            yield place, [], text

    for name, (pattern, remedy) in itertools.product(_flat(cluster.dask.config), _CONFIG.items()):
        if re.fullmatch(pattern, name):
            yield ("dask", "config", name), [], f"is set by the cluster; {remedy}"

    yield from _port_conflicts(cluster)

    try:
        lock.read(folder / cluster.environment.lock, cluster.environment.python)
    except lock.LockError as error:
        for setting, text in error.problems:
            place = ("environment", setting)
            yield place, [place, ("environment", "lock")], text


def _not_one_of(machines: Local | Existing) -> str:
    names = machines.machine_names
    known = ", ".join(names if len(names) < 6 else [*names[:3], "...", names[-1]])
    return f"is not one of the machines; choose one of {known}"


def _machine_conflicts(machines: Existing) -> Iterator[tuple[Place, list[Place], str]]:
    hosts: list[tuple[Place, Machine]] = [(("machines", "hosts", i), host) for i, host in enumerate(machines.hosts)]
    bastions: list[tuple[Place, Bastion]] = [(("machines", "bastions", i), b) for i, b in enumerate(machines.bastions)]

    for place, first in _twice(((*place, "name"), each.name) for place, each in [*hosts, *bastions]):
        yield place, [place, first], f"has the same name as {_dotted(first[:-1])[1:]}; use each name once"
    listed = list(_twice(((*place, "address"), (host.address, host.port)) for place, host in hosts))
    for place, first in listed:
        grounds = [place, first, (*place[:-1], "port"), (*first[:-1], "port")]
        yield place, grounds, f"address and port are those of {_dotted(first[:-1])[1:]}; list each machine once"

    network = ipaddress.ip_network(machines.network) if machines.network else None
    inside = [((*place, "privateAddress" if host.private_address else "address"), host.inside) for place, host in hosts]
    for place, first in _twice(inside):
        if (place, first) not in listed:
            text = (
                f"is where {_dotted(first[:-1])[1:]} is reached inside the cluster already; each needs its own address"
            )
            yield place, [place, first], text
    for place, address in inside:
        try:
            _inside(address)
        except ValueError as error:
            yield place, [place], f"{error} as its privateAddress"
            continue
        if network and ipaddress.ip_address(address) not in network:
            text = f"{address} is outside machines.network {network}; write the machine's address inside it as"
            yield place, [place, ("machines", "network")], f"{text} privateAddress, or correct the network"

    passed = {each.name: each for _, each in [*bastions, *hosts]}
    for place, host in hosts:
        by = passed.get(host.bastion or host.name)
        problem = None
        if by is None:
            problem = "is neither in machines.bastions nor in machines.hosts; add it to either"
        elif host.bastion == host.name:
            problem = "is this machine itself; name another, or leave it out"
        elif host.bastion and isinstance(by, Machine) and by.bastion:
            problem = f"is itself behind {by.bastion}; choose one that is reached without a bastion"
        elif host.bastion and isinstance(by, Machine) and by.gone and not host.gone:
            problem = "is marked gone; choose another"
        if problem:
            yield (*place, "bastion"), [("machines",)], f"{host.bastion} {problem}"

    for place, host in hosts:
        if host.port != hosts[0][1].port and not machines.ssh_port:
            text = (
                f"{host.port} is not {hosts[0][1].port}, that of machines.hosts[0]; machines reach each other at one"
                " port, on which each sshd must listen: write it as machines.sshPort"
            )
            yield (*place, "port"), [(*place, "port"), (*hosts[0][0], "port")], text

    names = machines.machine_names
    if machines.scheduler_name not in names:
        place = ("machines", "scheduler")
        text = f"{machines.scheduler_name} {_not_one_of(machines)}"
        if any(host.name == machines.scheduler_name for _, host in hosts):
            text = (
                f"{machines.scheduler_name} is marked gone; choose another and allow the move (moves: [scheduler]), or"
                " forget a cluster of which nothing is left: pulumi stack rm --force"
            )
        yield place, [place, ("machines", "hosts")], text
    elif len(names) == 1 and not machines.scheduler_works:
        text = "no machine is left to work but the scheduler's; add one, or set machines.schedulerWorks: true"
        yield ("machines", "hosts"), [("machines", "hosts")], text


def _twice(values: Iterable[tuple[Place, object]]) -> Iterator[tuple[Place, Place]]:
    """Each place of a value that is at an earlier place too, with the first such place."""
    seen: dict[object, Place] = {}
    for place, value in values:
        if seen.setdefault(value, place) != place:
            yield place, seen[value]


def _port_conflicts(cluster: Vms) -> Iterator[tuple[Place, list[Place], str]]:
    ports, processes = cluster.dask.ports, cluster.workers.per_machine
    block = range(ports.workers, ports.workers + 3 * processes)
    block_place, processes_place = ("dask", "ports", "workers"), ("workers", "perMachine")
    need = f"{len(block)} ports, 3 for each worker process on a machine"
    if block[-1] > 65535:
        text = f"{block[0]} is too high for {need}; choose {65536 - len(block)} or less"
        yield block_place, [block_place, processes_place], text

    taken: list[tuple[Place, range]] = [
        (("dask", "ports", "scheduler"), range(ports.scheduler, ports.scheduler + 1)),
        (("dask", "ports", "dashboard"), range(ports.dashboard, ports.dashboard + 1)),
        (block_place, block),
    ]
    if isinstance(cluster.machines, Existing) and cluster.machines.inner_port != 22:
        ssh = cluster.machines.inner_port
        place = ("machines", "sshPort") if cluster.machines.ssh_port else ("machines", "hosts", 0, "port")
        taken.insert(0, (place, range(ssh, ssh + 1)))
    for index, opened in enumerate(cluster.firewall.open):
        taken.append((("firewall", "open", index, "port"), range(opened.port, opened.port + 1)))
    for (first, one), (second, other) in itertools.combinations(taken, 2):
        if one[0] > other[-1] or other[0] > one[-1]:
            continue
        grounds = [first, second, processes_place] if block_place in (first, second) else [first, second]
        used = " to ".join(str(port) for port in sorted({other[0], other[-1]}))
        if first[0] == "firewall":
            remedy = "put all its sources into one entry"
        elif first[0] == "machines" and second[0] == "firewall":
            remedy = "list who may reach SSH in firewall.ssh"
        elif second[0] == "firewall":
            remedy = "leave it closed, and reach Dask through an SSH tunnel"
        else:
            remedy = f"choose another for {need}" if second == block_place else "choose another"
        yield second, grounds, f"{used} is taken by {_dotted(first)[1:]} already; {remedy}"


# From pydantic's errors to sentences of ours.

_SENTENCES = {
    "bool_type": "{found} is neither true nor false; write e.g. {right}",
    "dict_type": "{found} is not a set of keys; write e.g. {right}",
    "greater_than_equal": "{found} is too small; write {ge} or more",
    "int_type": "{found} is not a whole number; write e.g. {right}",
    "less_than_equal": "{found} is too large; write {le} or less",
    "literal_error": "{found} is not known here; write {expected}",
    "missing": "is missing; write e.g. {right}",
    "model_attributes_type": "{found} is not a set of keys; write some of {keys}",
    "model_type": "{found} is not a set of keys; write some of {keys}",
    "string_type": "{found} is not text; write e.g. {right}",
    "too_short": "the list is empty; write e.g. {right}",
    "tuple_type": "{found} is not a list; write e.g. {right}",
    "union_tag_invalid": "{tag} is not known here; write {expected_tags}",
    "union_tag_not_found": "is missing; write e.g. {right}",
    "value_error": "{error}",
}
_ELSE = "{found} cannot be used here; write e.g. {right}"
_ROOT = Field(discriminator="target", examples=[MINIMAL])


def _explain(error: dict[str, Any]) -> tuple[Place, str, Any]:
    """Where an error is, a sentence about it, and what would be right: a key for a key, else a value."""
    kind, context = error["type"], error.get("ctx", {})
    place, section, field = _look_up(error["loc"])
    keys = [str(known.alias) for known in section.model_fields.values()]
    if kind == "extra_forbidden":
        nearest = difflib.get_close_matches(str(place[-1]), keys, n=1)
        remedy = f"did you mean {nearest[0]}?" if nearest else f"the keys here are {', '.join(keys)}"
        return place, f"is not a key that is known here; {remedy}", "".join(nearest)

    right = field.examples[0] if field.examples else field.default
    if isinstance(right, Section):
        right = right.model_dump(by_alias=True, mode="json")
    if kind.startswith("union_tag"):
        tag = str(field.discriminator)
        place, right = (*place, tag), right[tag]
    elif place and isinstance(place[-1], int):
        right = right[0]
    words = {"found": _shown(error["input"]), "right": _shown(right), "keys": ", ".join(keys), **context}
    return place, _SENTENCES.get(kind, _ELSE).format(**words), right


def _look_up(location: Place) -> tuple[Place, type[Section], FieldInfo]:
    """A pydantic location without the tags of unions, the section of its last key, and that key's field."""
    place: Place = ()
    section, field = Vms, _ROOT
    for part in location:
        if field.discriminator and part in _BY_TAG:
            section, field = _BY_TAG[part], Field()
            continue
        place += (part,)
        if isinstance(part, str):
            field = next((known for known in section.model_fields.values() if known.alias == part), Field())
            kinds = (field.annotation, *get_args(field.annotation))
            sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
            section = sections[0] if sections else section
    return place, section, field


def _line(place: Place, text: str) -> str:
    return f"{KEY}{_dotted(place)}: {text}"


def _dotted(place: Place) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)


def _shown(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) < 80 else text[:76] + " ..."
