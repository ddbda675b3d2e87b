"""Part e: files through the shared directory, and over plain SSH between the same two machines."""

import os
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from bench.figures import Comparison
from bench.prepare import WITHOUT, up
from bench.rig import Rig, inside
from rehearsal.machines import Machine

SCRIPT = Path(__file__).with_suffix(".sh")
MEGABYTES = 512
COUNT = 1000
KERNEL = "2"  # the parent of its threads, whose names change
TICKS = os.sysconf("SC_CLK_TCK")


def measure(rig: Rig, repeats: int) -> dict[str, Any]:
    with rig.fleet("mount") as fleet:
        head, worker = fleet.fresh("scheduler", "worker-1")
        worker.make_read_ahead_writable()
        up(rig.program("mount"), fleet, [head, worker], *WITHOUT)
        return _measure(head, worker, repeats)


def _measure(head: Machine, worker: Machine, repeats: int) -> dict[str, Any]:
    profiles = {}
    comparisons = {
        "big_write": Comparison(f"{MEGABYTES} MiB written", "`ssh cat`", "MiB/s", 0.9, more=True),
        "big_read": Comparison(f"{MEGABYTES} MiB read", "`ssh cat`", "MiB/s", 0.9, more=True),
        "small_write": Comparison(f"{COUNT} files of 4 KB written", "tar over SSH", "files/s", None, more=True),
        "small_read": Comparison(f"{COUNT} files of 4 KB read", "tar over SSH", "files/s", None, more=True),
    }

    def run(action: str) -> float:
        variables = {"ACTION": action, "HEAD": head.address, "MEGABYTES": MEGABYTES, "COUNT": COUNT}
        assignments = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in variables.items())
        return float(inside(worker, assignments + SCRIPT.read_text()))

    for repeat in range(repeats):
        run("prepare")
        for name, comparison in comparisons.items():
            rates = {}
            for way in ("raw", "mount") if repeat % 2 == 0 else ("mount", "raw"):
                before = processor_seconds()
                seconds = run(f"{name}_{way}")
                used = processor_seconds() - before
                rates[way] = (MEGABYTES if name.startswith("big") else COUNT) / seconds
                through = "the mount" if way == "mount" else comparison.beside
                profiles[f"{comparison.what} through {through}"] = [
                    *((f"processor time of `{program}`", spent) for program, spent in used.most_common(6)),
                    ("from start to end", seconds),
                ]
            comparison.add(rates["mount"], rates["raw"])
        run("finish")
    return {"comparisons": {comparison.what: comparison for comparison in comparisons.values()}, "profiles": profiles}


def processor_seconds() -> Counter[str]:
    """The CPU seconds of all running programs by name, on this computer and all its machines."""
    result: Counter[str] = Counter()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "stat").read_text()
        except OSError:  # it has just exited
            continue
        name, _, rest = text.partition("(")[2].rpartition(")")
        fields = rest.split()
        if fields[1] == KERNEL:
            continue
        result[name] += (int(fields[11]) + int(fields[12])) / TICKS  # ty: ignore[invalid-assignment]  # Counter can hold floats
    return result
