"""Checks that a cluster works; runs on one of its machines, in its environment, with its credentials.

The one argument is JSON: `address` of the scheduler, `workers` (their names, or how many), `python` (minor version),
`packages` (name to version), and `data` (path of the shared directory) if there is one. Prints a table of results.
"""

import importlib.metadata
import json
import os
import platform
import socket
import ssl
import sys
import time
import uuid
from urllib.parse import urlsplit

from distributed import Client

WAIT = 90  # seconds for workers to register


class Failure(Exception):
    """Its message says what was expected and what was found."""


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
    """A summary, and the addresses of running workers; workers that are being retired do not count."""
    expected = expected if isinstance(expected, int) else set(expected)
    deadline = time.time() + WAIT
    while True:
        workers = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
        running = {address: worker for address, worker in workers.items() if worker["status"] == "running"}
        names = {worker["name"] for worker in running.values()}
        if (len(names) if isinstance(expected, int) else names) == expected:
            threads = sum(worker["nthreads"] for worker in running.values())
            return f"{len(names)} running, {threads} threads", list(running)
        if time.time() > deadline and isinstance(expected, int):
            raise Failure(f"workers after {WAIT} s: {len(names)}, expected {expected}")
        if time.time() > deadline:
            missing, others = sorted(expected - names), sorted(names - expected)
            raise Failure(f"workers after {WAIT} s: missing {missing or 'none'}, unexpected {others or 'none'}")
        time.sleep(0.2)


def check_versions(client, workers, python, packages):
    expected = {"python": python, **packages}
    found = client.run(versions, list(packages), workers=workers)
    found["the scheduler"] = client.run_on_scheduler(versions, list(packages))
    for where, seen in found.items():
        for name, version in expected.items():
            if seen[name] != version:
                raise Failure(f"{name} is {seen[name]} on {where}, but {version} in the lock")
    return f"Python {python}, dask {packages['dask']}, {len(packages)} packages as locked on {len(found)} processes"


def check_tls(address):
    """Tries to connect without a certificate."""
    host, port = urlsplit(address).hostname, urlsplit(address).port
    context = ssl._create_unverified_context()
    try:
        with socket.create_connection((host, port), timeout=10) as plain, context.wrap_socket(plain) as stream:
            answer = stream.recv(1)
    except (ssl.SSLError, ConnectionError):
        return "clients without a certificate are rejected"
    raise Failure(f"{address} accepts a client without a certificate: it answered {answer!r}")


def check_data(client, workers, data):
    path = os.path.join(data, f".check-{uuid.uuid4().hex}")
    first = workers[:1]
    client.run(write, path, workers=first)
    try:
        seen = client.run(read, path, time.time() + 10, workers=workers)
    finally:
        client.run(os.remove, path, workers=first)
    if blind := [worker for worker in workers if not seen[worker]]:
        raise Failure(f"{data}: {', '.join(blind)} cannot read what {first[0]} writes")
    return f"all machines share {data}"


def check_job(client, workers):
    import dask
    import pandas as pd

    frame = dask.datasets.timeseries(seed=1)
    means = frame.groupby("name").x.mean()
    started = time.time()
    try:
        # Runs before tasks that users have queued, but waits for running ones. Naming workers keeps the scheduler from
        # holding tasks back until a worker is idle.
        found = client.compute(means, priority=100, workers=workers, allow_other_workers=True).result(timeout=180)
    except TimeoutError:
        busy = sum(len(tasks) for tasks in client.processing().values())
        raise Failure(
            f"a small job has no result after 180 s; the workers have {busy} tasks: run up again later"
        ) from None
    seconds = time.time() - started
    # The same rows, grouped by pandas in this process.
    parts = [part.compute(scheduler="synchronous")[["name", "x"]] for part in frame.partitions]
    right = pd.concat(parts).groupby("name").x.mean()
    if not (abs(found.sort_index() - right.sort_index()) < 1e-9).all():
        raise Failure(f"timeseries, mean of x by name: found {found.to_dict()}, expected {right.to_dict()}")
    return f"timeseries, mean of x by name: correct for {len(right)} names in {seconds:.1f} s"


def main(expect):
    with Client(expect["address"], timeout=30) as client:
        found, workers = check_workers(client, expect["workers"])
        table = [
            ("workers", found),
            ("environment", check_versions(client, workers, expect["python"], expect["packages"])),
        ]
        if expect["address"].startswith("tls:"):
            table.append(("tls", check_tls(expect["address"])))
        if "data" in expect:
            table.append(("data", check_data(client, workers, expect["data"])))
        if workers:
            table.append(("job", check_job(client, workers)))
    for name, seen in table:
        print(f"{name:<12} {seen}")


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except Failure as failure:
        sys.exit(f"check failed: {failure}")
    except OSError as error:
        sys.exit(f"check failed: the scheduler does not answer: {error}")
