"""Projects for the real engine, and a real SSH server on loopback."""

import contextlib
import getpass
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from daskstack import engine
from daskstack.engine import PROJECT as SOURCE
from rehearsal import programs

PROJECT = "engine-tests"
PATIENCE = 300  # seconds until a hanging `pulumi` is killed
PROGRAMS = SOURCE / "rehearsal" / "cloud"
# The outputs of the rehearsed cloud's resources that a program may read.
OUTPUTS = ["address", "controlPlaneEndpointsConfig", "email", "endpoint", "gatewayAddress", "masterAuth", "member"]
OUTPUTS += ["networkInterfaces", "selfLink"]


def wait_for(what: str, condition: Callable[[], Any], *, seconds: float = 60) -> None:
    """Waits until `condition()` is true. Fails with `what` after a time that no healthy run needs."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"timed out after {seconds} s: {what}")
        time.sleep(0.05)


def processes(word: str) -> set[int]:
    """The ids of the processes whose command line contains `word`."""
    return {each.pid for each in psutil.process_iter(["cmdline"]) if word in " ".join(each.info["cmdline"] or ())}


def descendants(pid: int) -> set[int]:
    """The ids of all running descendants of process `pid`."""
    try:
        return {each.pid for each in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def is_secret(value: Any) -> bool:
    return isinstance(value, dict) and "ciphertext" in value


def plugin(environment: dict[str, str], kind: str, name: str, version: str) -> Path:
    """The plugin that the engine uses if Pulumi.yaml names none."""
    file = f"pulumi-{kind}-{name}"
    ambient = kind == "language" or not environment.get("PULUMI_IGNORE_AMBIENT_PLUGINS")
    if ambient and (found := shutil.which(file, path=environment["PATH"])):
        return Path(found)
    home = environment.get("PULUMI_HOME") or engine.pulumi_home(environment)
    return Path(home) / "plugins" / f"{kind}-{name}-v{version}" / file


def is_stand_in(path: Path) -> bool:
    """Whether a plugin is a stand-in: these are in our cache, to which nothing else writes."""
    return path.resolve().is_relative_to(engine.cache_folder() / "plugins")


def kubernetes_is_built(environment: dict[str, str]) -> bool:
    """Whether the plugin `kubernetes` is the one that we build, about 4.25."""
    found = plugin(environment, "resource", "kubernetes", engine.KUBERNETES_PLUGIN)
    return found.resolve() == programs.kubernetes_plugin()


def with_official(environment: dict[str, str], folder: Path, name: str, version: str) -> dict[str, str]:
    """A rehearsal's environment with Pulumi's own plugin instead of the stand-in, if the caller has installed it."""
    own = engine.pulumi_home() / "plugins" / f"resource-{name}-v{version}"
    if not own.exists():
        return environment
    home = folder / "home"
    stand_ins = {each.name: each for each in Path(environment["PULUMI_HOME"], "plugins").iterdir()}
    for plugin in (stand_ins | {own.name: own}).values():
        there = home / "plugins" / plugin.name  # the engine does not follow links to plugin folders
        there.mkdir(parents=True)
        for file in plugin.iterdir():
            (there / file.name).symlink_to(file)
    return environment | {"PULUMI_HOME": str(home)}


PRELUDE = """
import pulumi
from pulumi_command import local, remote

