"""Rehearses a stack on this computer: python -m tools.rehearse STACK

Runs the real program and engine on a real Kubernetes with one node, or on real machines behind a firewall instead of
Compute Engine's. Creates the cluster; preempts, deletes and adds workers; waits until an idle cluster has stopped them;
starts them again, runs a Dask job, and destroys everything. The stack's file does not change, and the rehearsal can
reach no account (rehearsal/environment.py).
"""

import ipaddress
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from daskstack import client_output, configuration, engine, kubectl, wake_machines
from daskstack.client_output import Google, KubernetesClient, MachinesClient
from daskstack.configuration import KEY, StackKind
from daskstack.connection import Client
from daskstack.engine import PROJECT
from daskstack.route import wake
from on_this_computer.send_environment import collect
from rehearsal.environment import environment as rehearsal_environment
from settings import LOCAL_RELEASES, SettingsError, parse
from settings.common import JUPYTER_LOCK
from tools import cloud_leftovers, install
from tools.running import InstallError, say


class Rehearsal:
    """A stack's program on this computer, with state and settings in a separate folder."""

    def __init__(self, stack: str, folder: Path) -> None:
        self.stack, self.folder, self.project = stack, folder, PROJECT
        self.environ = rehearsal_environment(folder / "state") | {"KUBECACHEDIR": str(folder / "kubecache")}
        self.settings = folder / f"Pulumi.{stack}.yaml"
        shutil.copy(PROJECT / "Pulumi.yaml", folder)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "rehearsal.kubernetes", *words, str(self.folder / "kubernetes")]

    def start(self, config: dict[str, Any]) -> None:
        """Starts a Kubernetes, or prepares a rehearsed Google Cloud that creates one, or machines, on request."""
        cluster = config["config"][KEY]
        if cluster["target"] == "machines":
            self._google(config)
            self._machines(cluster)
            return
        locks = [cluster.get("environment", {}).get("lock", "environment.lock"), "charts/jupyter.lock"]
        words = ["up", *(word for lock in locks for word in ("--lock", str(PROJECT / lock)))]
        if cluster["cluster"]["source"] == "existing":
            found = json.loads(self.kubernetes(*words))
            self.set(config, found["kubeconfig"], found["context"])
            return
        self._google(config)
        # These commands reach the package index, which the certificate authority below does not cover.
        alone = ["env", "--unset=SSL_CERT_FILE"]
        commands = {
            "command": [*alone, *self.command(*words, "--small")],
            "down": [*alone, *self.command("down")],
            "cwd": str(PROJECT),
        }
        self.environ |= {
            "DASKSTACK_REHEARSAL_KUBERNETES": json.dumps(commands),
            "SSL_CERT_FILE": str(self.folder / "gcp" / "ca.pem"),  # for the cluster's endpoint
        }

    def _google(self, config: dict[str, Any]) -> None:
        self.settings.write_text(yaml.safe_dump(config))
        stand_ins = str(PROJECT / "rehearsal" / "cloud")
        path = self.environ["PATH"].removeprefix(stand_ins + os.pathsep)
        self.environ |= {
            "DASKSTACK_REHEARSAL": str(self.folder),
            "GOOGLE_COMPUTE_CUSTOM_ENDPOINT": "http://199.36.153.8/compute/v1/",  # see rehearsal/google
            "GOOGLE_OAUTH_ACCESS_TOKEN": "rehearsal",
            "PATH": f"{stand_ins}{os.pathsep}{path}",
        }

    def _machines(self, cluster: dict[str, Any]) -> None:
        environment = cluster.get("environment", {})
        jupyter = PROJECT / JUPYTER_LOCK if cluster.get("jupyter", {}).get("enabled", True) else None
        python = environment.get("python", "3.11")
        wheels = collect(PROJECT / environment.get("lock", "environment.lock"), python, "wheelhouse", jupyter)
        image = ["bash", str(PROJECT / "on_this_computer" / "local_machines" / "image.sh")]
        cache = os.environ | {"CACHE": str(engine.cache_folder()), "RELEASE": LOCAL_RELEASES.get(python, "bookworm")}
        machines = {
            "command": [sys.executable, "-m", "rehearsal.compute"],
            "cwd": str(PROJECT),
            "image": subprocess.run(image, env=cache, stdout=subprocess.PIPE, text=True, check=True).stdout.strip(),
            "packages": str(wheels / "wheels"),
        }
        [door, *_] = cluster.get("firewall", {}).get("ssh", []) or ["203.0.113.7/32"]
        self.environ |= {
            "DASKSTACK_REHEARSAL_MACHINES": json.dumps(machines),
            # This computer gets an address that the stack's firewall allows.
            "DASKSTACK_REHEARSAL_CALLER": str(ipaddress.ip_network(door)[0]),
        }

    def kubernetes(self, *words: str) -> str:
        return subprocess.run(self.command(*words), cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True).stdout

    def set(self, config: dict[str, Any], kubeconfig: str, context: str) -> None:
        """Writes the settings to a copy of the stack's file, because the engine writes into it, too."""
        config["config"][KEY]["cluster"] |= {"kubeconfig": kubeconfig, "context": context}
        self.settings.write_text(yaml.safe_dump(config))

    def read(self) -> dict[str, Any]:
        """The stack's settings. Its file is copied, because the engine writes into it."""
        shutil.copy(configuration.file(self.stack), self.settings)
        for words in (("stack", "select", "--create"), configuration.SHOW):
            done = self.pulumi(*words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"Pulumi cannot read {self.settings.name}: {done.stderr.strip()}")
        return configuration.settings(done.stdout, self.stack)

    def pulumi(self, *words: str, check: bool = True, **kwargs) -> subprocess.CompletedProcess:
        program = words[0] in ("up", "preview", "destroy", "refresh")
        command = [str(engine.engine()), "--cwd", str(self.project if program else self.folder), *words]
        command += ["--stack", self.stack, *(["--config-file", str(self.settings)] if program else [])]
        return subprocess.run(command, env=self.environ, check=check, **kwargs)

    def up(self, *options: str) -> None:
        self.pulumi("stack", "select", "--create")
        self.pulumi("up", "--yes", "--skip-preview", *options)

    def destroy(self) -> None:
        self.pulumi("destroy", "--yes", "--skip-preview")

    def outputs(self) -> dict[str, Any]:
        shown = self.pulumi("stack", "output", "--json", "--show-secrets", stdout=subprocess.PIPE, text=True)
        return json.loads(shown.stdout)

    def client(self) -> MachinesClient | KubernetesClient:
        return client_output.parse(self.outputs()["client"])

    def down(self) -> None:
        """Removes the machines or the Kubernetes, even if `destroy` failed."""
        if "DASKSTACK_REHEARSAL_MACHINES" in self.environ:
            sweep = [sys.executable, "-m", "rehearsal.compute", "sweep"]
            subprocess.run(sweep, cwd=PROJECT, env=self.environ, check=True)
        else:
            self.kubernetes("down")

    def stop(self) -> None:
        self.down()
        shutil.rmtree(self.folder)


