"""Part k: more workers in Kubernetes, with `StackCluster` and with `KubeCluster` of dask-kubernetes."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.connect import write
from bench.figures import Comparison
from bench.kubernetes import SMALL, config
from bench.rig import BenchError, run
from daskstack import StackCluster
from daskstack.client_output import KubernetesAccess, KubernetesClient
from daskstack.engine import PROJECT
from rehearsal.kubernetes.images import INSTALLED, ML
from settings.common import JUPYTER_LOCK
from tools.python_packages import bench_venv
from tools.rehearse import KEY, Rehearsal

FEW, MANY = 2, 6
LIMIT = 180  # seconds for workers to come or go
SPACE = "by-hand"
WORKERS = {"ours": ("dask-kubernetes", "component=worker"), "theirs": (SPACE, "dask.org/component=worker")}
# It answers each number on standard input with the seconds until that many workers were there.
THEIRS = """
import sys, time
from dask_kubernetes.operator import KubeCluster, make_cluster_spec

few, space, image, path = int(sys.argv[1]), *sys.argv[2:]
resources = {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}
spec = make_cluster_spec(
    "plain", image, n_workers=few, resources=resources, env={"PATH": path}, worker_command="dask worker"
)
spec["spec"]["scheduler"]["spec"]["containers"][0]["args"][:1] = ["dask", "scheduler"]
with KubeCluster(custom_cluster_spec=spec, namespace=space, quiet=True) as cluster, cluster.get_client() as client:
    client.wait_for_workers(few, timeout=300)
    print("ready", flush=True)
    for line in sys.stdin:
        started = time.monotonic()
        cluster.scale(int(line))
        client.wait_for_workers(int(line), timeout=300)
        print(time.monotonic() - started, flush=True)
"""
PATH = "/opt/dask/environment/bin:/usr/local/bin:/usr/bin:/bin"  # in the pods


def measure(repeats: int) -> dict[str, Any]:
    comparison = Comparison(f"from {FEW} to {MANY} workers, to the client", "`KubeCluster`", "s", 1.0)
    with (
        tempfile.TemporaryDirectory() as folder,
        kubernetes(Path(folder), {"min": FEW, "max": MANY}) as trial,
        _ours(trial) as ours,
        _theirs(trial) as theirs,
    ):
        for repeat in range(-1, repeats):  # the first turn is for the computer's caches
            taken = {}
            for way in ("ours", "theirs") if repeat % 2 == 0 else ("theirs", "ours"):
                scale = ours if way == "ours" else theirs
                taken[way] = scale(MANY)
                scale(FEW)
                _until_left(*WORKERS[way])
            if repeat >= 0:
                comparison.add(taken["ours"], taken["theirs"])
    return {"comparisons": {comparison.what: comparison}, "profiles": {}}


@contextmanager
def kubernetes(folder: Path, workers: dict[str, Any], **more: Any) -> Generator[Rehearsal]:
    """A Kubernetes with an image that contains all packages, so that pods install nothing."""
    trial = Rehearsal("kubernetes", folder)
    try:
        locks = [word for lock in (JUPYTER_LOCK, ML) for word in ("--lock", str(PROJECT / lock))]
        found = json.loads(trial.kubernetes("up", "--installed", *locks))
        whole = config(FEW)
        whole["config"][KEY] |= {
            "image": INSTALLED,
            "workers": workers | SMALL,
            "jupyter": {"enabled": False},
            **more,
        }
        trial.set(whole, found["kubeconfig"], found["context"])
        os.environ["PATH"] = trial.environ["PATH"]  # for kubectl, which forwards ports
        os.environ["KUBECONFIG"] = trial.environ["KUBECONFIG"] = found["kubeconfig"]
        yield trial
    finally:
        trial.kubernetes("down")


@contextmanager
def _ours(trial: Rehearsal) -> Generator[Callable[[int], float]]:
    trial.up()
    try:
        write(trial.folder, portable(trial))
        file = str(trial.folder / "bench.json")
        with StackCluster(file) as cluster, cluster.get_client() as client:

            def scale(number: int) -> float:
                started = time.monotonic()
                cluster.scale(number)
                client.wait_for_workers(number, timeout=LIMIT)
                return time.monotonic() - started

            scale(FEW)
            yield scale
    finally:
        trial.destroy()


def portable(trial: Rehearsal) -> KubernetesClient:
    """The facts for an access file, which contains the kubeconfig."""
    facts = trial.client()
    assert isinstance(facts, KubernetesClient)
    return replace(facts, kubernetes=KubernetesAccess(kubeconfig=Path(os.environ["KUBECONFIG"]).read_text()))


@contextmanager
def _theirs(trial: Rehearsal) -> Generator[Callable[[int], float]]:
    """The operator runs on this computer instead of in a pod, because its image cannot be had everywhere."""
    programs = bench_venv() / "bin"
    found = run([programs / "python", "-c", "import dask_kubernetes.operator as each; print(*each.__path__)"])
    definitions = Path(found.lines[-1][1]) / "deployment/helm/dask-kubernetes-operator/crds"
    run(["kubectl", "create", "--filename", definitions])
    run(["kubectl", "create", "namespace", SPACE])
    operator = [
        programs / "kopf",
        "run",
        "--quiet",
        "--module",
        "dask_kubernetes.operator.controller",
        "--namespace",
        SPACE,
    ]
    client = [programs / "python", "-c", THEIRS, str(FEW), SPACE, INSTALLED, PATH]
    log = (trial.folder / "operator.log").open("w")
    with log, subprocess.Popen(operator, stdout=log, stderr=log) as controller:
        try:
            with subprocess.Popen(client, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdin and process.stdout  # because of PIPE above
                assert process.stdout.readline() == "ready\n", "KubeCluster did not start; the cause is above"
                stdin, stdout = process.stdin, process.stdout

                def scale(number: int) -> float:
                    print(number, file=stdin, flush=True)
                    return float(stdout.readline())

                yield scale
                stdin.close()
        finally:
            controller.terminate()


def _until_left(namespace: str, selector: str) -> None:
    """Waits until only FEW workers' pods exist."""
    words = ["kubectl", "--namespace", namespace, "get", "pods", "--selector", selector, "--output", "name"]
    for _ in range(LIMIT):
        if len(run(words).lines) == FEW:
            return
        time.sleep(1)
    raise BenchError(f"after {LIMIT} s, there are still more than {FEW} workers in {namespace}")
