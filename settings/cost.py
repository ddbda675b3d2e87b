"""Estimates the cost of a stack in Google Cloud from its settings and prices.yaml."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import yaml

from settings.common import Conflict, Limits, Place, dotted

HOURS = 730  # per month, as in Google's price lists
LOCAL_SSD = 375  # GB
SYSTEM_CPU, SYSTEM_MEMORY = 0.5, 1.0  # CPUs and GiB that Kubernetes' own pods use on each node


@cache
def prices() -> dict[str, Any]:
    return yaml.safe_load((Path(__file__).parent / "prices.yaml").read_text())


def aged(today: date) -> str:
    """A warning if the prices are more than a year old, otherwise an empty string."""
    year, month = map(int, prices()["asOf"].split("-"))
    if (today.year - year) * 12 + today.month - month <= 12:
        return ""
    return (
        f"settings/prices.yaml has prices of {prices()['asOf']}, more than a year old: compare them with Google's"
        " calculator, https://cloud.google.com/products/calculator, and write changed ones as `prices`"
    )


class MachineType(NamedTuple):
    cpus: int
    memory: float
    """GB"""


class Kind(Protocol):
    """A machine type with the size of its disk in GB. It may also have `spot`, `accelerators` and `local_ssds`."""

    @property
    def machine(self) -> str: ...

    @property
    def disk(self) -> int: ...


@dataclass(frozen=True)
class Item:
    """An item of the bill in US dollars per hour; None if the price is unknown."""

    name: str
    up: float | None
    idle: float | None
    most: float | None = None
    """The cost of all machines that an autoscaler may start; by default the same as `up`."""

    def __post_init__(self) -> None:
        for name in ("up", "idle", "most"):
            if (value := getattr(self, name)) is not None and math.isnan(value):
                object.__setattr__(self, name, None)

    @property
    def maximum(self) -> float | None:
        return self.up if self.most is None else self.most


def machine(name: str) -> MachineType | None:
    """The size of a machine type, or None if prices.yaml does not cover it."""
    if built := prices()["builtIn"].get(name):
        return MachineType(*built[:2])
    found = re.fullmatch(r"(\w+)-(\w+)-(\d+)", name)
    if not found:
        return None
    family, shape, cpus = found.groups()
    shapes = prices()["shapes"]
    each = shapes.get(f"{family}-{shape}", shapes.get(shape))
    if not each or family not in prices()["families"]:
        return None
    memory = int(cpus) * each
    return MachineType(int(cpus), math.floor(memory) if family in prices()["whole"] else memory)


def correct_spelling(name: str) -> str | None:
    """The most similar machine type if `name` does not exist in its family, or None if the family is unknown."""
    found = re.fullmatch(r"(\w+)-(\w+)-\d+", name)
    sizes = prices()["sizes"]
    if not found or found[1] not in sizes or found[2] in ("megamem", "ultramem"):
        return None
    shapes = ("standard", "highmem", "highcpu")
    known = [f"{family}-{shape}-{size}" for family in sizes for shape in shapes for size in sizes[family]]
    return None if name in known else difflib.get_close_matches(name, known, 1, 0)[0]


def machine_conflicts(place: Place, kind: Kind, own: Mapping[str, float]) -> Iterator[Conflict]:
    """Machine types and GPUs that Google does not offer. A machine type in `own`, the user's prices, is accepted."""
    if kind.machine not in own and (nearest := correct_spelling(kind.machine)):
        here = (*place, "machine")
        yield Conflict(here, f"{kind.machine} is not a machine type of Google's; did you mean {nearest}?")
    yield from _local_ssd_conflicts(place, kind)
    yield from _gpu_conflicts(place, kind)


def of_all_entries(found: Conflict) -> Conflict:
    """GPUs and local SSDs are settings of all machines, not of the entries of their `capacity`."""
    if "capacity" not in found.place or found.place[-1] == "machine":
        return found
    index = found.place.index("capacity")
    return Conflict((*found.place[:index], *found.place[index + 2 :]), found.text)


