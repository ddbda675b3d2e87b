"""Checks of single values, and settings that all targets share."""

import ipaddress
import json
import re
import ssl
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict
from pydantic.alias_generators import to_camel

from settings import lock

KEY = "dask:cluster"
Place = tuple[str | int, ...]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Conflict(NamedTuple):
    """A setting that contradicts another one, and the message for it."""

    place: Place
    text: str


# Checks of single values: each returns its argument, or raises ValueError with the message for the user.

WORLD_TOGETHER = "these networks together cover half of the internet or more; list only the networks that need access"


def covers_the_world(networks: list[Network]) -> bool:
    """Whether the networks contain at least half of all IPv4 addresses, or half of IPv6's 2000::/3."""
    four = ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv4Network))
    six = ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv6Network))
    return sum(each.num_addresses for each in four) >= 2**31 or sum(each.num_addresses for each in six) >= 2**124


def valid_network(text: str) -> str:
    try:
        if "%" in text:
            raise ValueError("Python accepts any text after the % as an interface name")
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text} is not a network; write an address and a prefix length, e.g. 203.0.113.7/32"
        ) from None
    if covers_the_world([network]):
        extent = "the whole internet" if network.prefixlen == 0 else "half of the internet or more"
        raise ValueError(f"{text} covers {extent}; list only the networks that need access, e.g. 203.0.113.7/32")
    if text != str(network):
        address = text.split("/")[0]
        alone = (
            ""
            if ipaddress.ip_address(address) == network[0]
            else f", or {address}/{network.max_prefixlen} for one machine"
        )
        raise ValueError(f"{text} is not in standard form; write {network}{alone}")
    return text


def valid_memory(text: str) -> str:
    number = re.fullmatch(r"(\d+(?:\.\d+)?) *(?:[kmgtp]i?b?|b)", text, re.IGNORECASE | re.ASCII)
    if not number or not 10**6 <= memory(text) <= 2**50:
        raise ValueError(f'"{text}" is not an amount of memory from 1 MB to 1 PiB; write e.g. "2 GiB", with the unit')
    return text


UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15} | {
    f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("kmgtp", 1)
}


def memory(text: str) -> int:
    """An amount of memory in bytes. Kubernetes writes Dask's "2 GiB" as 2Gi and its "2 GB" as 2G."""
    number = text.rstrip("BbIiKkMmGgTtPp ")
    unit = text[len(number) :].strip().lower().removesuffix("b")
    return int(Decimal(number) * UNITS[unit])


def valid_amount(found: object) -> object:
    if isinstance(found, bool):
        raise ValueError(f"{format_value(found)} is not a number; write e.g. 0.5")
    return found


# Environment variables that this program sets in containers.
_VARIABLES = (
    r"PATH|HOME|POD_NAME|RESTART|IDLE_\w+|KUBERNETES_\w+|JUPYTER_(TOKEN|NO_CONFIG|CONFIG_\w+)|PYTHONPYCACHEPREFIX"
    r"|DASK_((ROOT_)?CONFIG|INTERNAL_INHERIT_CONFIG|SCHEDULER_ADDRESS)"
)
# Dask configuration keys for encryption, and the sections that contain them.
_ENCRYPTION = r"distributed|distributed\.comm|(distributed\.comm\.)?(default-scheme|require-encryption|tls(\..*)?)"


def valid_variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name):
        raise ValueError(f"{format_value(name)} is not the name of a variable; write e.g. OMP_NUM_THREADS")
    path = name.removeprefix("DASK_").lower().replace("__", ".").replace("_", "-")
    if name.startswith("DASK_") and re.fullmatch(_ENCRYPTION, path):
        raise ValueError(f"{name} changes encryption, which this program sets; use dask.tls")
    if re.fullmatch(_VARIABLES, name):
        raise ValueError(f"{name} is set by this program; remove it")
    return name


def valid_value(text: str) -> str:
    if re.search(r"://[^/@\s]*:[^/@\s]+@", text):
        raise ValueError(f"contains a password, which belongs in the stack's secrets; remove it, and run {SECRET_ENV}")
    return text


SECRET_ENV = "pulumi config set --secret --path 'dask:secretEnv.NAME'"
Env = dict[Annotated[str, AfterValidator(valid_variable)], Annotated[str, AfterValidator(valid_value)]]


