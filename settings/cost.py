"""About what a stack costs: pure functions of its settings and of prices.yaml."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import yaml

from settings.common import Conflict, Limits, Place

HOURS = 730  # of a month, as Google counts
SYSTEM_CPU, SYSTEM_MEMORY = 0.5, 1.0  # what Kubernetes' own pods take of each node: processors, GiB


@cache
def prices() -> dict[str, Any]:
    return yaml.safe_load((Path(__file__).parent / "prices.yaml").read_text())


class MachineType(NamedTuple):
    cpus: int
    memory: float
    """GB"""


class Kind(Protocol):
    """Of machines: a type, and a disk's size in GB; maybe `spot` and `accelerators`."""

    machine: str
    disk: int


@dataclass(frozen=True)
class Item:
    """A part of the bill, in US dollars per hour; None where the price is not known."""

    name: str
    up: float | None
    idle: float | None
    most: float | None = None
    """With as many machines as an autoscaler may start; without it as at work."""

    @property
    def worst(self) -> float | None:
        return self.up if self.most is None else self.most


def machine(name: str) -> MachineType | None:
    """A machine type's size, None where it is not one that prices.yaml can tell."""
    found = re.fullmatch(r"(\w+)-(\w+)-(\d+)", name)
    if not found:
        return None
    family, shape, cpus = found.groups()
    shapes = prices()["shapes"]
    each = shapes.get(f"{family}-{shape}", shapes.get(shape))
    return MachineType(int(cpus), int(cpus) * each) if each and family in prices()["families"] else None


def misspelt(name: str) -> str | None:
    """The nearest machine type where Google has none of this name, as far as prices.yaml knows its family."""
    found = re.fullmatch(r"(\w+)-(\w+)-\d+", name)
    sizes = prices()["sizes"]
    if not found or found[1] not in sizes or found[2] in ("megamem", "ultramem"):
        return None
    shapes = ("standard", "highmem", "highcpu")
    known = [f"{family}-{shape}-{size}" for family in sizes for shape in shapes for size in sizes[family]]
    return None if name in known else difflib.get_close_matches(name, known, 1, 0)[0]


def machine_conflicts(place: Place, kind: Kind, own: Mapping[str, float]) -> Iterator[Conflict]:
    """Machine types and GPUs that Google does not have; what has a price of the user's `own` is left alone."""
    if kind.machine not in own and (nearest := misspelt(kind.machine)):
        here = (*place, "machine")
        yield Conflict(here, f"Google has no {kind.machine}; did you mean {nearest}?")
    accelerators = getattr(kind, "accelerators", None)
    if accelerators is None:
        return
    if accelerators.count & (accelerators.count - 1):
        here = (*place, "accelerators", "count")
        yield Conflict(here, f"a machine has 1, 2, 4, 8 or 16 GPUs, not {accelerators.count}; write one of these")
    family = kind.machine.split("-")[0]
    if accelerators.type in prices()["accelerators"] and family in prices()["families"] and family != "n1":
        here = (*place, "accelerators", "type")
        text = f"{accelerators.type} is for machines of n1, not for {kind.machine}; write e.g. n1-standard-4"
        yield Conflict(here, text)


def machine_price(name: str, spot: bool, own: Mapping[str, float]) -> float | None:
    size = machine(name)
    if name in own or size is None:
        return own.get(name)
    cpu, gb = prices()["families"][name.split("-")[0]]
    return (size.cpus * cpu + size.memory * gb) * (prices()["spot"] if spot else 1)


def allocatable(size: MachineType) -> tuple[float, float]:
    """Processors and GiB that pods of ours can have of a GKE node: less what Google reserves, and its own pods."""
    reserved = sum(share for number, share in zip(range(size.cpus), (0.06, 0.01, 0.005, 0.005), strict=False))
    reserved += max(0, size.cpus - 4) * 0.0025
    kept, rest = 0.1, size.memory
    for step, share in ((4, 0.25), (4, 0.2), (8, 0.1), (112, 0.06), (math.inf, 0.02)):
        kept += min(rest, step) * share
        rest = max(0.0, rest - step)
    return size.cpus - reserved - SYSTEM_CPU, size.memory - kept - SYSTEM_MEMORY


