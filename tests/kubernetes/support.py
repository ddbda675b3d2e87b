"""A one-node Kubernetes for tests."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from daskstack.engine import PROJECT
from rehearsal.kubernetes import network
from rehearsal.programs import kubernetes_programs

IMAGE = "python:3.11-slim"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
FORBIDDEN = "No route to host"  # the node's policies answer with these, nothing else does
PROBE = """
import socket, sys
for place in sys.argv[1:]:
    host, port = place.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 20).close()
        print("open")
    except OSError as error:
        print(error.strerror or error)
"""


def pod(name: str, *command: str, security: dict | None = None, labels: dict | None = None, **spec) -> dict:
    container = {"name": "main", "image": IMAGE, "command": list(command), "securityContext": security or {}}
    container |= {key: spec.pop(key) for key in ("env", "ports", "volumeMounts", "readinessProbe") if key in spec}
    metadata = {"name": name, "labels": {"app": name, **(labels or {})}}
    spec = {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def server(name: str, **spec) -> dict:
    """A pod that is ready when it listens on port 8000."""
    probe = {"tcpSocket": {"port": 8000}, "periodSeconds": 1}
    return pod(name, "python", "-m", "http.server", "8000", readinessProbe=probe, **spec)


@dataclass(frozen=True)
class Cluster:
    """A cluster in a separate folder; `kubeconfig`, `context` and `node` (address) are set once it is up."""

    directory: Path
    programs: Path = field(default_factory=kubernetes_programs)

    def up(self) -> dict[str, str]:
        """The output of `up`."""
        return json.loads(self.call("up"))

    def down(self) -> None:
        self.call("down")

    def command(self, word: str) -> list[str]:
        """Includes all images and wheels that tests of this cluster need, because `up` replaces the former ones."""
        program = [sys.executable, "-m", "rehearsal.kubernetes", word, str(self.directory)]
        return [*program, "--lock", "charts/jupyter.lock", "--lock", "environments/ml.lock", "--installed"]

    def call(self, word: str) -> str:
        done = subprocess.run(self.command(word), cwd=PROJECT, stdout=subprocess.PIPE, text=True, timeout=500)
        assert done.returncode == 0, f"{word} ended with status {done.returncode}"
        return done.stdout

    def reach(self, namespace: str, pod: str, *places: str) -> dict[str, str]:
        """For each address ("host:port"), "open" or the reason why the pod cannot connect to it."""
        said = self.kubectl("exec", f"--namespace={namespace}", pod, "--", "python", "-c", PROBE, *places)
        return dict(zip(places, said.splitlines(), strict=True))

    def ready(self, namespace: str, *pods: str) -> list[str]:
        """Waits for pods and returns their addresses."""
        names = [f"pod/{each}" for each in pods]
        self.kubectl("wait", f"--namespace={namespace}", "--for=condition=Ready", *names, "--timeout=90s")
        found = [self.kubectl("get", f"--namespace={namespace}", each, "--output=json") for each in names]
        return [json.loads(each)["status"]["podIP"] for each in found]

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"

    def kubectl(self, *arguments: str, **kwargs) -> str:
        """Its output; raises CalledProcessError with `stderr` if it failed."""
        command = [self.programs / "kubectl", f"--kubeconfig={self.kubeconfig}", *arguments]
        try:
            return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, **kwargs).stdout
        except subprocess.CalledProcessError as error:
            error.add_note(error.stderr)  # for pytest's report
            raise

    def apply(self, *objects: dict, namespace: str = "default") -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl("apply", f"--namespace={namespace}", "--filename=-", input=text)


def until(reached: Callable[[], object], seconds: float = 60) -> None:
    """Waits until the condition is true."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"not so within {seconds:.0f} s"
        time.sleep(0.2)


def control_groups(name: str) -> list[str]:
    """The folders with this name; os.walk skips those that disappear during the search."""
    return [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if Path(folder).name == name]


def traces(cluster: Cluster) -> list[str]:
    """All traces of a cluster on this computer."""
    name = network.name(cluster.directory)
    groups = control_groups(name)
    folders = [Path("/run/netns") / name, Path("/sys/class/net") / name, cluster.directory]
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(cluster.directory) in line]
    running = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text()
        except OSError:
            continue
        if str(cluster.directory) in command:
            running.append(command)
    return groups + mounts + running + [str(folder) for folder in folders if folder.exists()]
