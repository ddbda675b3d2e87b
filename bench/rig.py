"""Shared by all parts: new machines, the program with its own stack, and a stopwatch."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.figures import Operation
from daskstack import engine
from rehearsal.machines import SUDO, Machine, Stack, call

STACK = "mine"
ADMIN = "admin"  # the machines' login user


class BenchError(RuntimeError):
    """A measured command failed; the message contains its last lines."""


@dataclass(frozen=True)
class Run:
    """A successful command."""

    seconds: float
    lines: list[tuple[float, str]]
    """Its output: each line with its seconds since the start."""


def run(
    command: Sequence[str | Path],
    *,
    text_in: str = "",
    limit: float = 600,
    beside: Callable[[int], Any] | None = None,
    **kwargs: Any,
) -> Run:
    """Runs and times a command. `beside` gets its process ID, in a thread that must end with the process."""
    with tempfile.TemporaryFile("w+") as stdin:
        stdin.write(text_in)
        stdin.seek(0)
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True, **kwargs,
        )  # fmt: skip
    watch = threading.Timer(limit, _end, [process])
    observer = threading.Thread(target=beside, args=[process.pid]) if beside else None
    lines = []
    try:
        watch.start()
        if observer:
            observer.start()
        assert process.stdout  # because stdout=PIPE above
        for line in process.stdout:
            lines.append((time.monotonic() - started, line.rstrip()))
        process.wait()
        seconds = time.monotonic() - started
    finally:
        watch.cancel()
        _end(process)
        if process.stdout:
            process.stdout.close()
        if observer:
            observer.join()
    if process.returncode:
        end = "\n".join(line for _, line in lines[-40:])
        raise BenchError(f"{Path(command[0]).name} ended with {process.returncode} after {seconds:.0f} s:\n{end}")
    return Run(seconds, lines)


def _end(process: subprocess.Popen) -> None:
    """Stops a process group, first with SIGINT, so that an engine can stop its plugins."""
    for number, patience in ((signal.SIGINT, 15), (signal.SIGKILL, 5)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


class Fleet:
    """Machines on a separate network. A machine keeps its address when it is created again."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.network = stack.network

    def fresh(self, *names: str) -> list[Machine]:
        """Only these machines, newly created."""
        self._stack.remove(*self._stack.machines)
        self._stack.machines.clear()
        return self.add(*names)

    def add(self, *names: str) -> list[Machine]:
        self._stack.boot(*names)
        return list(self._stack.machines.values())


