"""What targets have in common: checks of single values, and sections that read the same in each."""

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict
from pydantic.alias_generators import to_camel

from settings import lock

KEY = "dask:cluster"
Place = tuple[str | int, ...]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Conflict(NamedTuple):
    """Settings that cannot be true together: where that is said, and the rest of the sentence."""

    place: Place
    text: str


# Checks of single values: each returns its argument or raises ValueError with the rest of a sentence.


def is_world(networks: list[Network]) -> bool:
    """Whether the networks hold half or more of the addresses in use: of IPv4's, or of IPv6's 2000::/3."""
    for version, half in (4, 2**31), (6, 2**124):
        members = ipaddress.collapse_addresses(network for network in networks if network.version == version)
        if sum(network.num_addresses for network in members) >= half:
            return True
    return False


def valid_network(text: str) -> str:
    try:
        if "%" in text:
            raise ValueError("Python takes any text for an interface")
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text} is not a network; write an address and a prefix length, e.g. 203.0.113.7/32"
        ) from None
    if is_world([network]):
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


def valid_memory(text: str) -> str:
    number = re.fullmatch(r"(\d+(?:\.\d+)?) *(?:[kmgtp]i?b?|b)", text, re.IGNORECASE | re.ASCII)
    if not number or not 10**6 <= memory(text) <= 2**50:
        raise ValueError(f'"{text}" is not an amount of memory, 1 MB to 1 PiB; write one with its unit, e.g. "2 GiB"')
    return text


UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15} | {
    f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("kmgtp", 1)
}


def memory(text: str) -> int:
    """An amount of memory in whole bytes: Dask's "2 GiB" is 2Gi to Kubernetes, its "2 GB" 2G."""
    number = text.rstrip("BbIiKkMmGgTtPp ")
    unit = text[len(number) :].strip().lower().removesuffix("b")
    return int(Decimal(number) * UNITS[unit])


def valid_amount(found: object) -> object:
    if isinstance(found, bool):
        raise ValueError(f"{shown(found)} is not a number; write e.g. 0.5")
    return found


# What gives everybody who reaches a dashboard more than a look: dashboards have no login.
OPEN_ARGUMENTS = {"--(no-)?jupyter": "leave it out: everyone who reaches the dashboard could run code"}
OPEN_CONFIG = {
    r"distributed\.(scheduler|worker)\.http\.routes": (
        "leave it out: dashboards have no login, and some routes act on the cluster"
    )
}


def valid_argument(refused: Mapping[str, str], word: str) -> str:
    flag = re.split(r"[=\s]", word)[0]
    for pattern, remedy in refused.items():
        if re.fullmatch(pattern, flag):
            raise ValueError(f"{flag} is set by the cluster; {remedy}")
    if not word.isprintable() or not re.match(r"-[\w-]+(=|$)|[^-]", word):
        raise ValueError(f'{word!r} is not one word of a command line; write e.g. ["--preload", "my.module"]')
    return word


# Variables by which containers find what the cluster gives them.
_VARIABLES = (
    r"PATH|HOME|POD_NAME|RESTART|IDLE_\w+|KUBERNETES_\w+|JUPYTER_(TOKEN|NO_CONFIG|CONFIG_\w+)|PYTHONPYCACHEPREFIX"
    r"|DASK_((ROOT_)?CONFIG|INTERNAL_INHERIT_CONFIG|SCHEDULER_ADDRESS)"
)
# Those that Dask reads as settings of its encryption, or as whole sections with these in them.
_ENCRYPTION = r"distributed|distributed\.comm|(distributed\.comm\.)?(default-scheme|require-encryption|tls(\..*)?)"


def valid_variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name):
        raise ValueError(f"{shown(name)} is not a variable's name; write e.g. OMP_NUM_THREADS")
    path = name.removeprefix("DASK_").lower().replace("__", ".").replace("_", "-")
    if name.startswith("DASK_") and re.fullmatch(_ENCRYPTION, path):
        raise ValueError(f"{name} is about encryption, which the cluster sets; use dask.tls")
    if re.fullmatch(_VARIABLES, name):
        raise ValueError(f"{name} is set by the cluster; leave it out")
    return name


