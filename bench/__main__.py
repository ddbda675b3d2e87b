"""Runs the bench: python -m bench [--only a,c] [--repeats 3]; `make bench` installs what it needs first."""

import argparse
import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from bench import (
    compute,
    connect,
    gke,
    job,
    kube_cluster,
    kubernetes,
    mount,
    prepare,
    preview,
    registration,
    report,
    wake,
)
from bench.rig import BenchError, Rig, rig

PARTS = "abcdefghijklm"


def on_machines(place: Rig, parts: list[str], repeats: int) -> None:
    if prepared := [part for part in parts if part in "abc"]:
        with told(f"parts {', '.join(prepared)}"):
            report.keep(prepare.measure(place, prepared, repeats))
    for part, module in (("d", preview), ("e", mount), ("f", job), ("j", connect), ("l", registration), ("m", wake)):
        if part in parts:
            with told(f"part {part}"):
                report.keep({part: module.measure(place, repeats)})


@contextmanager
def told(what: str) -> Generator[None]:
    started = time.monotonic()
    print(what, flush=True)
    yield
    print(f"{what}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, such as a,c")
    parser.add_argument("--repeats", type=int, default=3)
    wanted = parser.parse_args()
    parts = wanted.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    os.environ["PATH"] += f"{os.pathsep}/usr/sbin{os.pathsep}/sbin"
    if set(parts) - set("ghik"):
        with rig() as place:
            on_machines(place, parts, wanted.repeats)
    for part, module in (("g", kubernetes), ("h", gke), ("i", compute), ("k", kube_cluster)):
        if part in parts:
            with told(f"part {part}"):
                report.keep({part: module.measure(wanted.repeats)})
    print(f"the results are in {report.RESULTS.relative_to(Path.cwd())}")


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
