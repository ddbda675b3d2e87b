"""The cluster's main process: it starts the node's components, and manages volumes and addresses.

It runs in its own mount, PID and network namespaces. When it ends, all processes of the cluster and its pods end, and
all its mounts disappear. The cluster's file `state` names the component that it is waiting for, and finally "ready".
"""

import datetime
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from rehearsal.kubernetes import components, network, objects, policies
from rehearsal.kubernetes.api import Api
from rehearsal.kubernetes.components import NODE, SOCKET
from rehearsal.programs import kubernetes_programs

# The kubelet would set these for the entire computer if they differ, so it sees files with the expected values instead.
SYSCTLS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000,
    "kernel/keys/root_maxbytes": 25000000,
}
ENDS = 5  # number of times that a component may fail until the node is ready


def command(directory: Path) -> list[str]:
    """The command that runs `boot` in new namespaces."""
    space = ["nsenter", f"--net=/run/netns/{network.name(directory)}"]
    space += ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    # bash is process 1, and reaps the orphans of pods and shims.
    reaper = ["bash", "-c", '"$@"; exit $?', "bash"]
    return [*space, *reaper, sys.executable, "-m", "rehearsal.kubernetes", "boot", str(directory)]


def boot(directory: Path) -> None:
    _, address, spare = network.addresses(directory)
    renew(directory)
    mount(directory)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    call("ip", "address", "replace", f"{network.INNER}/32", "dev", "lo")
    os.chdir("/")
    Node(components.commands(kubernetes_programs(), address), Api(address, components.PKI), spare).live()


def renew(directory: Path) -> None:
    """Reset the node to its images without containers. etcd keeps the cluster's state."""
    for folder in ("containerd", "kubelet"):
        shutil.rmtree(directory / folder, ignore_errors=True)
    images = (directory / "images").resolve()
    try:
        # Layers can be linked, because containerd never changes them. It changes its databases.
        shutil.copytree(images, directory / "containerd", symlinks=True, copy_function=link)
    except OSError:
        shutil.rmtree(directory / "containerd", ignore_errors=True)
        call("cp", "--archive", str(images), str(directory / "containerd"))


def mount(directory: Path) -> None:
    """Redirect the components' writes to fixed paths into the namespace, and mount the cluster's folder at NODE."""
    call("mount", "--bind", str(directory), "/mnt")
    call("mount", "-t", "tmpfs", "tmpfs", "/run")
    for folder in (NODE, Path("/run/var/upper"), Path("/run/var/work"), Path("/run/sysctl")):
        folder.mkdir(parents=True)
    call("mount", "--move", "/mnt", str(NODE))
    layers = "lowerdir=/var,upperdir=/run/var/upper,workdir=/run/var/work"
    call("mount", "-t", "overlay", "overlay", "-o", layers, "/var")
    for sysctl, value in SYSCTLS.items():
        file = Path("/run/sysctl", sysctl.replace("/", "."))
        file.write_text(f"{value}\n")
        call("mount", "--bind", str(file), f"/proc/sys/{sysctl}")


def call(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


class Node:
    def __init__(self, commands: dict[str, list[str]], api: Api, spare: list[str]) -> None:
        self.commands, self.api, self.spare = commands, api, spare
        self.processes: dict[str, subprocess.Popen] = {}
        self.ends = dict.fromkeys(commands, 0)
        self.ready, self.begun = False, time.monotonic()

    def live(self) -> None:
        begun = datetime.datetime.now(datetime.UTC)
        self.start("etcd", "containerd", "wheels")
        self.wait("etcd", lambda: answers("127.0.0.1", 2379))
        self.start("kube-apiserver")
        self.wait("containerd", SOCKET.exists)
        self.wait("kube-apiserver", lambda: self.api.call("GET", "/readyz") == "ok")
        self.start("kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "coredns", "policies")
        self.wait("supervisor", lambda: objects.make(self.api) is None)
        self.wait("kubelet", lambda: objects.node_is_ready(self.api, begun))
        self.wait(
            "kube-controller-manager", lambda: bool(self.api.get("/api/v1/namespaces/default/serviceaccounts/default"))
        )
        self.wait("kube-proxy", lambda: bool(fetch("http://127.0.0.1:10256/healthz")))
        self.wait("policies", lambda: has_table(policies.TABLE))
        self.wait("coredns", lambda: bool(fetch("http://127.0.0.1:8181/ready")))
        self.wait("wheels", lambda: answers(network.INNER, components.WHEELS))
        self.ready = True
        self.tell("ready")
        while True:
            self.restart_ended()
            # The next iteration restarts a component that ended, and retries a rejected request.
            try:
                objects.reconcile(self.api, self.spare)
            except OSError as error:
                print(error, flush=True)
            time.sleep(1)

    def start(self, *names: str) -> None:
        for name in names:
            with (NODE / "log" / f"{name}.log").open("a") as log:
                command = self.commands[name]
                environ = {**os.environ, "TMPDIR": "/run"}
                self.processes[name] = subprocess.Popen(
                    command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )

    def wait(self, name: str, reached: Callable[[], bool]) -> None:
        """Wait until `reached` returns true. The process that waits for the node has the timeout."""
        self.tell(name)
        last_error = ""
        while True:
            try:
                if reached():
                    return
            except OSError as error:
                if last_error != (last_error := str(error)):
                    print(last_error, flush=True)
            time.sleep(0.2)
            self.restart_ended()

    def tell(self, state: str) -> None:
        print(f"{time.monotonic() - self.begun:.1f} s: {state}", flush=True)
        (NODE / "state.new").write_text(state)
        (NODE / "state.new").rename(NODE / "state")

    def restart_ended(self) -> None:
        for name, process in self.processes.items():
            if process.poll() is None:
                continue
            print(f"{name} exited with status {process.returncode}", flush=True)
            self.ends[name] += 1
            if self.ends[name] >= ENDS and not self.ready:
                self.tell(name)
                sys.exit(f"{name} exited {ENDS} times")
            time.sleep(0.5)
            self.start(name)


def has_table(name: str) -> bool:
    return subprocess.run(["nft", "list", "table", "ip", name], capture_output=True).returncode == 0


def answers(address: str, port: int) -> bool:
    socket.create_connection((address, port), timeout=2).close()
    return True


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=2) as answer:
        return answer.read()


def link(source: str, destination: str) -> str:
    if source.endswith(".db"):
        return shutil.copy2(source, destination)
    os.link(source, destination)
    return destination