secret = pulumi.Output.secret
"""


@dataclass
class Project:
    """A project with one stack and its own backend; its program is PRELUDE followed by the given text."""

    folder: Path
    environment: dict[str, str]
    lines: list[tuple[float, str]] = field(default_factory=list)

    def write(self, program: str, *, options: str = f"{{virtualenv: {sys.prefix}}}") -> None:
        runtime = f"{{name: python, options: {options}}}"
        self.folder.joinpath("Pulumi.yaml").write_text(f"name: {PROJECT}\nruntime: {runtime}\n")
        self.folder.joinpath("__main__.py").write_text(PRELUDE + program)
        # Python's bytecode cache cannot tell two programs of equal length within one second apart.
        shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)

    @contextlib.contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A running `pulumi`; its remaining processes are killed at the end of the block."""
        process = subprocess.Popen(
            ["pulumi", *arguments, "--non-interactive"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        watch = threading.Timer(PATIENCE, process.kill)
        watch.start()
        try:
            yield process
        finally:
            watch.cancel()
            process.kill()
            process.wait()
            process.stdout.close()

    def run(self, *arguments: str, succeeds: bool = True) -> str:
        """Runs `pulumi` and returns its output. Fails the test if the exit status is not as expected."""
        self.lines = []
        with self.started(*arguments) as process:
            assert process.stdout
            self.lines = [(time.monotonic(), line) for line in process.stdout]
            output = "".join(line for _, line in self.lines)
            assert (process.wait() == 0) == succeeds, output
        return output

    def up(self, program: str, *options: str) -> str:
        self.write(program)
        return self.run("up", "--yes", "--skip-preview", *options)

    def fails(self, program: str) -> str:
        """The engine's report on all failed resources at the end of an `up` that must fail."""
        self.write(program)
        output = self.run("up", "--yes", "--skip-preview", "--continue-on-error", succeeds=False)
        assert "Traceback" not in output
        return output[output.index("Diagnostics:") :]

    def preview(self, program: str) -> str:
        self.write(program)
        return self.run("preview")

    def outputs(self) -> dict[str, Any]:
        """The stack's outputs, read from the backend without the engine."""
        [file] = self.backend.rglob("stacks/*/*.json")
        resources = json.loads(file.read_text())["checkpoint"]["latest"]["resources"]
        [stack] = [each for each in resources if each["type"] == "pulumi:pulumi:Stack"]
        return {name: "[secret]" if is_secret(value) else value for name, value in stack.get("outputs", {}).items()}

    def seen(self, text: str) -> float:
        """The time at which the last run first printed `text`, on the clock of time.monotonic()."""
        return next(moment for moment, line in self.lines if text in line)

    def stored(self) -> str:
        """All files of the backend: states, histories, backups."""
        files = (path for path in self.backend.rglob("*") if path.is_file())
        return "\n".join(path.read_text(errors="replace") for path in files)

    @property
    def backend(self) -> Path:
        return Path(self.environment["PULUMI_BACKEND_URL"].removeprefix("file://"))


@dataclass
class Cloud:
    """A project with the folder of a rehearsed Google Cloud."""

    project: Project
    folder: Path

    def program(self, text: str, **config: Any) -> str:
        """A program: the definition of `make(kind, name, **properties)`, then the text."""
        provider = {"project": "my-project", "region": "us-central1", "zone": "us-central1-a"} | config
        return f"""
google = pulumi.ProviderResource("gcp", "google", {provider})


def make(kind, name, /, **properties):
    options = pulumi.ResourceOptions(provider=google)
    outputs = dict.fromkeys({OUTPUTS})
    return pulumi.CustomResource(f"gcp:{{kind}}", name, outputs | properties, options)


{text}
"""

    def up(self, text: str, **config: Any) -> str:
        return self.project.up(self.program(text, **config))

    def fails(self, text: str, **config: Any) -> str:
        return self.project.fails(self.program(text, **config))

    def preview(self, text: str) -> str:
        return self.project.preview(self.program(text))

    def destroy(self) -> str:
        return self.project.run("destroy", "--yes", "--skip-preview")

    @property
    def files(self) -> set[str]:
        folder = self.folder / "gcp"
        return {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.json")}

    def record(self, identity: str) -> dict[str, Any]:
        return json.loads((self.folder / "gcp" / f"{identity}.json").read_text())

    @property
    def node(self) -> dict[str, Any]:
        return json.loads((self.folder / "kubernetes" / "node").read_text())

    def run(self, program: str, *arguments: str, status: int = 0) -> str:
        command = [PROGRAMS / program, *arguments]
        done = subprocess.run(command, env=self.project.environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        return done.stdout or done.stderr

    def list(self, group: str, project: str = "my-project") -> list[dict[str, Any]]:
        return json.loads(
            self.run("gcloud", *group.split(), "list", "--project", project, "--format", "json", "--quiet")
        )


@dataclass
class Keys:
    """Key pairs by the path of the private key; the public key is next to it."""

    folder: Path

    def make(self, name: str, kind: str = "ed25519", passphrase: str = "") -> Path:
        path = self.folder / name
        if not path.exists():
            command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", name, "-f", str(path)]
            subprocess.run(command, check=True)
        return path

    def public(self, name: str) -> str:
        return self.folder.joinpath(f"{name}.pub").read_text().strip()

    def fingerprint(self, name: str) -> str:
        command = ["ssh-keygen", "-l", "-E", "sha256", "-f", str(self.folder / f"{name}.pub")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[1]


def free_port() -> int:
    """A free port below the kernel's ephemeral range, so that no other program gets it by chance."""
    choice = random.SystemRandom()  # pytest-randomly seeds every process equally
    while True:
        port = choice.randrange(20_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Sshd:
    """A real sshd on loopback, to which the test's user logs in with the key `user`."""

    def __init__(self, folder: Path, keys: Keys) -> None:
        self.folder, self.keys, self.port = folder, keys, free_port()
        self.log = folder / "log"
        self.log.touch()
        self._process: subprocess.Popen[bytes] | None = None
        shutil.copy(keys.folder / "user.pub", folder / "authorized_keys")

    def start(self, *settings: str) -> "Sshd":
        Path("/run/sshd").mkdir(exist_ok=True)
        config = self.folder / "sshd_config"
        config.write_text(
            "\n".join(
                [
                    f"Port {self.port}",
                    "ListenAddress 127.0.0.1",
                    f"HostKey {self.keys.folder}/host",
                    f"HostKey {self.keys.folder}/host-rsa",
                    f"AuthorizedKeysFile {self.folder}/authorized_keys",
                    "PidFile none",
                    "StrictModes no",
                    "UsePAM no",
                    "PasswordAuthentication no",
                    "MaxStartups 100",
                    "Subsystem sftp internal-sftp",
                    "LogLevel VERBOSE",
                    *settings,
                ]
            )
            + "\n"
        )
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        assert sshd, "sshd is missing: install openssh-server"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([sshd, "-D", "-e", "-f", config], stdin=subprocess.DEVNULL, stderr=log)
        wait_for("sshd listens", lambda: f"port {self.port}" in self.log.read_text())
        return self

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def stop(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(10)

    @property
    def connections(self) -> int:
        return self.log.read_text().count("Connection from")

    def connection(self, **more: Any) -> dict[str, Any]:
        """The `connection` of a remote resource: this server with its pinned host key and the user's key."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "private_key": self.keys.folder.joinpath("user").read_text(),
            "host_key": self.keys.public("host"),
            "dial_error_limit": 0,
        } | more
