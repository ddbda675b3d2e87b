"""Part i: `up` of rehearsed Compute Engine machines, compared with the same number of local machines."""

import tempfile
from pathlib import Path
from typing import Any

import yaml

from bench.figures import Comparison
from bench.rig import run, ssh_connections
from daskstack.engine import PROJECT
from rehearsal.compute import bridge
from rehearsal.machines import Machine
from tools.rehearse import KEY, Rehearsal

SIZES = (1, 4)  # workers in addition to the scheduler's machine
GOOGLE = {"source": "compute", "project": "my-project", "zone": "us-central1-a"}


def measure(repeats: int) -> dict[str, Any]:
    comparisons = {n: Comparison(f"{n} workers and the scheduler", "local machines", "s", 1.2) for n in SIZES}
    connections: dict[int, tuple[str, str]] = {}
    for repeat in range(repeats):
        for size, comparison in comparisons.items():
            ways = [(GOOGLE | {"workers": size}), {"source": "local", "workers": size}]
            found = {}
            # Alternate the order, so that no variant is always first.
            for machines in ways[:: 1 if repeat % 2 == 0 else -1]:
                with tempfile.TemporaryDirectory() as folder:
                    found[machines["source"]] = up(Path(folder), machines)
            comparison.add(found["compute"][0], found["local"][0])
            connections[size] = (found["compute"][1], found["local"][1])
    return {
        "comparisons": {each.what: each for each in comparisons.values()},
        "table": {
            "what": "SSH connections of each machine, the scheduler's first",
            "columns": ["rehearsed", "local"],
            "rows": {comparisons[size].what: list(counts) for size, counts in connections.items()},
        },
    }


def up(folder: Path, machines: dict[str, Any]) -> tuple[float, str]:
    """Seconds of the first `up`, and the number of SSH connections to each machine."""
    cloud = machines["source"] == "compute"
    trial = Rehearsal("vms", folder)
    trial.environ["XDG_DATA_HOME"] = str(folder)
    config = {"target": "machines", "machines": machines, "firewall": {"ssh": ["203.0.113.7/32"]}}
    config["jupyter"] = {"enabled": False}
    if cloud:
        trial.start({"config": {KEY: config}})
    else:
        trial.settings.write_text(yaml.safe_dump({"config": {KEY: config}}))
    trial.pulumi("stack", "select", "--create")
    try:
        words = ["--yes", "--skip-preview", "--stack", trial.stack, "--config-file", str(trial.settings)]
        seconds = run(["pulumi", "--cwd", PROJECT, "up", *words], env=trial.environ).seconds
        names = ["scheduler", *(f"worker-{number + 1}" for number in range(machines["workers"]))]
        place = folder / "machines" if cloud else folder / "daskstack" / "machines" / trial.stack
        prefix = f"dask-{trial.stack}-" if cloud else ""
        found = [Machine(prefix + name, "", "", "", bridge(place), place / name, folder) for name in names]
        return seconds, " ".join(str(ssh_connections([machine])) for machine in found)
    finally:
        trial.destroy()
        if cloud:
            trial.down()
