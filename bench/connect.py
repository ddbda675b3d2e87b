"""Part j: from the start of Python to the first result, with `StackCluster` and with a plain `Client`."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.figures import Comparison
from bench.prepare import up
from bench.rig import Rig
from daskstack import access_file, client_output, private_folder, ssh
from daskstack.access_file import Access
from daskstack.client_output import KubernetesClient, MachinesClient
from daskstack.engine import PROJECT
from daskstack.tunnel import free_port

Facts = MachinesClient | KubernetesClient
OURS = """
import sys
from daskstack import StackCluster

with StackCluster(sys.argv[1]) as cluster, cluster.get_client() as client:
    assert client.submit(sum, range(10)).result() == 45
"""
# As somebody would write it who has the keys in files and knows the addresses.
THEIRS = """
import socket, subprocess, sys, time
from distributed import Client
from distributed.security import Security

folder, port, *command = sys.argv[1:]
tunnel = subprocess.Popen(command)
while True:
    try:
        socket.create_connection(("127.0.0.1", int(port))).close()
        break
    except OSError:
        time.sleep(0.05)
files = {"tls_ca_file": "authority", "tls_client_cert": "certificate", "tls_client_key": "key"}
security = Security(require_encryption=True, **{name: f"{folder}/{file}" for name, file in files.items()})
with Client(f"tls://127.0.0.1:{port}", security=security) as client:
    assert client.submit(sum, range(10)).result() == 45
tunnel.terminate()
"""


def measure(rig: Rig, repeats: int) -> dict[str, Any]:
    comparison = Comparison("the first result", "plain `Client` over a tunnel", "s", 1.3)
    with rig.fleet("connect") as fleet, private_folder.folder() as folder:
        program = rig.program("connect")
        up(program, fleet, fleet.fresh("scheduler", "worker-1"), workers={"memoryLimit": "2 GiB"})
        facts = client_output.parse(program.output("client"))
        write(folder, facts)
        for repeat in range(-1, repeats):  # the first turn is for the computer's caches
            taken = {}
            for way in (ours, theirs) if repeat % 2 == 0 else (theirs, ours):
                taken[way] = way(folder, facts)
            if repeat >= 0:
                comparison.add(taken[ours], taken[theirs])
    return {"comparisons": {comparison.what: comparison}, "profiles": {}}


def write(folder: Path, facts: Facts) -> None:
    """Writes what both ways need: an access file, ssh's configuration, and the keys."""
    access_file.write(folder / "bench.json", Access(person="bench", stack="bench", client=facts))
    if isinstance(facts, MachinesClient):
        ssh.write_config(folder, {"machine": facts.tunnel})
    for name in ("authority", "certificate", "key"):
        (folder / name).write_text(getattr(facts.tls, name))


def ours(folder: Path, facts: Facts, **options: Any) -> float:
    return _seconds(OURS, f"{folder}/bench.json", **options)


def theirs(folder: Path, facts: Facts, **options: Any) -> float:
    port, target = free_port(), urlsplit(facts.scheduler).netloc
    if isinstance(facts, KubernetesClient):
        service, _, there = target.rpartition(":")
        tunnel = ["kubectl", "--namespace", facts.namespace, "port-forward", f"service/{service}", f"{port}:{there}"]
    else:
        tunnel = ["ssh", "-F", f"{folder}/config", "-N", "-L", f"127.0.0.1:{port}:{target}", "machine"]
    return _seconds(THEIRS, str(folder), str(port), *tunnel, **options)


def _seconds(*words: str, **options: Any) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", *words], cwd=PROJECT, check=True, timeout=300, **options)
    return time.monotonic() - started
