"""Checks that a cluster works; runs on one of its machines, in its environment, with its credentials.

The one argument is JSON: `address` of the scheduler, `workers` (their names, or how many), `python` (minor version),
`packages` (name to version), and if the cluster has them, `imports` (names of packages to import), `bounds` (of the
number of workers, which the running cluster sets; `workers` are the most that can run), `groups` (the smallest and the
largest number of workers in groups, to which the bounds do not apply), `libraries` (range of ports on which libraries
talk among workers), `data` (path of the shared directory), `boot` (seconds for workers' machines or nodes to boot),
`least` (how many workers suffice) and `sleeps` (whether the scheduler stops idle workers). `hosts` is "pods" in
Kubernetes.
Prints a table of results. A second argument, if it is not empty, is the result of an earlier job, which then does not
run again. To import packages in this program's own environment, the argument has only `imports` and `where`, the name
of the place in errors.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import socket
import ssl
import sys
import time
import uuid
from urllib.parse import urlsplit

from distributed import Client

WAIT = 90  # seconds for workers to register
HOLD = 240  # seconds for which the scheduler stops no worker; the check ends before


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


def check_workers(client, expected, least=None, most=None, boot=0):
    """A summary, and the addresses of running workers; workers that are being retired do not count.

    With `least`, this many of the expected workers suffice, and `most` can run.
    """
    bound = "" if least is None else f" of at most {most}"
    expected = expected if isinstance(expected, int) else set(expected)
    wait = WAIT + boot
    deadline = time.time() + wait
    while True:
        workers = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
        running = {address: worker for address, worker in workers.items() if worker["status"] == "running"}
        names = {worker["name"] for worker in running.values()}
        known = len(names) <= expected if isinstance(expected, int) else names <= expected
        if least is not None:
            complete = known and len(names) >= least
        else:
            complete = (len(names) if isinstance(expected, int) else names) == expected
        if complete:
            threads = sum(worker["nthreads"] for worker in running.values())
            return f"{len(names)} running{bound}, {threads} threads", list(running)
        if time.time() > deadline and least is not None and known:
            raise Failure(f"workers after {wait} s: {len(names)}, expected {least}")
        if time.time() > deadline and isinstance(expected, int):
            raise Failure(f"workers after {wait} s: {len(names)}, expected {expected}")
        if time.time() > deadline:
            missing, others = sorted(expected - names), sorted(names - expected)
            raise Failure(f"workers after {wait} s: missing {missing or 'none'}, unexpected {others or 'none'}")
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


async def import_problem(packages):
    """The error of the first package that cannot be imported, or an empty string.

    Modules that this process has not loaded are imported in another process, which gives their memory back.
    """
    import asyncio

    program = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        sys.exit(f"{error} (import {name})")
"""
    modules = {name: [] for name in packages}
    for module, owners in importlib.metadata.packages_distributions().items():
        for owner in {re.sub("[-_.]+", "-", each).lower() for each in owners} & modules.keys():
            modules[owner].append(module)
    # Some packages also install tests or examples.
    named = {name: name.replace("-", "_") for name in packages}
    modules = {each for name, all in modules.items() for each in ([named[name]] if named[name] in all else all)}
    modules = sorted(module for module in modules if module not in sys.modules and not module.startswith("_"))
    if not modules:
        return ""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *modules, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), 120)
    except TimeoutError:
        process.kill()
        return f"importing {', '.join(modules)} takes more than 120 s"
    lines = said.decode(errors="replace").strip().splitlines()
    return (lines or [f"exit status {process.returncode}"])[-1] if process.returncode else ""


def by_machine(workers):
    """One worker of each machine or pod, by its address."""
    return {urlsplit(worker).hostname: worker for worker in workers}


def check_imports(client, workers, packages, hosts):
    """Imports the packages on the scheduler and in one worker process per machine."""
    found = client.run(import_problem, packages, workers=list(by_machine(workers).values()))
    found["the scheduler"] = client.run_on_scheduler(import_problem, packages)
    for where, problem in found.items():
        require_imports(problem, where)
    return f"{len(packages)} packages can be imported on {len(found)} {hosts}"


def require_imports(problem, where):
    if problem:
        raise Failure(
            f"{problem} on {where}: if a system library is missing, add its package to environment.system; if a"
            " Python package is missing, add it to environment.in"
        )


def check_own_imports(packages, where):
    """Imports the packages in this program's own environment."""
    import asyncio

    require_imports(asyncio.run(import_problem(packages)), where)
    return f"{len(packages)} packages can be imported"