def nodes(count: int, cpu: float, gib: float, size: MachineType | None, gpus: int | None = None) -> int | None:
    """Nodes for so many pods of this size: one each where the node's is not known, None where no pod fits.

    Where a node has `gpus`, each pod takes one.
    """
    if size is None:
        return count
    cpus, memory = allocatable(size)
    fitting = min(math.floor(cpus / cpu), math.floor(memory / gib), gpus or count or 1)
    return math.ceil(count / fitting) if fitting > 0 else None


def pool(
    name: str,
    kind: Kind,
    up: int,
    idle: int,
    own: Mapping[str, float],
    *,
    disks: int | None = None,
    most: int | None = None,
) -> Iterator[Item]:
    """Machines of a kind with disks and GPUs: `up` while workers run, `idle` while none does, `most` at the most.

    As many disks stay as `disks` says, where it is given.
    """
    spot = getattr(kind, "spot", False)
    price = machine_price(kind.machine, spot, own)
    disk = kind.disk * own.get("pd-balanced", prices()["others"]["pd-balanced"]) / HOURS

    def item(what: str, each: float | None, idle: int = idle) -> Item:
        return Item(what, *(None if each is None else count * each for count in (up, idle, most or up)))

    yield item(f"{up} {kind.machine}{' spot' if spot else ''} for {name}", price)
    yield item(f"their disks, {kind.disk} GB each", disk, idle if disks is None else disks)
    if accelerators := getattr(kind, "accelerators", None):
        each = own.get(accelerators.type, prices()["accelerators"].get(accelerators.type))
        what = f"their GPUs, {accelerators.count} {accelerators.type} each"
        yield item(what, None if each is None else accelerators.count * each)


def total(items: list[Item]) -> tuple[float, float]:
    """Dollars per hour, while workers run and while none does; what is not known counts as nothing."""
    return sum(item.up or 0 for item in items), sum(item.idle or 0 for item in items)


def worst(items: list[Item]) -> float:
    """Dollars per hour at the most, whatever autoscalers do; what is not known counts as nothing."""
    return sum(item.worst or 0 for item in items)


def conflicts(limits: Limits, bill: list[Item], prices_: Mapping[str, float], machines: set[str]) -> Iterator[Conflict]:
    """Prices of what there is not, and a stack that costs more than it may; `machines` and their parts have prices."""
    names = machines | set(prices()["others"]) | set(prices()["accelerators"])
    for name in prices_.keys() - names:
        place: Place = ("prices", name)
        yield Conflict(place, f"is nothing that this stack pays for; the names are {', '.join(sorted(names))}")
    if limits.hourly_cost is None:
        return
    place = ("limits", "hourlyCost")
    if unknown := [item.name for item in bill if item.up is None]:
        text = f"cannot be kept, for the price of {unknown[0]} is not known; write it, in dollars an hour, under prices"
        yield Conflict(place, text)
    elif (most := worst(bill)) > limits.hourly_cost:
        text = (
            f"{limits.hourly_cost:g} is less than what the stack can cost, about {most:.2f} dollars an hour with all"
            f" machines that it may start; write more, or allow fewer machines:\n{table(bill)}"
        )
        yield Conflict(place, text)


def table(items: list[Item]) -> str:
    """For people: each part, the sum, and the sum of a month."""
    sums = (*total(items), worst(items))
    rows = [(item.name, item.up, item.idle, item.worst) for item in items] + [("about", *sums)]
    lines = [f"{'US dollars an hour':<44} {'at work':>8} {'idle':>8} {'at most':>8}"]
    for name, *amounts in rows:
        lines.append(f"{name:<44} " + " ".join("unknown ".rjust(8) if a is None else f"{a:8.3f}" for a in amounts))
    lines.append(f"{'a month of it':<44} " + " ".join(f"{round(amount * HOURS):>8}" for amount in sums))
    return "\n".join(line.rstrip() for line in lines) + f"\nlist prices of {prices()['asOf']}, without traffic"
