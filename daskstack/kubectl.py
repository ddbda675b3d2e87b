"""Runs kubectl for a stack in Kubernetes, and port-forwards that restart when they end."""

import contextlib
import json
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from typing import IO

from daskstack import kubeconfig, private_folder
from daskstack.client_output import KubernetesAccess
from daskstack.tunnel import TunnelError, Way

WAIT = 30  # seconds for a port-forward to open
ANSWER = 60  # seconds for kubectl
PAUSE = 1  # seconds before a port-forward restarts
REPLICAS = "dask/replicas"  # annotation of a Deployment of workers: how many of them run if the cluster is not idle
REFUSED = r"\(Unauthorized\)|\(Forbidden\)"  # what kubectl says if credentials or rights are missing
REFUSALS = 30  # one after the other; an API server that has just started refuses at first


@contextlib.contextmanager
def kubectl(cluster: KubernetesAccess) -> Generator[list[str]]:
    """The `kubectl` command that reaches the cluster; append its arguments.

    If `kubeconfig` is text, a file contains it inside the context. Only the caller's user can read the file. Raises
    TunnelError if the kubeconfig's context no longer leads to the stack's cluster.
    """
    with contextlib.ExitStack() as stack:
        path = os.path.expanduser(cluster["kubeconfig"])
        if "\n" in path:
            file = stack.enter_context(private_folder.folder()) / "kubeconfig"
            file.touch(mode=0o600)
            file.write_text(path)
            path = str(file)
        elif cluster.get("server"):
            first = kubeconfig.Cluster(cluster["server"], cluster.get("authority", ""))
            if problem := kubeconfig.difference(path, cluster.get("context", ""), first):
                raise TunnelError(problem)
        context = ["--context", cluster["context"]] if cluster.get("context") else []
        yield ["kubectl", "--kubeconfig", path, *context]


def wake(cluster: KubernetesAccess, namespace: str) -> int:
    """Starts the workers that an idle cluster has stopped. Returns their number, without waiting for them."""
    with kubectl(cluster) as command:
        command += ["--namespace", namespace]
        woken = 0
        found = answer(command, "get", "deployments", "--selector", "release=dask", "--output", "json")
        for each in json.loads(found)["items"]:
            wanted = int(each["metadata"].get("annotations", {}).get(REPLICAS, 0))
            if wanted and not each["spec"]["replicas"]:
                answer(command, "scale", f"deployment/{each['metadata']['name']}", f"--replicas={wanted}")
                woken += wanted
        return woken


def answer(command: Sequence[str], *words: str, given: str = "") -> str:
    """What kubectl prints. `given` is its standard input. Raises TunnelError if it fails or takes too long."""
    try:
        done = subprocess.run([*command, *words], input=given, capture_output=True, text=True, timeout=ANSWER)
    except subprocess.TimeoutExpired:
        raise TunnelError(f"`kubectl {' '.join(words)}` did not answer within {ANSWER} s") from None
    if done.returncode:
        raise TunnelError(f"`kubectl {' '.join(words)}` failed: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def forward(cluster: KubernetesAccess, namespace: str, targets: Sequence[str]) -> Generator[Way]:
    """A port of this computer's loopback for each of `targets` ("service:port"), open inside the context."""
    with kubectl(cluster) as command, contextlib.ExitStack() as stack:
        forwarders = []
        for target in targets:
            service, _, there = target.rpartition(":")
            words = [*command, "--namespace", namespace, "port-forward", "--address", "127.0.0.1"]
            forwarders.append(Forwarder([*words, f"service/{service}"], there))
            stack.callback(forwarders[-1].close)
        ports = [forwarder.wait() for forwarder in forwarders]
        yield Way(ports, lambda: next((each.fault for each in forwarders if each.fault), ""))


class Forwarder:
    """A `kubectl port-forward` that restarts on the same port whenever it ends, until it is closed.

    kubectl chooses the port, and its output contains the number: a port that we chose could be taken by another user
    of this computer before kubectl listens there. If another program takes the port between two runs, the
    port-forward does not restart, and `fault` contains the reason.
    """

    def __init__(self, command: Sequence[str], there: str) -> None:
        self._command, self._there = command, there
        self._here = ""
        # kubectl logs every connection; a full pipe would block it, so log to files.
        self._files = contextlib.ExitStack()
        self._said = self._files.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        self._complained = self._files.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        self._closing = threading.Event()
        self.fault = ""
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _start(self) -> subprocess.Popen:
        for file in (self._said, self._complained):
            file.seek(0)
            file.truncate()
        return subprocess.Popen(
            [*self._command, f"{self._here}:{self._there}"],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._complained,
        )

    def _keep(self) -> None:
        refused = 0
        while True:
            self._process.wait()
            said = _read(self._complained)
            if self._here and "unable to listen" in said:
                self.fault = f"another program has taken port {self._here} of the port-forward: {said}"
                return
            refused = refused + 1 if re.search(REFUSED, said) else 0
            if refused == (REFUSALS if self._here else 1):
                self.fault = f"Kubernetes refuses the port-forward; an access file may have been revoked: {said}"
                return
            if self._closing.wait(PAUSE):
                return
            self._process = self._start()

    def wait(self) -> int:
        """The port, once kubectl listens there. Raises TunnelError with kubectl's output after WAIT seconds."""
        deadline = time.monotonic() + WAIT
        while not (match := re.search(r"^Forwarding from 127\.0\.0\.1:(\d+) ", _read(self._said), re.MULTILINE)):
            if self.fault:
                raise TunnelError(self.fault)
            if time.monotonic() > deadline:
                raise TunnelError(f"the port-forward did not open within {WAIT} s: {_read(self._complained)}")
            time.sleep(0.1)
        self._here = match[1]
        return int(match[1])

    def close(self) -> None:
        self._closing.set()
        while self._keeper.is_alive():  # it may be starting another process
            self._process.kill()
            self._keeper.join(0.1)
        self._files.close()


def _read(file: IO[str]) -> str:
    """All that a process has written so far. Does not move the file offset, which the process shares."""
    return os.pread(file.fileno(), 1 << 20, 0).decode(errors="replace").strip()