def valid_certificates(found: object) -> object:
    try:
        if not isinstance(found, str) or "PRIVATE KEY" in found:
            raise TypeError
        if found:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found)
    except (ssl.SSLError, TypeError, ValueError):  # TypeError if it is not ASCII
        raise ValueError(
            "is not a certificate in PEM format; write the lines from -----BEGIN CERTIFICATE----- to"
            " -----END CERTIFICATE-----, without a private key"
        ) from None
    return found


def valid_python(found: object) -> object:
    if not isinstance(found, str) or not re.fullmatch(r"3\.(9|1[0-9])", found):  # no release is outside 3.9 to 3.19
        raise ValueError(
            f'{format_value(found)} is not a minor version in quotes; write e.g. "3.11"'
            " (without quotes, YAML reads 3.10 as 3.1)"
        )
    return found


def valid_system_package(text: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9+.:_-]*", text):
        raise ValueError(f"{text!r} is not the name of a Debian or Red Hat package; write e.g. libgl1")
    return text


def valid_group(name: str) -> str:
    # The longest name of a GKE node pool is 40 characters, and that of a group's pool starts with "workers-".
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?", name):
        raise ValueError(
            f"{format_value(name)} is not the name of a group; write up to 30 of a-z, 0-9 and -, starting with a"
            " letter, e.g. big"
        )
    return name


GroupName = Annotated[str, AfterValidator(valid_group)]


def valid_resource(name: str) -> str:
    # Dask splits the resources of its command line at commas, spaces and equals signs.
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}", name):
        raise ValueError(
            f"{format_value(name)} is not the name of a resource; write up to 63 of letters, digits, _, . and -,"
            " e.g. GPU"
        )
    return name


SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def valid_duration(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,4}[smhd]", text) or seconds(text) < 60:
        raise ValueError(f"{text!r} is not a duration of at least one minute; write e.g. 30m or 2h")
    return text


def seconds(duration: str) -> int:
    return int(duration[:-1]) * SECONDS[duration[-1]]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, alias_generator=to_camel, use_attribute_docstrings=True
    )


def valid_port_range(text: str) -> str:
    if text == "none":
        return text
    bounds = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text, re.ASCII)
    if not bounds or not 1024 <= int(bounds[1]) <= int(bounds[2]) <= 65535:
        raise ValueError(
            f'{text!r} is not a range of ports from 1024 to 65535; write e.g. {LIBRARY_PORTS}, or "none" to close them'
        )
    return text


# Linux's default range of the ports that it chooses itself (net.ipv4.ip_local_port_range).
LIBRARY_PORTS = "32768-60999"
PortRange = Annotated[str, AfterValidator(valid_port_range)]


Listed = Strict(False)  # in strict mode, pydantic does not accept a list for a tuple
Networks = Annotated[tuple[Annotated[str, AfterValidator(valid_network)], ...], Listed]


class Environment(Section):
    """The Python packages that all processes use."""

    lock: str = "environment.lock"
    """The lock file of the Python packages, relative to the project folder: pinned requirements with hashes, which
    `daskstack lock` writes. The cluster does not build packages. On machines it can also be the lock of an archive with
    a whole environment.
    """
    python: Annotated[str, BeforeValidator(valid_python)] = "3.11"
    """Python's minor version in quotes. All processes and your notebook must use the same one. Local machines have 3.11
    or 3.13.
    """
    system: Annotated[tuple[Annotated[str, AfterValidator(valid_system_package)], ...], Listed] = Field(
        (), examples=[["libgl1"]]
    )
    """Debian or Red Hat packages that Python packages need, by the names that the machines' package manager knows.
    libgomp, which LightGBM needs, is always installed.
    """
    authority: Annotated[str, BeforeValidator(valid_certificates)] = ""
    """The certificate, in PEM format, of the private authority that your package index or proxy uses. Several can
    follow each other. Tasks and notebooks trust it too.
    """


class Credentials(Section):
    """Keys and certificates."""

    renewal: int = Field(1, ge=1)
    """Raise this number to replace all keys and certificates, including the authority's, while Dask keeps running. The
    cluster rejects the old ones within minutes, so connect again. Machines renew their certificates automatically; `up`
    warns you 60 days before yours expires.
    """


