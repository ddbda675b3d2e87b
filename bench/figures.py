"""What is measured, as numbers: comparisons with their ratios and spread, and where time goes."""

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
    """Three digits that count; whole numbers above that."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass
class Comparison:
    """Ours beside another way, measured in turns: `ours[i]` and `theirs[i]` are of one repeat."""

    what: str
    beside: str
    """What `theirs` is."""
    unit: str
    goal: float | None
    """What the ratio ours / theirs shall be: at most, or for `more` (rates) at least; None where it is only told."""
    more: bool = False
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def add(self, ours: float, theirs: float) -> None:
        self.ours.append(ours)
        self.theirs.append(theirs)

    @property
    def ratio(self) -> Spread:
        """Of each repeat's pair, so that what slows a whole repeat slows both."""
        return spread(ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True))

    @property
    def met(self) -> bool:
        if self.goal is None:
            return True
        return self.ratio.median >= self.goal if self.more else self.ratio.median <= self.goal


class Operation(NamedTuple):
    """Something that ran from `start` to `end`, in seconds."""

    name: str
    start: float
    end: float


def longest_path(operations: Sequence[Operation], whole: float) -> list[tuple[str, float]]:
    """Where the time of a run of `whole` seconds goes: the chain of operations that each waited for the one before
    it, with seconds, and last what the chain does not explain."""
    chain: list[Operation] = []
    left = list(operations)
    while left:
        last = max(left, key=lambda each: each.end)
        chain.insert(0, last)
        left = [each for each in operations if each.end <= last.start]
    busy = [(each.name, each.end - each.start) for each in chain]
    return [*busy, ("between and around them", whole - sum(seconds for _, seconds in busy))]


def slowest(durations: Iterable[tuple[str, float]], count: int) -> list[tuple[str, float]]:
    """The `count` longest, in their order, and last the sum of the others."""
    durations = list(durations)
    limit = sorted((seconds for _, seconds in durations), reverse=True)[:count][-1]
    kept = [each for each in durations if each[1] >= limit][:count]
    return [*kept, ("all else", sum(seconds for _, seconds in durations) - sum(seconds for _, seconds in kept))]
