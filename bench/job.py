"""Part f: a Dask job on a cluster, with and without TLS, and on a `LocalCluster` of the same size."""

import itertools
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import dask
import dask.array
import dask.datasets
from distributed import Client, LocalCluster, get_task_stream

from bench import sockets
from bench.figures import Comparison
from bench.prepare import up
from bench.rig import Rig
from daskstack import client_output, connection

WORKERS, THREADS = 2, 1
SEEDS = itertools.count(1)  # different data each time, because the result of an identical job can still be in memory


def series(client: Client) -> None:
    """Mostly computation: the mean of a column by group."""
    frame = dask.datasets.timeseries(start="2000-01-01", end="2000-03-01", partition_freq="1d", seed=next(SEEDS))
    client.compute(frame.groupby("name").x.mean()).result(timeout=300)


def transposed(client: Client) -> None:
    """Mostly traffic: each worker needs half of the 800 MB matrix from the other one."""
    matrix = dask.array.random.default_rng(next(SEEDS)).random((10_000, 10_000), chunks=(1_000, 1_000))
    client.compute((matrix + matrix.T).sum()).result(timeout=300)


JOBS: dict[str, Callable[[Client], None]] = {"mean by group": series, "matrix and its transpose": transposed}


def measure(rig: Rig, repeats: int) -> dict[str, Any]:
    comparisons = {
        (job, way): Comparison(f"{job}, {way}", "`LocalCluster`", "jobs/min", 0.9, more=True)
        for job in JOBS
        for way in ("TLS", "no TLS")
    }
    with ExitStack() as stack:
        clients = {"TLS": _cluster(rig, stack, tls=True), "no TLS": _cluster(rig, stack, tls=False)}
        local = stack.enter_context(
            LocalCluster(n_workers=WORKERS, threads_per_worker=THREADS, dashboard_address=None, memory_limit="2 GiB")
        )
        clients["local"] = stack.enter_context(Client(local))
        for job in JOBS.values():  # so that imports are not measured
            for client in clients.values():
                job(client)
        for repeat in range(repeats):
            # Alternate the order, so that no variant is always first.
            order = list(clients)[:: 1 if repeat % 2 == 0 else -1]
            for name, job in JOBS.items():
                rates = {way: 60 / seconds_of(job, clients[way]) for way in order}
                for way in ("TLS", "no TLS"):
                    comparisons[name, way].add(rates[way], rates["local"])
        profiles = {
            f"{name}, {way} (of all threads together)": _profile(job, client)
            for name, job in JOBS.items()
            for way, client in clients.items()
        }
    return {
        "comparisons": {comparison.what: comparison for comparison in comparisons.values()},
        "profiles": profiles,
        "table": sockets.measure(repeats),
    }


def _profile(job: Callable[[Client], None], client: Client) -> list[tuple[str, float]]:
    """The activities of the workers' threads in another run of the job, as recorded by the scheduler."""
    started = time.monotonic()
    with get_task_stream(client) as stream:
        job(client)
    available = WORKERS * THREADS * (time.monotonic() - started)
    done: Counter[str] = Counter()
    for task in stream.data:
        for part in task["startstops"]:
            done[part["action"]] += part["stop"] - part["start"]
    # Transfers do not occupy the threads, so they do not count as their time.
    transfers = done.pop("transfer", 0.0)
    waiting = available - sum(done.values())
    return [*done.items(), ("waiting", waiting), ("(transfers, beside these)", transfers)]


def seconds_of(job: Callable[[Client], None], client: Client) -> float:
    started = time.monotonic()
    job(client)
    return time.monotonic() - started


def _cluster(rig: Rig, stack: ExitStack, *, tls: bool) -> Client:
    """A client of a cluster that runs until the end of the bench."""
    name = "tls" if tls else "plain"
    fleet, program = stack.enter_context(rig.fleet(name)), rig.program(name)
    names = ["scheduler", *(f"worker-{number + 1}" for number in range(WORKERS))]
    settings = {"workers": {"threads": THREADS, "memoryLimit": "2 GiB"}, "dask": {"tls": tls}}
    up(program, fleet, fleet.fresh(*names), **settings)
    return stack.enter_context(connection.Client(client_output.parse(program.output("client"))))
