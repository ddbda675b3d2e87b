"""Arithmetic of measurements: ratios, spreads, and the operations that take most of the time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple


class Spread(NamedTuple):
    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{rounded(self.median)} ({rounded(self.lowest)} to {rounded(self.highest)})"


def spread(values: Iterable[float]) -> Spread:
    values = list(values)
    return Spread(median(values), min(values), max(values))


def rounded(value: float) -> str:
    """A number with three significant digits; a whole number if it is larger."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass
class Comparison:
    """Our program and an alternative, measured in turns: `ours[i]` and `theirs[i]` belong to one repeat."""

    what: str
    beside: str
    """The name of the alternative."""
    unit: str
    goal: float | None
    """The goal for the ratio ours / theirs: at most, or at least for rates (`more`); None if there is no goal."""
    more: bool = False
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def add(self, ours: float, theirs: float) -> None:
        self.ours.append(ours)
        self.theirs.append(theirs)

    @property
    def ratio(self) -> Spread:
        """The ratio of each repeat, because a slow phase of the computer affects both sides of a repeat."""
        return spread(ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True))

    @property
    def met(self) -> bool:
        if self.goal is None:
            return True
        return self.ratio.median >= self.goal if self.more else self.ratio.median <= self.goal


class Operation(NamedTuple):
    """An operation that ran from `start` to `end`, in seconds."""

    name: str
    start: float
    end: float


def longest_path(operations: Sequence[Operation], whole: float) -> list[tuple[str, float]]:
    """The critical path of a run of `whole` seconds: the chain of operations that each waited for the one before it.

    Each with its seconds; the last entry is the time that the chain does not explain.
    """
    chain: list[Operation] = []
    left = list(operations)
    while left:
        last = max(left, key=lambda each: each.end)
        chain.insert(0, last)
        left = [each for each in operations if each.end <= last.start]
    busy = [(each.name, each.end - each.start) for each in chain]
    return [*busy, ("between and around them", whole - sum(seconds for _, seconds in busy))]


def slowest(durations: Iterable[tuple[str, float]], count: int) -> list[tuple[str, float]]:
    """The `count` longest durations in their original order; the last entry is the sum of the others."""
    durations = list(durations)
    limit = sorted((seconds for _, seconds in durations), reverse=True)[:count][-1]
    kept = [each for each in durations if each[1] >= limit][:count]
    return [*kept, ("all else", sum(seconds for _, seconds in durations) - sum(seconds for _, seconds in kept))]