def valid_python(found: object) -> object:
    if not isinstance(found, str) or not re.fullmatch(r"3\.(0|[1-9][0-9]?)", found):
        raise ValueError(
            f'{shown(found)} is not a minor version in quotes; write e.g. "3.11"'
            " (without quotes YAML reads 3.10 as 3.1)"
        )
    return found


SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def valid_duration(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,4}[smhd]", text) or seconds(text) < 60:
        raise ValueError(f"{text!r} is not a duration of a minute or more; write e.g. 30m or 2h")
    return text


def seconds(duration: str) -> int:
    return int(duration[:-1]) * SECONDS[duration[-1]]


def flat(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        name = prefix + key.replace("_", "-")  # to Dask both are one
        if value and isinstance(value, dict):
            yield from flat(value, name + ".")
        else:
            yield name


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, alias_generator=to_camel, use_attribute_docstrings=True
    )


Listed = Strict(False)  # strict pydantic takes no list for a tuple, and a tuple stays as it is
Networks = Annotated[tuple[Annotated[str, AfterValidator(valid_network)], ...], Listed]


class Environment(Section):
    """The Python packages of every process. `lock` is relative to the project folder."""

    lock: str = "environment.lock"
    """The lock of Python packages: requirements with hashes, made by `make lock`; relative to the project folder. Every
    package needs a wheel, because nothing is built on the cluster.
    """
    python: Annotated[str, BeforeValidator(valid_python)] = "3.11"
    """Python's minor version, the same in every process and in the notebook; in quotes."""


class Credentials(Section):
    """A higher `renewal` than the last one replaces every key and certificate."""

    renewal: int = Field(1, ge=1)
    """Raise it to replace all keys and certificates, those of the authority too, while Dask keeps running. The former
    ones are rejected within minutes, so connect again. Certificates of machines renew themselves; `up` warns sixty
    days before yours end.
    """


class Numbered(Section):
    """Machines that the stack makes: one for the scheduler and `workers` more; their network is a /24."""

    source: str = Field(examples=["local"])
    workers: int = Field(2, ge=1, le=240)
    """Machines besides the scheduler's."""
    scheduler_works: bool = False
    """The scheduler's machine runs workers too."""

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
Prices = dict[str, Annotated[Amount, Field(ge=0, le=100_000)]]


class Limits(Section):
    """What ends by itself, and what is refused; `hourly_cost` is in US dollars, as the program estimates it."""

    idle: Annotated[str, AfterValidator(valid_duration)] | None = Field(None, examples=["30m"])
    """After this long without a task the workers stop, and what they cost ends. Results in their memory are lost. The
    next `up` or `connect` starts them again. Not for machines that you have.
    """
    hourly_cost: Annotated[Amount, Field(gt=0)] | None = Field(None, examples=[5.0])
    """US dollars. A stack that can cost more per hour is refused before anything is created. Google Cloud only."""


def line(place: Place, text: str) -> str:
    return f"{KEY}{dotted(place)}: {text}"


def dotted(place: Place) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)


def shown(value: object, limit: int | None = 80) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if limit is None or len(text) < limit else text[: limit - 4] + " ..."


def not_the_world(lists: Mapping[Place, tuple[str, ...]]) -> Iterator[Conflict]:
    """Lists of networks that cover too much together; each network alone has been judged already."""
    for place, networks in lists.items():
        if is_world([ipaddress.ip_network(network) for network in networks]):
            text = "these cover half of the world or more together; name only the networks that need it"
            yield Conflict(place, text)


def lock_conflicts(environment: Environment, folder: Path) -> Iterator[Conflict]:
    try:
        lock.read(folder / environment.lock, environment.python)
    except lock.LockError as error:
        for setting, text in error.problems:
            place = ("environment", setting)
            yield Conflict(place, text)


def config_conflicts(config: dict[str, Any], refused: Mapping[str, str]) -> Iterator[Conflict]:
    """Keys of Dask's configuration that the cluster sets itself; `refused` has patterns with remedies."""
    for name in flat(config):
        for pattern, remedy in refused.items():
            if re.fullmatch(pattern, name):
                yield Conflict(("dask", "config", name), f"is set by the cluster; {remedy}")
