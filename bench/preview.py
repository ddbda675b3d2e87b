"""Part d: time and memory of previews of many machines."""

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.figures import Comparison, rounded, spread
from bench.rig import ADMIN, Rig

SIZES = (50, 200, 1000)
PARTS = ("engine", "program", "plugins")
TICKS = os.sysconf("SC_CLK_TCK")
NETWORK = "198.18.0.0/15"  # reserved for benchmarks (RFC 2544); a preview opens no connection


def measure(rig: Rig, repeats: int) -> dict[str, Any]:
    program = rig.program("preview")
    program.fresh()
    key = subprocess.run(["ssh-keygen", "-y", "-f", rig.key], check=True, capture_output=True, text=True).stdout
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    used: dict[int, list[Used]] = {size: [] for size in SIZES}
    for _ in range(repeats):
        for size in SIZES:
            program.describe(many(size, " ".join(key.split()[:2])))
            use = Used()
            seconds[size].append(program.preview(beside=use.watch).seconds)
            used[size].append(use)

    memory = {size: [sum(use.total("memory").values()) for use in used[size]] for size in SIZES}
    comparisons = [
        growth("time of each further machine", "s", seconds),
        growth("memory of each further machine", "MB", memory),
    ]
    rows = {
        str(size): [
            str(spread(seconds[size])),
            *(rounded(median(use.total("memory")[part] for use in used[size])) for part in PARTS),
            *(rounded(median(use.total("processor")[part] for use in used[size])) for part in PARTS),
        ]
        for size in SIZES
    }
    columns = ["s", *(f"{part}, MB" for part in PARTS), *(f"{part}, processor s" for part in PARTS)]
    return {
        "comparisons": {comparison.what: comparison for comparison in comparisons},
        "table": {"what": "machines", "columns": columns, "rows": rows},
    }


def growth(what: str, unit: str, values: Mapping[int, Sequence[float]]) -> Comparison:
    """The cost of each additional machine among many, compared with few; equal if growth is linear."""
    small, middle, large = SIZES
    result = Comparison(f"{what}, {middle} to {large}", f"{small} to {middle}", unit, 1.1)
    for few, some, many in zip(*(values[size] for size in SIZES), strict=True):
        result.add((many - some) / (large - middle), (some - few) / (middle - small))
    return result


def many(size: int, host_key: str) -> dict[str, Any]:
    addresses = [f"198.18.{number // 250}.{number % 250 + 1}" for number in range(size)]
    hosts = [
        {"name": f"m-{number}", "address": address, "user": ADMIN, "hostKey": host_key}
        for number, address in enumerate(addresses)
    ]
    machines = {"source": "existing", "hosts": hosts, "network": NETWORK}
    return {
        "target": "machines", "machines": machines, "data": {"machine": "m-0"}, "environment": {"source": "wheelhouse"},
    }  # fmt: skip


class Used:
    """The peak memory (MB) and the CPU time (s) of an engine, its program and its plugins."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[str, dict[str, float]]] = {}

    def watch(self, engine: int) -> None:
        """Measures until the engine has exited."""
        while "VmHWM" in read(f"/proc/{engine}/status"):
            for process in family(engine):
                status = dict(line.split(":", 1) for line in read(f"/proc/{process}/status").splitlines())
                times = read(f"/proc/{process}/stat").rpartition(")")[2].split()
                if "VmHWM" in status and times:
                    used = {
                        "memory": int(status["VmHWM"].split()[0]) / 1000,
                        "processor": (int(times[11]) + int(times[12])) / TICKS,
                    }
                    self._seen[process] = (kind(process, engine), used)
            time.sleep(0.05)

    def total(self, what: str) -> dict[str, float]:
        return {part: sum(used[what] for of, used in self._seen.values() if of == part) for part in PARTS}


def kind(process: int, engine: int) -> str:
    if process == engine:
        return "engine"
    return "plugins" if "resource" in read(f"/proc/{process}/cmdline") else "program"


def family(process: int) -> Iterator[int]:
    """A process and its descendants."""
    yield process
    for thread in read_folder(f"/proc/{process}/task"):
        for child in read(f"/proc/{process}/task/{thread}/children").split():
            yield from family(int(child))


def read(path: str) -> str:
    """The contents; empty if the process has just exited."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def read_folder(path: str) -> list[str]:
    try:
        return [each.name for each in Path(path).iterdir()]
    except OSError:
        return []