def listen(first, last):
    """Accepts connections for a while on a port that the kernel chooses, or that is in the range. Returns the port."""
    import random
    import threading

    def serve():
        server.settimeout(30)
        with server:
            try:
                while True:
                    connection, _ = server.accept()
                    connection.close()
            except TimeoutError:
                pass

    server = socket.create_server(("", 0))
    for _ in range(100):
        port = server.getsockname()[1]
        if first <= port <= last:
            break
        server.close()
        try:
            server = socket.create_server(("", random.SystemRandom().randint(first, last)))
        except OSError:
            server = socket.create_server(("", 0))
    threading.Thread(target=serve, daemon=True).start()
    return port


def kernel_ports():
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        return [int(word) for word in file.read().split()]


def connection_problem(addresses):
    """Why one of these addresses cannot be reached, or an empty string."""
    for host, port in addresses:
        try:
            socket.create_connection((host, port), timeout=10).close()
        except OSError as error:
            return f"{host} on port {port} ({error})"
    return ""


def check_ports(client, workers, ports):
    """A worker of each machine connects to the next machine and to the scheduler's, where XGBoost's tracker listens."""
    first, last = map(int, ports.split("-"))
    machines = by_machine(workers)
    listening = client.run(listen, first, last, workers=list(machines.values()))
    scheduler = urlsplit(client.scheduler_info()["address"]).hostname
    tracker = (scheduler, client.run_on_scheduler(listen, first, last))
    places = [(host, listening[worker]) for host, worker in machines.items()]
    for (host, worker), following in zip(machines.items(), places[1:] + places[:1], strict=True):
        if problem := client.run(connection_problem, [following, tracker], workers=[worker])[worker]:
            raise Failure(
                f"the worker on {host} cannot reach {problem}, so libraries that talk among workers, such as LightGBM,"
                f" would hang: open TCP {ports} among the cluster's machines"
            )
    said = f"workers reach each other on {ports}"
    kernels = client.run(kernel_ports, workers=list(machines.values()))
    if other := next((found for found in kernels.values() if found[0] < first or found[1] > last), None):
        said += f"; their kernel also chooses others from {other[0]}-{other[1]}, which are closed"
    return said


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


def check_data(client, workers, data, hosts):
    path = os.path.join(data, f".check-{uuid.uuid4().hex}")
    first = workers[:1]
    try:
        client.run(write, path, workers=first)
    except OSError as error:
        raise Failure(f"{data}: {first[0]} cannot write: {error}") from None
    try:
        seen = client.run(read, path, time.time() + 10, workers=workers)
        seen["the scheduler"] = client.run_on_scheduler(read, path, time.time() + 10)
    finally:
        client.run(os.remove, path, workers=first)
    if blind := [where for where, found in seen.items() if not found]:
        raise Failure(f"{data}: {', '.join(blind)} cannot read what {first[0]} writes")
    return f"all {hosts} share {data}"


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


def main(expect, earlier=""):
    if "address" in expect:
        table = check_cluster(expect, earlier)
    else:
        table = [("jupyter", check_own_imports(expect["imports"], expect["where"]))]
    for name, seen in table:
        print(f"{name:<12} {seen}")


def hold(client, seconds):
    """Keep the scheduler from stopping workers, and let it start one if there is none."""
    return client.sync(client.scheduler.workers_hold, seconds=seconds)


def check_cluster(expect, earlier=""):
    hosts = expect.get("hosts", "machines")
    with Client(expect["address"], timeout=30) as client, contextlib.ExitStack() as stack:
        least, most, boot = None, None, expect.get("boot", 0)
        if expect.get("bounds") or expect.get("sleeps"):
            stack.callback(hold, client, 0)
            held = hold(client, HOLD + boot)
            if expect.get("bounds"):
                low, high = expect["bounds"]
                groups = expect.get("groups", [0, 0])
                least, most = (max(held["number"], 1) if held else low) + groups[0], high + groups[1]
        if expect.get("least"):
            least = expect["least"] if least is None else min(least, expect["least"])
            most = most or expect["workers"]
        found, workers = check_workers(client, expect["workers"], least, most, boot)
        table = [
            ("workers", found),
            ("environment", check_versions(client, workers, expect["python"], expect["packages"])),
        ]
        if expect["address"].startswith("tls:"):
            table.append(("tls", check_tls(expect["address"])))
        if workers and expect.get("libraries"):
            table.append(("ports", check_ports(client, workers, expect["libraries"])))
        if "data" in expect and workers:
            table.append(("data", check_data(client, workers, expect["data"], hosts)))
        if workers:
            table.append(("job", f"{earlier} (in an earlier run)" if earlier else check_job(client, workers)))
        if expect.get("imports"):  # the job has loaded most of them
            table.append(("imports", check_imports(client, workers, expect["imports"], hosts)))
    return table


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]), *sys.argv[2:])
    except Failure as failure:
        sys.exit(f"check failed: {failure}")
    except OSError as error:
        sys.exit(f"check failed: the scheduler does not answer: {error}")