class Rig:
    """Creates fleets, and programs in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        self.image = call("image.sh", CACHE=str(engine.cache_folder()))

    @contextmanager
    def fleet(self, name: str) -> Generator[Fleet]:
        """Machines that are removed at the end."""
        stack = Stack(f"bench-{name}", Path(tempfile.mkdtemp(prefix="daskstack-")), self.image, self.key)
        try:
            yield Fleet(stack)
        finally:
            stack.down()

    def program(self, name: str) -> "Program":
        folder = self.folder / name
        folder.mkdir()
        return Program(folder, self.key)

    def scratch(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))


class Program:
    """A copy of the project whose stack `mine` has existing machines; `fresh` empties its state."""

    def __init__(self, folder: Path, key: Path) -> None:
        self.folder, self._key, self._count = folder / "project", key, 0
        ignored = shutil.ignore_patterns(".git", ".venv", "*cache*", "Pulumi.*.yaml", "tests")
        shutil.copytree(engine.PROJECT, self.folder, ignore=ignored)
        self.folder.joinpath(".venv").symlink_to(sys.prefix)
        private = folder / "private"
        private.mkdir(mode=0o700)
        own = {"XDG_DATA_HOME": str(folder / "data"), "XDG_RUNTIME_DIR": str(private)}
        self._own = os.environ | own | {"PULUMI_CONFIG_PASSPHRASE": "of the bench"}

    def fresh(self) -> None:
        """Creates a new, empty stack."""
        self._count += 1
        state = self.folder.parent / f"state-{self._count}"
        state.mkdir()
        environ = self._own | {"PULUMI_BACKEND_URL": state.as_uri()}
        self._environ = environ | engine.variables(STACK, environ)
        self._file.unlink(missing_ok=True)
        self._pulumi("stack", "init", STACK)
        self._pulumi("config", "set", "--secret", "dask:sshKey", "--stack", STACK, "--", self._key.read_text())

    def describe(self, cluster: dict[str, Any]) -> None:
        """Writes the stack's settings."""
        stack = yaml.safe_load(self._file.read_text())
        stack["config"]["dask:cluster"] = cluster
        self._file.write_text(yaml.safe_dump(stack))

    @property
    def _file(self) -> Path:
        return self.folder / f"Pulumi.{STACK}.yaml"

    def up(self, *words: str) -> Run:
        return self._pulumi("up", "--yes", "--skip-preview", "--stack", STACK, *words)

    def preview(self, beside: Callable[[int], Any]) -> Run:
        return self._pulumi("preview", "--stack", STACK, beside=beside)

    def deployment(self) -> list[dict[str, Any]]:
        """The stack's resources in order of their dependencies, with decrypted secrets."""
        return json.loads(self._told("stack", "export"), object_hook=_revealed)["deployment"]["resources"]

    def output(self, name: str) -> Any:
        return json.loads(self._told("stack", "output", name, "--json"))

    def _told(self, *words: str) -> str:
        return "\n".join(line for _, line in self._pulumi(*words, "--show-secrets", "--stack", STACK).lines)

    def _pulumi(self, *words: str, **kwargs: Any) -> Run:
        command = [str(engine.engine()), "--non-interactive", *words]
        return run(command, cwd=self.folder, env=self._environ, **kwargs)


def _revealed(value: dict[str, Any]) -> Any:
    return json.loads(value["plaintext"]) if "plaintext" in value else value


def cluster(machines: Sequence[Machine], network: str, **more: Any) -> dict[str, Any]:
    """Settings of a cluster on these machines; the first one is the scheduler's.

    A single machine runs both the scheduler and a worker.
    """
    hosts = [{"name": m.name, "address": m.address, "user": ADMIN, "hostKey": m.host_key} for m in machines]
    source = {"source": "existing", "hosts": hosts, "network": network, "schedulerWorks": len(hosts) == 1}
    # The machines of the bench cannot reach a package index.
    common = {"environment": {"source": "wheelhouse"}, "jupyter": {"enabled": False}}
    return {"target": "machines", "machines": source, **common, **more}


def ssh_connections(machines: Sequence[Machine]) -> int:
    """The number of our SSH connections so far, from the machines' journals."""
    count = f"journalctl -q -o cat -t sshd | grep -c 'Accepted publickey for {ADMIN}' || true"
    return sum(int(inside(machine, count)) for machine in machines)


def inside(machine: Machine, script: str) -> str:
    """The output of a script that root runs on the machine, without SSH."""
    command = [*SUDO, "nsenter", "--target", str(machine.pid), "--all", "bash", "-s"]
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise BenchError(f"on {machine.name}, status {done.returncode}: {done.stderr}")
    return done.stdout


@contextmanager
def rig() -> Generator[Rig]:
    """A rig; its machines, processes and folder are removed at the end, even after Ctrl-C."""

    def stop(*_: object) -> None:
        # A second signal must not interrupt the cleanup.
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        signal.signal(number, stop)
    with tempfile.TemporaryDirectory(prefix="daskstack-bench-") as folder:
        yield Rig(Path(folder))


def steps(done: Run) -> list[Operation]:
    """The Commands that the engine ran, with their times."""
    started: dict[str, float] = {}
    found = []
    for seconds, line in done.lines:
        match = re.match(r"\s*[+~-]+\s+command:\S+ (\S+) (\w+)", line)
        if not match:
            continue
        name, word = match.groups()
        if word in ("creating", "updating", "deleting"):
            started.setdefault(name, seconds)
        elif word in ("created", "updated", "deleted") and name in started:
            found.append(Operation(name, started[name], seconds))
    return found
