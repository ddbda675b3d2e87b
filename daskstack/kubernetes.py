"""kubectl for a stack in Kubernetes, and port-forwards that are made again when they die."""

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from daskstack.tunnel import TunnelError, free_port, opens

WAIT = 30  # seconds for a port-forward to open
PAUSE = 1  # seconds until one that died is tried again


@contextlib.contextmanager
def kubectl(cluster: Mapping[str, Any]) -> Iterator[list[str]]:
    """The words of a command that reaches the cluster: its `kubeconfig` is a path, or the text of such a file.

    `context` may be empty. A text is in a file of the user's own inside the context.
    """
    with contextlib.ExitStack() as stack:
        path = os.path.expanduser(cluster["kubeconfig"])
        if "\n" in path:
            file = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="daskstack-", suffix=".yaml"))
            file.write(path)
            file.flush()
            path = file.name
        context = ["--context", cluster["context"]] if cluster.get("context") else []
        yield ["kubectl", "--kubeconfig", path, *context]


def wake(cluster: Mapping[str, Any], namespace: str) -> int:
    """Brings back the workers that went when nothing was computed. Returns how many; they take a while to come."""
    with kubectl(cluster) as command:

        def run(*words: str) -> str:
            done = subprocess.run(
                [*command, "--namespace", namespace, *words], capture_output=True, text=True, timeout=60
            )
            if done.returncode:
                raise TunnelError(f"`kubectl {words[0]}` failed: {done.stderr.strip()}")
            return done.stdout

        woken = 0
        for each in json.loads(run("get", "deployments", "--selector", "release=dask", "--output", "json"))["items"]:
            wanted = int(each["metadata"].get("annotations", {}).get("dask/replicas", 0))
            if wanted and not each["spec"]["replicas"]:
                run("scale", f"deployment/{each['metadata']['name']}", f"--replicas={wanted}")
                woken += wanted
        return woken


@contextlib.contextmanager
def forward(cluster: Mapping[str, Any], namespace: str, targets: Sequence[str]) -> Iterator[list[int]]:
    """Ports of this computer's loopback that lead to `targets` ("service:port"), open inside the context."""
    with kubectl(cluster) as command, contextlib.ExitStack() as stack:
        ports = []
        for target in targets:
            service, _, there = target.rpartition(":")
            here = free_port()
            words = [*command, "--namespace", namespace, "port-forward", "--address", "127.0.0.1"]
            forwarder = Forwarder([*words, f"service/{service}", f"{here}:{there}"])
            stack.callback(forwarder.close)
            forwarder.wait(here)
            ports.append(here)
        yield ports


class Forwarder:
    """A `kubectl port-forward` that is started again whenever it ends, until it is closed."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  (`close` closes it)
        self._closing = threading.Event()
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _start(self) -> subprocess.Popen:
        self._said.seek(0)
        self._said.truncate()
        return subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._said)

    def _keep(self) -> None:
        while True:
            self._process.wait()
            if self._closing.wait(PAUSE):
                return
            self._process = self._start()

    def wait(self, port: int) -> None:
        """Until the port is open; TunnelError with kubectl's own words where that takes too long."""
        deadline = time.monotonic() + WAIT
        while not opens(port):
            if time.monotonic() > deadline:
                self._said.seek(0)
                raise TunnelError(f"the port-forward did not open within {WAIT} s: {self._said.read().strip()}")
            time.sleep(0.1)

    def close(self) -> None:
        self._closing.set()
        while self._keeper.is_alive():  # it may just be starting another one
            self._process.kill()
            self._keeper.join(0.1)
        self._said.close()