def _gpu_conflicts(place: Place, kind: Kind) -> Iterator[Conflict]:
    """GPUs that the machine type cannot have, or that differ from those that it always has."""
    accelerators, built = getattr(kind, "accelerators", None), prices()["builtIn"].get(kind.machine)
    machine_setting = dotted((*place, "machine"))[1:]
    if built and not hasattr(kind, "accelerators"):
        yield Conflict(
            (*place, "machine"), f"{kind.machine} has GPUs, which only workers use; write e.g. e2-standard-2"
        )
    elif built and (not accelerators or [accelerators.type, accelerators.count] != built[3:]):
        text = f"{kind.machine} always has {built[4]} {built[3]}; write {{type: {built[3]}, count: {built[4]}}}"
        yield Conflict((*place, "accelerators"), text)
    if accelerators is None or built:
        return
    if accelerators.count & (accelerators.count - 1):
        here = (*place, "accelerators", "count")
        yield Conflict(here, f"{accelerators.count} is not a possible number of GPUs; write 1, 2, 4, 8 or 16")
    here = (*place, "accelerators", "type")
    family = kind.machine.split("-")[0]
    own = next((name for name, each in prices()["builtIn"].items() if each[3] == accelerators.type), None)
    if own and family in prices()["families"]:
        text = f"{accelerators.type} cannot be attached to {kind.machine}; write e.g. {machine_setting}: {own}"
        yield Conflict(here, text)
    elif accelerators.type in prices()["accelerators"] and family in prices()["families"] and family != "n1":
        text = (
            f"{accelerators.type} cannot be attached to {kind.machine}, only to n1 machines; write e.g."
            f" {machine_setting}: n1-standard-4"
        )
        yield Conflict(here, text)


def _local_ssd_conflicts(place: Place, kind: Kind) -> Iterator[Conflict]:
    """A number of local SSDs that the machine type cannot have."""
    count, here = getattr(kind, "local_ssds", 0), (*place, "localSsds")
    if not count:
        return
    possible = prices()["localSsds"].get(kind.machine.split("-")[0])
    if kind.machine.endswith("-lssd"):
        text = (
            f"{kind.machine} has its own local SSDs, which are not supported; write another machine type, or remove it"
        )
        yield Conflict(here, text)
    elif possible == {}:
        machine_setting = dotted((*place, "machine"))[1:]
        text = f"{kind.machine} cannot have local SSDs; remove it, or write e.g. {machine_setting}: n1-standard-4"
        yield Conflict(here, text)
    elif possible and (size := machine(kind.machine)):
        numbers = next((found for cpus, found in possible.items() if size.cpus <= cpus), None)
        if numbers and count not in numbers:
            known = ", ".join(map(str, numbers))
            yield Conflict(here, f"{kind.machine} cannot have {count} local SSDs; write one of {known}")


def others(own: Mapping[str, float], region: str) -> dict[str, float]:
    """Prices of disks and services by name; NaN for disks in a region that is not known here."""
    known = prices()["others"]
    disks = ("pd-standard", "pd-balanced", "pd-ssd", "local-ssd", "filestore")
    return {name: price * (factor(region, 2) if name in disks else 1) for name, price in known.items()} | dict(own)


def factor(region: str, column: int) -> float:
    return prices()["regions"].get(region, [math.nan] * 3)[column]


def family_factor(machine: str, region: str) -> float:
    return factor(region, int(machine.split("-")[0] in prices()["later"]))


def disk_type(machine: str) -> str:
    """The type of a machine's boot disk."""
    return "hyperdisk-balanced" if machine.split("-")[0] in prices()["hyperdisk"] else "pd-balanced"


def machine_price(name: str, spot: bool, own: Mapping[str, float], region: str = "us-central1") -> float | None:
    size = machine(name)
    if name in own or size is None:
        return own.get(name)
    if built := prices()["builtIn"].get(name):
        price = built[2]
    else:
        cpu, gb = prices()["families"][name.split("-")[0]]
        price = size.cpus * cpu + size.memory * gb
    return price * family_factor(name, region) * (prices()["spot"] if spot else 1)


def allocatable(size: MachineType) -> tuple[float, float]:
    """CPUs and GiB of a GKE node that remain for our pods, after Google's reservations and the system's pods."""
    reserved = sum(share for number, share in zip(range(size.cpus), (0.06, 0.01, 0.005, 0.005), strict=False))
    reserved += max(0, size.cpus - 4) * 0.0025
    reserved_memory, rest = 0.1, size.memory
    for step, share in ((4, 0.25), (4, 0.2), (8, 0.1), (112, 0.06), (math.inf, 0.02)):
        reserved_memory += min(rest, step) * share
        rest = max(0.0, rest - step)
    return size.cpus - reserved - SYSTEM_CPU, size.memory - reserved_memory - SYSTEM_MEMORY


def per_node(cpu: float, gib: float, size: MachineType | None, gpus: int | None = None) -> int:
    """The number of pods of `cpu` CPUs and `gib` GiB that fit on a node.

    If the node's size is unknown, each pod gets its own node. If nodes have `gpus`, each pod uses one GPU.
    """
    if size is None:
        return 1
    cpus, memory = allocatable(size)
    fitting = min(math.floor(cpus / cpu), math.floor(memory / gib))
    return max(0, min(fitting, gpus) if gpus else fitting)


