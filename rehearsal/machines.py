"""Real machines on this computer, for tests and the bench: the scripts of on_this_computer/local_machines."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from daskstack.engine import PROJECT

SCRIPTS = PROJECT / "on_this_computer" / "local_machines"
SUDO = [] if os.geteuid() == 0 else ["sudo", "-n"]


class CommandError(RuntimeError):
    """A command failed or took too long; the message has what it printed."""


def run(
    command: Sequence[str | Path],
    *,
    seconds: float,
    stdin: str = "",
    check: bool = True,
    together: bool = False,
    **options,
) -> subprocess.CompletedProcess[str]:
    """Runs a command; `options` go to `subprocess.Popen`, and `together` makes one text of its two outputs.

    Shows all that it said where it fails (with `check`), has not ended in time, or pytest's own limit comes first.
    """
    with contextlib.ExitStack() as files:
        # Not pipes: a program that a killed command has started may hold them open for ever.
        given, out, err = (files.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(3))
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(
            command, stdin=given, stdout=out, stderr=out if together else err, start_new_session=True, **options
        )

        def said() -> tuple[str, str]:
            out.seek(0), err.seek(0)
            return out.read(), err.read()

        try:
            process.wait(seconds)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"{shlex.join(map(str, command))} was ended. It had said:", *said(), sep="\n")
            if isinstance(error, subprocess.TimeoutExpired):
                raise CommandError(f"{command[0]} had not ended after {seconds} s; what it said is shown") from None
            raise
        done = subprocess.CompletedProcess(command, process.returncode, *said())
    if check and done.returncode:
        raise CommandError(f"{shlex.join(map(str, command))} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def as_root(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run([*SUDO, *command], seconds=120, check=check)


def call(script: str, *arguments: str, **variables: str) -> str:
    """What a script of on_this_computer/local_machines prints. Raises with its messages where it fails."""
    done = run(["bash", SCRIPTS / script, *arguments], env=os.environ | variables, seconds=500, check=False)
    if done.returncode:
        raise CommandError(done.stderr)
    return done.stdout.strip()


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Waits for it to be so. The limit is for a computer that is busy with other things, too."""
    end, pause = time.monotonic() + seconds, 0.1
    while not condition():
        assert time.monotonic() < end, f"not so within {seconds} s"
        time.sleep(pause)
        pause = min(0.5, pause * 1.2)  # many conditions take a login to look at, which is work for the processor


def write_whole(path: Path, text: str) -> Path:
    """Writes a file that another thread's command may be reading: it is never seen empty."""
    new = Path(tempfile.mkstemp(dir=path.parent)[1])  # only its owner can read it
    new.write_text(text)
    return new.rename(path)


@dataclass(frozen=True)
class Machine:
    """A machine that has booted."""

    name: str
    address: str
    id: str
    host_key: str
    bridge: str
    folder: Path
    key: Path
    port: int = 22

    def ssh(
        self, command: str, user: str = "admin", stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command over SSH, its host key verified. With `check`, a failure shows what it printed."""
        known_hosts = self.key.with_name(f"known_hosts-{self.id}")
        write_whole(known_hosts, f"{self.address} {self.host_key}\n")
        options = {
            "IdentitiesOnly": "yes", "BatchMode": "yes", "ControlMaster": "no", "ConnectTimeout": "30",
            "StrictHostKeyChecking": "yes", "UserKnownHostsFile": known_hosts, "GlobalKnownHostsFile": "none",
            "HostKeyAlgorithms": "ssh-ed25519", "HostKeyAlias": self.address, "Port": self.port,
        }  # fmt: skip
        words = [f"-o{name}={value}" for name, value in options.items()]
        ssh = ["ssh", "-F", "none", "-i", self.key, *words, f"{user}@{self.address}", command]
        done = run(ssh, stdin=stdin or "", seconds=400, check=False)
        if check and done.returncode:
            raise CommandError(f"{self.name}: {command!r} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def run(
        self, script: str, variables: Mapping[str, str] | None = None, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs a bash script as root, as a step is run: assignments and script on stdin."""
        assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in (variables or {}).items())
        command = shlex.join(["sudo", "-n", "bash", "-s", "--", *arguments])
        return self.ssh(command, stdin=assignments + script, check=check)

    def is_on(self) -> bool:
        """Its supervisor holds a lock as long as it lives."""
        return as_root("flock", "--nonblock", str(self.folder / "running"), "true", check=False).returncode == 1

    def logins(self) -> int:
        """How often `up` or a test has logged in, this time included."""
        # sshd's line is in the journal a moment after the login.
        count = "sudo journalctl --sync && sudo journalctl -t sshd | grep -c 'Accepted publickey for admin'"
        return int(self.ssh(count).stdout)

    def reboot(self) -> None:
        """Until it starts anew: the old one answers for a while yet."""
        old = self.pid

        def is_new() -> bool:
            try:
                return self.pid != old
            except (IndexError, CommandError):
                return False  # there is no process 1 between the two

        self.ssh("sudo -n systemctl reboot", check=False)
        until(is_new)

    @property
    def pid(self) -> int:
        """The machine's process 1, as this computer numbers it: `nsenter --target PID --net ...`."""
        groups = as_root("findmnt", "-rn", "-o", "TARGET", "-t", "cgroup2").stdout.splitlines()[0]
        scope = f"{groups}/{self.bridge}-{self.name}/payload/init.scope"
        return int(as_root("cat", f"{scope}/cgroup.procs").stdout.split()[0])


class Stack:
    """The network of one stack, and its machines."""

    def __init__(self, name: str, directory: Path, image: str, key: Path) -> None:
        self.name, self.directory, self.image, self.key = name, directory, image, key
        self.machines: dict[str, Machine] = {}
        self._numbers: dict[str, int] = {}
        self.up()

    def up(self) -> None:
        printed = json.loads(call("network.sh", "up", DIRECTORY=str(self.directory), NAME=self.name))
        self.bridge: str = printed["bridge"]
        self.network: str = printed["network"]
        self.gateway: str = printed["gateway"]

    def variables(self, name: str) -> dict[str, str]:
        """What machine.sh takes for the machine of this name."""
        number = self._numbers.setdefault(name, 11 + len(self._numbers))
        return {
            "DIRECTORY": str(self.directory), "NAME": name, "IMAGE": self.image, "BRIDGE": self.bridge,
            "NETWORK": self.network, "NUMBER": str(number),
            "AUTHORIZED_KEY": self.key.with_suffix(".pub").read_text().strip(),
        }  # fmt: skip

    def boot(self, *names: str, **variables: str) -> list[Machine]:
        """Machines of these names, booted all at once; those that run already stay as they are."""
        settings = [self.variables(name) | variables for name in names]
        with ThreadPoolExecutor() as pool:
            printed = list(pool.map(lambda v: json.loads(call("machine.sh", "up", **v)), settings))
        for name, p in zip(names, printed, strict=True):
            self.machines[name] = Machine(
                name, p["address"], p["id"], p["hostKey"], self.bridge, self.directory / name, self.key
            )
        return [self.machines[name] for name in names]

    def remove(self, *names: str) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: call("machine.sh", "down", **self.variables(name)), names))

    def down(self) -> None:
        """Everything goes, also machines whose boot failed."""
        try:
            self.remove(*self._numbers)
        finally:
            call("network.sh", "down", DIRECTORY=str(self.directory), NAME=self.name)
