"""Real machines on this computer for tests and the bench, using the scripts of on_this_computer/local_machines."""

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
    """A command failed or timed out. The message contains its output."""


def run(
    command: Sequence[str | Path],
    *,
    seconds: float,
    stdin: str = "",
    check: bool = True,
    together: bool = False,
    **options,
) -> subprocess.CompletedProcess[str]:
    """Run a command. `options` are passed to `subprocess.Popen`; `together` merges stderr into stdout.

    Shows the output if the command fails (with `check`) or times out, or if pytest's own timeout fires first.
    """
    with contextlib.ExitStack() as files:
        # Use files rather than pipes, which a child of a killed command may hold open forever.
        given, out, err = (files.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(3))
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(
            command, stdin=given, stdout=out, stderr=out if together else err, start_new_session=True, **options
        )

        def output() -> tuple[str, str]:
            out.seek(0), err.seek(0)
            return out.read(), err.read()

        try:
            process.wait(seconds)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"{shlex.join(map(str, command))} was killed. Its output so far:", *output(), sep="\n")
            if isinstance(error, subprocess.TimeoutExpired):
                raise CommandError(f"{command[0]} timed out after {seconds} s; its output is above") from None
            raise
        done = subprocess.CompletedProcess(command, process.returncode, *output())
    if check and done.returncode:
        raise CommandError(
            f"{shlex.join(map(str, command))} failed with status {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done


def as_root(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run([*SUDO, *command], seconds=120, check=check)


def call(script: str, *arguments: str, **variables: str) -> str:
    """Run a script of on_this_computer/local_machines, and return its output. Raises CommandError with its messages."""
    done = run(["bash", SCRIPTS / script, *arguments], env=os.environ | variables, seconds=500, check=False)
    if done.returncode:
        raise CommandError(done.stderr)
    return done.stdout.strip()


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until `condition` is true. The timeout allows for a busy computer."""
    end, pause = time.monotonic() + seconds, 0.1
    while not condition():
        assert time.monotonic() < end, f"timed out after {seconds} s"
        time.sleep(pause)
        pause = min(0.5, pause * 1.2)  # many conditions need a login, which costs CPU time


def write_whole(path: Path, text: str) -> Path:
    """Write a file atomically, because a command of another thread may be reading it."""
    new = Path(tempfile.mkstemp(dir=path.parent)[1])  # readable only by its owner
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
        """Run a command over SSH with host key verification. With `check`, raises an error that contains the output."""
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
            raise CommandError(
                f"{self.name}: {command!r} failed with status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def run(
        self, script: str, variables: Mapping[str, str] | None = None, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a bash script as root like a step: with assignments and script on stdin."""
        assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in (variables or {}).items())
        command = shlex.join(["sudo", "-n", "bash", "-s", "--", *arguments])
        return self.ssh(command, stdin=assignments + script, check=check)

    def make_read_ahead_writable(self) -> None:
        """Let the machine set the read-ahead of its mounts, as on a real machine; otherwise, its /sys is read-only."""
        script = """
        mount -t sysfs sysfs /mnt && mount -o remount,rw /mnt
        mount --bind /mnt/devices/virtual/bdi /sys/devices/virtual/bdi
        umount /mnt
        """
        as_root("nsenter", "--target", str(self.pid), "--all", "sh", "-ec", script)

    def is_on(self) -> bool:
        """Whether the machine's supervisor is running, which holds a lock."""
        return as_root("flock", "--nonblock", str(self.folder / "running"), "true", check=False).returncode == 1

    def logins(self) -> int:
        """The number of logins so far, including this one."""
        # sshd's line reaches the journal shortly after the login.
        count = "sudo journalctl --sync && sudo journalctl -t sshd | grep -c 'Accepted publickey for admin'"
        return int(self.ssh(count).stdout)

    def reboot(self) -> None:
        """Reboot, and wait until the new boot has begun; the old system still answers for a while."""
        old = self.pid

        def is_new() -> bool:
            try:
                return self.pid != old
            except (IndexError, CommandError):
                return False  # there is no init between the two boots

        self.ssh("sudo -n systemctl reboot", check=False)
        until(is_new)

    @property
    def pid(self) -> int:
        """The process ID of the machine's init on this computer, e.g. for `nsenter --target PID --net ...`."""
        groups = as_root("findmnt", "-rn", "-o", "TARGET", "-t", "cgroup2").stdout.splitlines()[0]
        scope = f"{groups}/{self.bridge}-{self.name}/payload/init.scope"
        return int(as_root("cat", f"{scope}/cgroup.procs").stdout.split()[0])


class Stack:
    """The network and the machines of one stack."""

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
        """The variables of machine.sh for the machine with this name."""
        number = self._numbers.setdefault(name, 11 + len(self._numbers))
        return {
            "DIRECTORY": str(self.directory), "NAME": name, "IMAGE": self.image, "BRIDGE": self.bridge,
            "NETWORK": self.network, "NUMBER": str(number),
            "AUTHORIZED_KEY": self.key.with_suffix(".pub").read_text().strip(),
        }  # fmt: skip

    def boot(self, *names: str, **variables: str) -> list[Machine]:
        """Boot machines with these names at the same time. Running ones are left unchanged."""
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
        """Remove everything, including machines that failed to boot."""
        try:
            self.remove(*self._numbers)
        finally:
            call("network.sh", "down", DIRECTORY=str(self.directory), NAME=self.name)
