"""Renders the chart with helm, without a cluster."""

import subprocess
from typing import Any

import yaml

from components.kubernetes import chart_values
from daskstack.engine import PROJECT
from rehearsal.programs import kubernetes_programs
from settings import lock

CHART = PROJECT / "charts" / "dask"
LOCKS = {
    "environment": lock.read(PROJECT / "environment.lock", "3.11"),
    "jupyter": lock.read(PROJECT / "charts/jupyter.lock", "3.11", dask=False),
}
NAMES = chart_values.Names("dask-tls-scheduler", "dask-tls-worker", "dask-tls-client", "dask-jupyter-password")


def helm(*words: str, given: dict[str, Any], check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [kubernetes_programs() / "helm", *words, "--values", "-"]
    return subprocess.run(command, input=yaml.safe_dump(given), capture_output=True, text=True, check=check)


def rendered(**given: Any) -> list[dict[str, Any]]:
    """The manifests that the chart renders from these values."""
    done = helm("template", "dask", str(CHART), given={"jupyter": {"passwordSecret": "p"}} | given)
    return [each for each in yaml.safe_load_all(done.stdout) if each]
