"""Looks whether a cluster does what it is for; runs on one of its machines, in its environment, with its credentials.

The one argument is JSON: `address` of the scheduler, `workers` (names), `python` (minor version), `packages` (name to
version), `data` (path of the shared directory). Prints a table of what it saw; the first line of a failure names it.
"""

import importlib.metadata
import json
import os
import platform
import sys
import time
import uuid

from distributed import Client

WAIT = 90  # seconds for workers to register


class Failure(Exception):
    """What was expected, and what was found."""


def versions(packages):
    def version(name):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "missing"

    minor = ".".join(platform.python_version_tuple()[:2])
    return {"python": minor, **{name: version(name) for name in packages}}


def write(path):
    with open(path, "w") as file:
        file.write(path)


def read(path, deadline):
    while True:
        try:
            with open(path) as file:
                return file.read() == path
        except FileNotFoundError:
            if time.time() > deadline:
                return False
            time.sleep(0.1)


def check_workers(client, expected):
    deadline = time.time() + WAIT
    while True:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        names = {worker["name"] for worker in workers if worker["status"] == "running"}
        if names == set(expected):
            return f"{len(names)} running, {sum(worker['nthreads'] for worker in workers)} threads"
        if time.time() > deadline:
            missing, others = sorted(set(expected) - names), sorted(names - set(expected))
            raise Failure(f"workers after {WAIT} s: missing {missing or 'none'}, not asked for {others or 'none'}")
        time.sleep(0.2)


def check_versions(client, python, packages):
    expected = {"python": python, **packages}
    found = client.run(versions, list(packages))
    found["the scheduler"] = client.run_on_scheduler(versions, list(packages))
    for where, seen in found.items():
        for name, version in expected.items():
            if seen[name] != version:
                raise Failure(f"{name} is {seen[name]} on {where}, and {version} in the lock")
    return f"Python {python}, dask {packages['dask']}, {len(packages)} packages as locked on {len(found)} processes"


def check_data(client, data):
    path = os.path.join(data, f".check-{uuid.uuid4().hex}")
    first = next(iter(client.scheduler_info()["workers"]))
    client.run(write, path, workers=[first])
    try:
        blind = [worker for worker, seen in client.run(read, path, time.time() + 10).items() if not seen]
    finally:
        client.run(os.remove, path, workers=[first])
    if blind:
        raise Failure(f"{data}: what {first} writes is not seen by {', '.join(blind)}")
    return f"{data}, seen by all"


def check_job(client):
    import dask
    import pandas as pd

    frame = dask.datasets.timeseries(seed=1)
    means = frame.groupby("name").x.mean()
    started = time.time()
    found = client.compute(means).result(timeout=180)
    seconds = time.time() - started
    # The same rows without Dask's own grouping, one part at a time where this runs.
    parts = [part.compute(scheduler="synchronous")[["name", "x"]] for part in frame.partitions]
    right = pd.concat(parts).groupby("name").x.mean()
    if not (abs(found.sort_index() - right.sort_index()) < 1e-9).all():
        raise Failure(f"timeseries, mean of x by name: got {found.to_dict()}, right is {right.to_dict()}")
    return f"timeseries, mean of x by name: right for {len(right)} names in {seconds:.1f} s"


def main(expect):
    with Client(expect["address"], timeout=30) as client:
        table = [
            ("workers", check_workers(client, expect["workers"])),
            ("environment", check_versions(client, expect["python"], expect["packages"])),
            ("data", check_data(client, expect["data"])),
            ("job", check_job(client)),
        ]
    for name, seen in table:
        print(f"{name:<12} {seen}")


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except Failure as failure:
        sys.exit(f"check failed: {failure}")
    except OSError as error:
        sys.exit(f"check failed: no answer from the scheduler: {error}")
