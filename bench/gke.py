"""Part h: the entire `up` of a rehearsed GKE stack, compared with its phases by hand."""

import tempfile
import time
from pathlib import Path
from typing import Any

from bench.figures import Comparison
from bench.kubernetes import FEW, ByHand, config
from bench.rig import run
from daskstack.engine import PROJECT
from tools.rehearse import KEY, Rehearsal

CLUSTER = {"source": "gke", "project": "my-project", "location": "us-central1-a"}


def measure(repeats: int) -> dict[str, Any]:
    whole = Comparison("from nothing to the check's table", "the Kubernetes, helm, and the check by hand", "s", 1.2)
    for repeat in range(repeats):
        seconds = {}
        # Alternate the order, so that no variant is always first.
        for way in (by_up, by_hand)[:: 1 if repeat % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                seconds[way] = way(Path(folder))
        whole.add(seconds[by_up], seconds[by_hand])
    return {"comparisons": {whole.what: whole}}


def by_up(folder: Path) -> float:
    """Seconds of an `up` that creates the cluster in the rehearsed Google Cloud, and everything in it."""
    trial, told = Rehearsal("gke", folder), config(FEW)
    told["config"][KEY]["cluster"] = CLUSTER
    trial.start(told)
    trial.pulumi("stack", "select", "--create")
    try:
        words = ["--yes", "--skip-preview", "--stack", trial.stack, "--config-file", str(trial.settings)]
        seconds = run(["pulumi", "--cwd", PROJECT, "up", *words], env=trial.environ).seconds
        trial.destroy()
        return seconds
    finally:
        trial.kubernetes("down")


def by_hand(folder: Path) -> float:
    trial = Rehearsal("kubernetes", folder)
    start = time.monotonic()
    try:
        trial.start(config(FEW))
        started = time.monotonic() - start
        return started + ByHand(trial).make(FEW)
    finally:
        trial.kubernetes("down")
