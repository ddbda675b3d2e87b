"""Part l: how long many workers take to register, and what they cost the scheduler at rest."""

import shlex
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.figures import Comparison, rounded, spread
from bench.prepare import up
from bench.rig import Rig, inside
from rehearsal.machines import Machine

SIZES = (50, 100, 200, 500, 1000)
LIMIT = 240  # seconds; larger sizes are left out
REST, PROCESSES = 15, 4
FOLDER = Path(__file__).parent
PROGRAM = FOLDER / "simulated_workers.py"
SCRIPT = FOLDER / "registration.sh"
WAYS = ("ours", "bare")


class Turn(NamedTuple):
    seconds: float
    """Until all workers were registered."""
    spent: float
    """The scheduler's processor seconds meanwhile."""
    rest: float
    """The scheduler's processor time afterwards, in percent of one processor."""
    memory: float
    """The scheduler's memory, in MB."""


def measure(rig: Rig, repeats: int) -> dict[str, Any]:
    turns: dict[tuple[str, int], list[Turn]] = {(way, size): [] for way in WAYS for size in SIZES}
    with rig.fleet("register") as fleet:
        machines = fleet.fresh("scheduler")
        up(rig.program("register"), fleet, machines, workers={"memoryLimit": "2 GiB", "min": 1, "max": 1})
        for repeat in range(repeats):
            for size in SIZES:
                # Alternate the order, so that no variant is always first.
                done = {way: turn(machines[0], way, size) for way in WAYS[:: 1 if repeat % 2 == 0 else -1]}
                found = {way: each for way, each in done.items() if each}
                if len(found) < len(WAYS):
                    break
                for way, each in found.items():
                    turns[way, size].append(each)
    complete = {size: [turns[way, size] for way in WAYS] for size in SIZES if len(turns["ours", size]) == repeats}
    return {"comparisons": comparisons(complete), "profiles": {}, "table": table(complete)}


def turn(machine: Machine, way: str, size: int) -> Turn | None:
    """None if the workers do not register within LIMIT."""
    variables = {"WAY": way, "COUNT": size, "PROCESSES": PROCESSES, "LIMIT": LIMIT, "REST": REST}
    variables["PROGRAM"] = PROGRAM.read_text()
    assignments = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in variables.items())
    said = inside(machine, assignments + SCRIPT.read_text()).split()
    print(f"{size} workers, {way}: {' '.join(said)}", flush=True)
    return None if said == ["late"] else Turn(*map(float, said))


def comparisons(complete: dict[int, list[list[Turn]]]) -> dict[str, Comparison]:
    """The largest number of workers: our scheduler against the one without preloads."""
    size = max(complete, default=0)
    if not size:
        return {}
    found = {}
    for what, unit, field in (
        (f"processor time to register {size} workers", "s", "spent"),
        (f"processor time at rest with {size} workers", "%", "rest"),
        (f"memory with {size} workers", "MB", "memory"),
    ):
        found[what] = Comparison(what, "without our preloads", unit, 1.2)
        for pair in zip(*complete[size], strict=True):
            found[what].add(*(getattr(each, field) for each in pair))
    return found


def table(complete: dict[int, list[list[Turn]]]) -> dict[str, Any]:
    columns = ["s until all are registered", "scheduler, processor s", "processor at rest, %", "memory, MB"]
    rows = {}
    for size in SIZES:
        if size in complete:
            ours, _ = complete[size]
            rest = (rounded(median(getattr(each, field) for each in ours)) for field in ("spent", "rest", "memory"))
            rows[str(size)] = [str(spread(each.seconds for each in ours)), *rest]
        else:
            rows[str(size)] = [f"not within {LIMIT} s", "", "", ""]
    return {"what": "workers", "columns": columns, "rows": rows}