MACHINES = 10_000  # at most that a stack creates


class Numbered(Section):
    """Machines that the stack creates: one for the scheduler, and `workers` more."""

    source: str = Field(examples=["local"])
    workers: int = Field(2, ge=1, le=MACHINES)
    """Number of machines in addition to the scheduler's."""
    scheduler_works: bool = False
    """`true` also runs workers on the scheduler's machine."""

    @property
    def scheduler_name(self) -> str:
        return "scheduler"

    @property
    def worker_names(self) -> tuple[str, ...]:
        return tuple(f"worker-{number}" for number in range(1, self.workers + 1))

    @property
    def machine_names(self) -> tuple[str, ...]:
        return ("scheduler", *self.worker_names)


Amount = Annotated[float, BeforeValidator(valid_amount), Field(strict=False, allow_inf_nan=False)]
# Dask resources of each worker of a group.
Resources = dict[Annotated[str, AfterValidator(valid_resource)], Annotated[Amount, Field(gt=0)]]
Prices = dict[str, Annotated[Amount, Field(ge=0, le=100_000)]]


def resources_argument(resources: Mapping[str, float]) -> str:
    """The argument of `dask worker --resources`, e.g. "GPU=1 memory=10"."""
    return " ".join(f"{name}={amount:.15g}" for name, amount in resources.items())


class Limits(Section):
    """Limits on idle time and on cost."""

    idle: Annotated[str, AfterValidator(valid_duration)] | None = Field(None, examples=["30m"])
    """Workers stop after this long without a task, so they no longer cost anything. Results in their memory are lost.
    The next `up` or `connect` starts them again. Not available with `machines.source: existing`.
    """
    hourly_cost: Annotated[Amount, Field(gt=0)] | None = Field(None, examples=[5.0])
    """The highest cost per hour in US dollars. If the estimate exceeds it, `up` fails before it creates anything.
    Google Cloud only.
    """


def line(place: Place, text: str) -> str:
    return f"{KEY}{dotted(place)}: {text}"


def dotted(place: Place) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)


def format_value(value: object, limit: int | None = 80) -> str:
    text = "an empty value" if value is None else json.dumps(value, ensure_ascii=False)
    return text if limit is None or len(text) < limit else text[: limit - 4] + " ..."


def world_conflicts(lists: Mapping[Place, tuple[str, ...]]) -> Iterator[Conflict]:
    """Lists whose networks together cover too much; `valid_network` has checked each network alone."""
    for place, networks in lists.items():
        if covers_the_world([ipaddress.ip_network(network) for network in networks]):
            yield Conflict(place, WORLD_TOGETHER)


def lock_conflicts(environment: Environment, folder: Path) -> Iterator[Conflict]:
    try:
        lock.read(folder / environment.lock, environment.python)
    except lock.LockError as error:
        for setting, text in error.problems:
            place = ("environment", setting)
            yield Conflict(place, text)


JUPYTER_LOCK = "charts/jupyter.lock"  # packages that Jupyter needs in addition to environment.lock


def jupyter_conflicts(environment: Environment, folder: Path) -> Iterator[Conflict]:
    try:
        locked = lock.read(folder / environment.lock, environment.python)
    except lock.LockError:
        return  # lock_conflicts reports it
    if locked.archive:
        text = "the notebook server's packages cannot be added to an archive; write jupyter: {enabled: false}"
        yield Conflict(("jupyter", "enabled"), text)
        return
    here = locked.packages
    try:
        jupyter = lock.read(folder / JUPYTER_LOCK, environment.python, dask=False).packages
    except lock.LockError as error:
        for setting, text in error.problems:
            place = ("environment", setting)
            yield Conflict(place, f"{text}, or disable Jupyter with jupyter: {{enabled: false}}")
        return
    if other := [name for name in jupyter if here.get(name, jupyter[name]) != jupyter[name]]:
        place = ("environment", "lock")
        text = (
            f"{environment.lock} and {JUPYTER_LOCK} pin different versions of {', '.join(other)}; update both with"
            " `make lock`, or disable Jupyter with jupyter: {enabled: false}"
        )
        yield Conflict(place, text)
