"""Part g: a release by `up`, compared with helm and kubectl by hand with the same values and check."""

import json
import os
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from distributed import Client

import settings
from bench.figures import Comparison
from bench.job import seconds_of, series
from bench.rig import run
from components.jupyter_password import jupyter_config, jupyter_hash, jupyter_secret
from components.kubernetes.dask_on_kubernetes import CHART, CHECK, PARTS, UV, chart_values
from components.kubernetes.tls import tls_identities
from daskstack import connection
from daskstack.engine import PROJECT
from settings import lock
from settings.common import JUPYTER_LOCK
from settings.kubernetes import KubernetesTarget
from tools.rehearse import KEY, Rehearsal

SMALL = {"cpu": 0.1, "memory": "1 GiB"}
FEW, MANY = 2, 8


def measure(repeats: int) -> dict[str, Any]:
    whole = Comparison("from nothing to the check's table", "helm by hand, and the same check", "s", 1.2)
    grown = Comparison(f"from {FEW} to {MANY} workers", "`kubectl scale`, and the same check", "s", 1.2)
    secure = Comparison("mean by group, TLS", "no TLS", "jobs/min", None, more=True)
    with tempfile.TemporaryDirectory() as folder, _kubernetes(Path(folder)) as trial:
        for repeat in range(repeats):
            ways = {"ours": Ours(trial), "theirs": ByHand(trial)}
            seconds: dict[str, list[float]] = {}
            # Alternate the order, so that no variant is always first.
            for name in list(ways)[:: 1 if repeat % 2 == 0 else -1]:
                way = ways[name]
                seconds[name] = [way.make(FEW), way.make(MANY)]
                way.remove()
            for comparison, ours, theirs in zip((whole, grown), seconds["ours"], seconds["theirs"], strict=True):
                comparison.add(ours, theirs)
        _jobs(trial, secure, repeats)
    return {"comparisons": {each.what: each for each in (whole, grown, secure)}}


@contextmanager
def _kubernetes(folder: Path) -> Generator[Rehearsal]:
    """A rehearsal whose Kubernetes runs until the end."""
    trial = Rehearsal("kubernetes", folder)
    try:
        trial.start(config(FEW))
        yield trial
    finally:
        trial.kubernetes("down")


def config(workers: int, **dask: Any) -> dict[str, Any]:
    cluster = {
        "target": "kubernetes",
        "cluster": {"source": "existing"},
        "workers": {"replicas": workers, **SMALL},
        "scheduler": SMALL,
        "jupyter": SMALL,
        "dask": dask,
    }
    return {"config": {KEY: cluster}}


class Ours:
    def __init__(self, trial: Rehearsal, **dask: Any) -> None:
        self.trial, self.dask = trial, dask
        trial.pulumi("stack", "select", "--create")

    def make(self, workers: int) -> float:
        """Seconds until `up` has ended, including its check."""
        access = yaml.safe_load(self.trial.settings.read_text())["config"][KEY]["cluster"]
        self.trial.set(config(workers, **self.dask), access["kubeconfig"], access["context"])
        words = ["--yes", "--skip-preview", "--stack", self.trial.stack, "--config-file", str(self.trial.settings)]
        return run(["pulumi", "--cwd", PROJECT, "up", *words], env=self.trial.environ).seconds

    def remove(self) -> None:
        self.trial.destroy()


class ByHand:
    """The same objects by kubectl and helm, one command after another, and the check that `up` runs."""

    space = "by-hand"

    def __init__(self, trial: Rehearsal) -> None:
        self.trial = trial
        self.access = yaml.safe_load(trial.settings.read_text())["config"][KEY]["cluster"]
        self.environ = trial.environ | {"KUBECONFIG": self.access["kubeconfig"]}

    def make(self, workers: int) -> float:
        whole = config(workers)["config"][KEY] | {"cluster": self.access}
        cluster = settings.parse(whole, PROJECT)
        assert isinstance(cluster, KubernetesTarget)
        if workers > FEW:
            seconds = self._do(
                "kubectl", "--namespace", self.space, "scale", "deployment/dask-worker", f"--replicas={workers}"
            )
        else:
            seconds = self._install(cluster)
        expect = {
            "address": "tls://dask-scheduler:8786",
            "workers": workers,
            "python": cluster.environment.python,
            "packages": self._locks(cluster)["environment"].packages,
        }
        told = {
            "CLUSTER": json.dumps({"kubeconfig": self.access["kubeconfig"], "context": ""}),
            "NAMESPACE": self.space,
            "RELEASE": "dask",
            "WAIT": "600",
            "CHECK": CHECK.read_text(),
            "EXPECT": json.dumps(expect),
            "NOTEBOOK": "",
        }
        check = [PROJECT / ".venv/bin/python", "-m", "on_this_computer.check_release"]
        return seconds + run(check, env=self.environ | told, cwd=PROJECT).seconds

    @staticmethod
    def _locks(cluster: settings.KubernetesTarget) -> dict[str, lock.Lock]:
        python = cluster.environment.python
        return {
            "environment": lock.read(PROJECT / cluster.environment.lock, python),
            "jupyter": lock.read(PROJECT / JUPYTER_LOCK, python, dask=False),
        }

    def _install(self, cluster: settings.KubernetesTarget) -> float:
        identities, made = tls_identities("by-hand", list(PARTS)), jupyter_secret()
        password = jupyter_config(jupyter_hash(made["password"], made["salt"]))
        secrets = {f"dask-tls-{part}": identities[part] for part in PARTS}
        secrets["dask-jupyter-password"] = {"jupyter_server_config.json": password}
        objects = [
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}
            for name, data in secrets.items()
        ]
        names = chart_values.Names(*(f"dask-tls-{part}" for part in PARTS), password="dask-jupyter-password")
        told = chart_values.own(cluster, names, self._locks(cluster), UV.read_text(), "")
        kept = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        return sum(
            [
                self._do("kubectl", "create", "namespace", self.space),
                self._do("kubectl", "--namespace", self.space, "apply", "--filename", "-", text_in=kept),
                self._do("helm", "install", "dask", f"./{CHART}", "--namespace", self.space, "--values", "-",
                         text_in=yaml.safe_dump(told)),
            ]
        )  # fmt: skip

    def _do(self, *command: str, text_in: str = "") -> float:
        return run(command, env=self.environ, cwd=PROJECT, text_in=text_in).seconds

    def remove(self) -> None:
        self._do("helm", "uninstall", "dask", "--namespace", self.space)
        self._do("kubectl", "delete", "namespace", self.space)


def _jobs(trial: Rehearsal, secure: Comparison, repeats: int) -> None:
    """One after the other on the same Kubernetes, because two clusters at once would share its CPUs."""
    rates: dict[bool, list[float]] = {}
    for tls in (True, False):
        way = Ours(trial, tls=tls)
        way.make(FEW)
        with ExitStack() as stack:
            stack.callback(way.remove)
            os.environ["PATH"] = trial.environ["PATH"]  # for kubectl, which forwards the port
            client: Client = stack.enter_context(connection.Client(trial.client()))
            series(client)  # so that imports are not measured
            rates[tls] = [60 / seconds_of(series, client) for _ in range(repeats)]
    for ours, theirs in zip(rates[True], rates[False], strict=True):
        secure.add(ours, theirs)