class Phases:
    """Announces phases and measures their times."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Generator[None]:
        say(f"== {phase}")
        start = time.monotonic()
        try:
            yield
        finally:
            self.times[phase] = time.monotonic() - start


IDLE = 60  # seconds; replaces the stack's own limit in the last phases
PATIENCE = 180  # seconds for workers to stop or to start


def workers(client: KubernetesClient) -> list[str]:
    """The pods of workers, including those that are terminating."""
    selector = "release=dask,component notin (scheduler,jupyter,check,job)"
    which = ["get", "pods", "--selector", selector, "--output", "name"]
    with kubectl.kubectl(client.kubernetes) as command:
        words = [*command, "--namespace", client.namespace, *which]
        return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def until(what: str, reached: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        if time.monotonic() > end:
            raise engine.EngineError(f"{what} within {PATIENCE} s")
        time.sleep(1)


def in_kubernetes(rehearsal: Rehearsal, config: dict[str, Any], phase: Phases) -> None:
    """Adds a worker to a release, waits until idle workers have stopped, and starts them again."""
    settings = config["config"][KEY]
    if settings.get("chart") == "official":
        return
    pods = settings.setdefault("workers", {})
    if "max" in pods:
        pods["max"] += 1
    else:
        pods["replicas"] = pods.get("replicas", 3) + 1
    settings["limits"] = {"idle": f"{IDLE}s"}
    with phase(f"one worker added, idle after {IDLE} s"):
        rehearsal.start(config)
        rehearsal.up()
    client = rehearsal.client()
    assert isinstance(client, KubernetesClient)
    with phase("asleep: no work"):
        until("the workers did not stop", lambda: not workers(client))
    awake(client, phase)


def on_machines(rehearsal: Rehearsal, config: dict[str, Any], phase: Phases) -> None:
    """Preempts, deletes and adds workers, waits until idle machines have switched off, and starts them again."""
    settings, google = config["config"][KEY], google_of(rehearsal.client())
    machines = settings["machines"]

    workers = machines.get("workers", 2)
    preempted = machines.get("worker", {}).get("spot") and workers > 1
    with phase("one worker preempted, one deleted" if preempted else "one worker deleted"):
        if preempted:
            wake_machines.gcloud(google, "simulate-maintenance-event", "worker-2")
        wake_machines.gcloud(google, "delete", "worker-1")
        rehearsal.up("--refresh")
    machines["workers"] = workers + 1
    settings["limits"] = {"idle": f"{IDLE}s"}
    with phase(f"one worker added, idle after {IDLE} s"):
        rehearsal.start(config)
        rehearsal.up("--refresh")
    client = rehearsal.client()
    with phase("asleep: no work"):
        until(
            "the machines did not switch themselves off",
            lambda: set(wake_machines.statuses(google_of(client)).values()) == {"TERMINATED"},
        )
    awake(client, phase)


def google_of(client: MachinesClient | KubernetesClient) -> Google:
    assert isinstance(client, MachinesClient) and client.google
    return client.google


def awake(client: MachinesClient | KubernetesClient, phase: Phases) -> None:
    with phase("awake: a job's result"):
        say(f"starting {wake(client)} workers")
        with Client(client) as dask:
            dask.submit(sum, range(10)).result(timeout=PATIENCE)


def refuse_mistakes(settings: dict[str, Any]) -> None:
    """Rejects wrong settings before anything starts, except kubeconfig and firewall, which a rehearsal replaces."""
    bounds = {"min", "max"} & (settings.get("workers") or {}).keys()
    if settings.get("target") == "machines" and bounds:
        raise RuntimeError(
            "a rehearsal cannot start and stop machines with their workers: rehearse a copy of the stack file without"
            f" workers.{' and workers.'.join(sorted(bounds))}"
        )
    try:
        parse(settings, PROJECT)
    except SettingsError as error:
        own = (f"{KEY}.cluster.kubeconfig: ", f"{KEY}.firewall.ssh: ")
        if problems := [problem for problem in error.problems if not problem.startswith(own)]:
            raise RuntimeError("\n  ".join(["the stack's settings cannot be rehearsed", *problems])) from None


def main(stack: str) -> None:
    stack = Path(stack).name  # a rehearsal has no organization
    file = configuration.file(stack)
    with tempfile.TemporaryDirectory() as folder:
        settings = Rehearsal(stack, Path(folder)).read()
    kind = StackKind.of(settings)
    if kind.target != "kubernetes" and not kind.compute:
        raise RuntimeError(
            f"{file.name} is neither `target: kubernetes` nor machines of Google Cloud: only these can be rehearsed"
        )
    refuse_mistakes(settings)
    install.main(["compute" if kind.compute else "kubernetes"])
    config = yaml.safe_load(file.read_text())  # for its other keys, whose secrets stay encrypted
    config["config"] = (config.get("config") or {}) | {KEY: settings}
    rehearsal, phase = Rehearsal(stack, engine.data_folder() / "rehearsal" / stack), Phases()
    try:
        with phase("from nothing"):
            rehearsal.start(config)
        os.environ.clear()  # removes the caller's logins
        os.environ.update(rehearsal.environ)
        with phase("pulumi up"):
            rehearsal.up()
        table = rehearsal.outputs()["check"]
        (on_machines if kind.compute else in_kubernetes)(rehearsal, config, phase)
        with phase("pulumi destroy"):
            rehearsal.destroy()
        if kind.google:
            say(cloud_leftovers.report(stack, kind.project))
    finally:
        with phase("clean-up"):
            rehearsal.stop()
    print(f"\n{table}")
    for name, seconds in phase.times.items():
        print(f"{name:<40} {seconds:4.0f} s")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (InstallError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {' '.join(map(str, error.cmd[:6]))} ... ended with {error.returncode}; its output is above")
