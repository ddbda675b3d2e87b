"""Part m: from `StackCluster` of a sleeping cluster to the first result, compared with what no program can avoid."""

import shlex
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench import connect, kube_cluster
from bench.compute import GOOGLE
from bench.figures import Comparison, spread
from bench.prepare import up
from bench.rig import BenchError, Rig, inside, run
from daskstack import client_output, tunnel
from daskstack.client_output import MachinesClient
from daskstack.connection import Client
from rehearsal.machines import Machine
from tools.rehearse import KEY, Rehearsal

LIMIT = 180  # seconds for a machine, a pod or a worker to start or to stop
WORKER = "worker-1-1"
PIECES = ("machine or pod", "worker", "client")


class Cluster(NamedTuple):
    """A cluster with one worker."""

    facts: connect.Facts
    sleep: Callable[[], None]
    start: Callable[[], dict[str, float]]
    """Starts the worker by hand, and returns the seconds of the first pieces."""
    environ: dict[str, str] | None = None


def measure(rig: Rig, repeats: int) -> dict[str, Any]:
    comparisons, rows, pieces = {}, {}, {}
    for name, target in TARGETS.items():
        comparison = comparisons[name] = Comparison(name, "the worker by hand, and a plain `Client`", "s", 1.2)
        found: dict[str, list[float]] = {}
        with tempfile.TemporaryDirectory(dir=rig.folder) as folder, target(rig, Path(folder)) as cluster:
            connect.write(Path(folder), cluster.facts)
            for repeat in range(-1, repeats):  # the first turn is for the computer's caches
                taken = {}
                for way in (ours, floor) if repeat % 2 == 0 else (floor, ours):
                    cluster.sleep()
                    taken[way] = way(Path(folder), cluster)
                print(f"{name}: {taken[ours]}, {taken[floor]}", flush=True)
                if repeat >= 0:
                    comparison.add(sum(taken[ours].values()), sum(taken[floor].values()))
                    for piece, seconds in taken[floor].items():
                        found.setdefault(piece, []).append(seconds)
        rows[name] = [str(spread(found[piece])) if piece in found else "" for piece in PIECES]
        pieces[name] = found
    table = {"what": "seconds by hand", "columns": list(PIECES), "rows": rows}
    return {"comparisons": comparisons, "profiles": {}, "table": table, "pieces": pieces}


def ours(folder: Path, cluster: Cluster) -> dict[str, float]:
    return {"all": connect.ours(folder, cluster.facts, env=cluster.environ)}


def floor(folder: Path, cluster: Cluster) -> dict[str, float]:
    return cluster.start() | {"client": connect.theirs(folder, cluster.facts, env=cluster.environ)}


@contextmanager
def local(rig: Rig, _: Path) -> Generator[Cluster]:
    """Machines that stay on: the number of workers follows the work, and there is none."""
    with rig.fleet("wake") as fleet:
        head, worker = fleet.fresh("scheduler", "worker-1")
        program = rig.program("wake")
        up(program, fleet, [head, worker], workers={"memoryLimit": "2 GiB", "min": 0, "max": 1})
        facts = client_output.parse(program.output("client"))
        with Client(facts) as client:

            def sleep() -> None:
                client.sync(client.scheduler.workers_scale, number=0)
                until(worker, "[ $(systemctl show -P SubState dask-worker@1) = start-pre ]")  # it waits
                client.sync(client.scheduler.workers_adapt, minimum=None, maximum=None)

            def start() -> dict[str, float]:
                inside(worker, "systemctl stop dask-worker@1")
                client.sync(client.scheduler.workers_scale, number=1)
                until(head, f"""grep -q '"{WORKER}"' /var/lib/daskstack/home/elastic.json""")
                started = time.monotonic()
                inside(worker, "systemctl start dask-worker@1")
                client.wait_for_workers(1, timeout=LIMIT)
                return {"worker": time.monotonic() - started}

            yield Cluster(facts, sleep, start)


@contextmanager
def kubernetes(_: Rig, folder: Path) -> Generator[Cluster]:
    """A release whose worker's Deployment is scaled to zero, as `limits.idle` does it."""
    worker = "deployment/dask-worker"
    with kube_cluster.kubernetes(folder, {"replicas": 1}, limits={"idle": "1h"}) as trial:
        trial.up()
        facts = kube_cluster.portable(trial)

        def kubectl(*words: str) -> float:
            return run(["kubectl", "--namespace", facts.namespace, *words], env=trial.environ).seconds

        def sleep() -> None:
            kubectl("scale", worker, "--replicas=0")
            kubectl("wait", "--for=delete", "pod", "--selector=component=worker", f"--timeout={LIMIT}s")

        try:
            with Client(facts) as client:

                def start() -> dict[str, float]:
                    scaled = kubectl("scale", worker, "--replicas=1")
                    started = time.monotonic()
                    client.wait_for_workers(1, timeout=LIMIT)
                    return {"machine or pod": scaled, "worker": time.monotonic() - started}

                yield Cluster(facts, sleep, start, trial.environ)
        finally:
            trial.destroy()


@contextmanager
def compute(_: Rig, folder: Path) -> Generator[Cluster]:
    """Rehearsed machines of Compute Engine that are off, as `limits.idle` leaves them."""
    trial = Rehearsal("vms", folder)
    trial.environ["XDG_DATA_HOME"] = str(folder)
    machines = GOOGLE | {"workers": 1}
    config = {"target": "machines", "machines": machines, "firewall": {"ssh": ["203.0.113.7/32"]}}
    trial.start({"config": {KEY: config | {"jupyter": {"enabled": False}, "limits": {"idle": "1h"}}}})
    try:
        trial.up()
        facts = trial.client()
        assert isinstance(facts, MachinesClient) and facts.google
        google, door = facts.google, facts.tunnel

        def gcloud(what: str) -> None:
            names = google.machines.values()
            where = ["--zone", google.zone, "--project", google.project]
            run(["gcloud", "compute", "instances", what, *names, *where], env=trial.environ)

        def start() -> dict[str, float]:
            started = time.monotonic()
            gcloud("start")
            while not tunnel.opens(door.get("port") or 22, door["host"]):
                if time.monotonic() > started + LIMIT:
                    raise BenchError(f"{door['host']} did not answer within {LIMIT} s")
                time.sleep(0.1)
            booted = time.monotonic()
            with Client(facts, timeout=LIMIT) as client:
                client.wait_for_workers(1, timeout=LIMIT)
            return {"machine or pod": booted - started, "worker": time.monotonic() - booted}

        yield Cluster(facts, lambda: gcloud("stop"), start, trial.environ)
        trial.destroy()
    finally:
        trial.down()


def until(machine: Machine, condition: str) -> None:
    """Waits until a command of root succeeds on the machine."""
    inside(machine, f"timeout {LIMIT} bash -c {shlex.quote(f'until {condition}; do sleep 0.1; done')}")


TARGETS = {"local machines": local, "Kubernetes": kubernetes, "rehearsed Compute Engine": compute}