def pool(
    name: str,
    kind: Kind,
    up: int,
    idle: int,
    own: Mapping[str, float],
    region: str,
    *,
    disks: int | None = None,
    most: int | None = None,
) -> Iterator[Item]:
    """The cost of machines of one kind, with their disks and GPUs.

    `up` machines run while workers run, `idle` machines while none do, and at most `most`. `disks` is the number of
    disks that remain while idle; by default each running machine has one.
    """
    spot = getattr(kind, "spot", False)
    price = machine_price(kind.machine, spot, own, region)
    known = others(own, region)
    disk = kind.disk * known.get(disk_type(kind.machine), math.nan) / HOURS

    def item(name: str, each: float | None, idle: int = idle, up: int = up) -> Item:
        return Item(name, *(None if each is None else count * each for count in (up, idle, most or up)))

    yield item(f"{up} {kind.machine}{' spot' if spot else ''} for {name}", price)
    of = "" if disk_type(kind.machine) == "pd-balanced" else f" of {disk_type(kind.machine)}"
    yield item(f"their disks, {kind.disk} GB{of} each", disk, idle if disks is None else disks, max(up, disks or 0))
    if accelerators := getattr(kind, "accelerators", None):
        each = own.get(accelerators.type)
        if each is None and (listed := prices()["accelerators"].get(accelerators.type)):
            each = listed * family_factor(kind.machine, region) * (prices()["spot"] if spot else 1)
        gpus = f"their GPUs, {accelerators.count} {accelerators.type} each"
        yield item(gpus, None if each is None else accelerators.count * each)
    if ssds := getattr(kind, "local_ssds", 0):
        each = ssds * LOCAL_SSD * known["local-ssd"] / HOURS
        yield item(f"their local SSDs, {ssds} of {LOCAL_SSD} GB each", each)


def fallbacks(usual: list[Item], others: Mapping[str, list[Item]]) -> Iterator[Item]:
    """What the most expensive of other kinds of machines adds to the largest cost of the usual ones."""
    unknown = {item.name for items in others.values() for item in items if item.up is None}
    yield from (Item(name, None, None) for name in sorted(unknown - {item.name for item in usual}))
    more = {name: maximum(items) - maximum(usual) for name, items in others.items()}
    dearest = max(more, key=more.__getitem__, default="")
    if dearest and more[dearest] > 0:
        yield Item(f"more if all are {dearest}", 0, 0, more[dearest])


def total(items: list[Item]) -> tuple[float, float]:
    """Dollars per hour while workers run, and while none do. Unknown prices count as zero."""
    return sum(item.up or 0 for item in items), sum(item.idle or 0 for item in items)


def maximum(items: list[Item]) -> float:
    """Dollars per hour with all machines that autoscalers may start. Unknown prices count as zero."""
    return sum(item.maximum or 0 for item in items)


def conflicts(limits: Limits, bill: list[Item], prices_: Mapping[str, float], machines: set[str]) -> Iterator[Conflict]:
    """Entries of `prices` that the stack does not use, and a stack that exceeds its cost limit."""
    names = machines | set(prices()["others"]) | set(prices()["accelerators"]) | {"hyperdisk-balanced"}
    for name in prices_.keys() - names:
        place: Place = ("prices", name)
        yield Conflict(place, f"unknown name; the names here are {', '.join(sorted(names))}")
    if limits.hourly_cost is None:
        return
    place = ("limits", "hourlyCost")
    if unknown := [item.name for item in bill if item.up is None]:
        text = (
            f"cannot be enforced, because the price of {unknown[0]} is unknown; add it to prices, in dollars an hour"
            " (a month for one GB of a disk)"
        )
        yield Conflict(place, text)
    elif (most := maximum(bill)) > limits.hourly_cost:
        text = (
            f"{limits.hourly_cost:g} is less than the stack can cost, about {most:.2f} dollars an hour with all"
            f" machines that it may start; write a higher limit, or allow fewer machines:\n{table(bill)}"
        )
        yield Conflict(place, text)


def table(items: list[Item]) -> str:
    """A table for display: each item, the total, and the total per month."""
    sums = (*total(items), maximum(items))
    rows = [(item.name, item.up, item.idle, item.maximum) for item in items] + [("total, about", *sums)]
    lines = [f"{'US dollars per hour':<44} {'working':>8} {'idle':>8} {'at most':>8}"]
    for name, *amounts in rows:
        lines.append(f"{name:<44} " + " ".join("unknown ".rjust(8) if a is None else f"{a:8.3f}" for a in amounts))
    lines.append(f"{'total per month, about':<44} " + " ".join(f"{round(amount * HOURS):>8}" for amount in sums))
    lines.append(f"list prices of {prices()['asOf']}, excluding network traffic")
    if unknown := [item.name for item in items if item.up is None]:
        lines.append(f"the totals do not include: {'; '.join(unknown)}")
    return "\n".join(line.rstrip() for line in lines)
