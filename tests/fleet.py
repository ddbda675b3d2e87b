"""Real local machines, for tests."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "on_this_computer" / "local_machines"
SCAN = Path(__file__).parent / "scan.py"
SUDO = [] if os.geteuid() == 0 else ["sudo", "-n"]
OUTSIDE_ADDRESS = "198.51.100.1"  # set aside for examples (RFC 5737): in no cluster's network


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
                raise AssertionError(f"{command[0]} had not ended after {seconds} s; what it said is shown") from None
            raise
        done = subprocess.CompletedProcess(command, process.returncode, *said())
    if check and done.returncode:
        raise AssertionError(
            f"{shlex.join(map(str, command))} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done


def as_root(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run([*SUDO, *command], seconds=120, check=check)


def call(script: str, *arguments: str, **variables: str) -> str:
    """What a script of on_this_computer/local_machines prints. Raises with its messages where it fails."""
    done = run(["bash", SCRIPTS / script, *arguments], env=os.environ | variables, seconds=500, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
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
            raise AssertionError(f"{self.name}: {command!r} ended with {done.returncode}\n{done.stdout}{done.stderr}")
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
            except (IndexError, AssertionError):
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


class CommandLines:
    """Collects the command lines of all processes, as any user of this computer can read them, while it is open.

    Those of local machines are among them; `lines` has each with the process's control group, which names the machine.
    """

    def __enter__(self) -> "CommandLines":
        self.lines: set[tuple[str, str]] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            for process in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):  # it has ended
                    line = Path("/proc", process, "cmdline").read_bytes().decode(errors="replace")
                    group = Path("/proc", process, "cgroup").read_text().splitlines()[-1]
                    self.lines.add((group.removeprefix("0::"), line))


class Outside:
    """A place on the machines' bridge with an address that is not in the cluster's network."""

    def __init__(self, stack: Stack) -> None:
        self.namespace = f"{stack.bridge}-outside"
        as_root("ip", "netns", "add", self.namespace)
        as_root(
            *("ip", "-n", self.namespace, "link", "add", "link0", "up", "type", "veth"),
            *("peer", "name", "outside", "netns", stack.bridge),
        )
        as_root("ip", "-n", stack.bridge, "link", "set", "outside", "master", stack.bridge, "up")
        as_root("ip", "-n", self.namespace, "address", "add", f"{OUTSIDE_ADDRESS}/32", "dev", "link0")
        as_root("ip", "-n", self.namespace, "route", "add", stack.network, "dev", "link0")

    def connects(self, machine: Machine, port: int) -> bool:
        """Whether a TCP connection to the machine is made within 20 seconds. firewalld turns it away at once."""
        self._is_reached_by(machine)
        attempt = f"exec 3<>/dev/tcp/{machine.address}/{port}"
        command = ("ip", "netns", "exec", self.namespace, "timeout", "20", "bash", "-c", attempt)
        return as_root(*command, check=False).returncode == 0

    def open_ports(self, machine: Machine) -> list[int]:
        """Which of all TCP ports of the machine answer a connection."""
        self._is_reached_by(machine)
        here = ("ip", "netns", "exec", self.namespace)
        scan = as_root(*here, sys.executable, str(SCAN), OUTSIDE_ADDRESS, machine.address)
        return json.loads(scan.stdout)

    def _is_reached_by(self, machine: Machine) -> None:
        """Without a way back every connection would fail, whatever the firewall says. A reboot forgets it."""
        as_root(
            *("nsenter", "--target", str(machine.pid), "--net"),
            *("ip", "route", "replace", OUTSIDE_ADDRESS, "dev", "host0"),
        )

    def remove(self) -> None:
        as_root("ip", "netns", "delete", self.namespace)


class Stranger:
    """A place outside of a Google network of a rehearsal, with an address of its own."""

    def __init__(self, bridge: str, address: str) -> None:
        self.namespace = f"{bridge}-stranger"
        as_root("ip", "netns", "add", self.namespace)
        as_root(
            *("ip", "-n", self.namespace, "link", "add", "link0", "up", "type", "veth"),
            *("peer", "name", "stranger", "netns", bridge),
        )
        as_root("ip", "-n", bridge, "link", "set", "stranger", "up")
        as_root("ip", "-n", bridge, "address", "add", "169.254.0.1/32", "dev", "stranger")
        as_root("ip", "-n", bridge, "route", "add", address, "dev", "stranger")
        as_root("ip", "-n", self.namespace, "address", "add", f"{address}/32", "dev", "link0")
        as_root("ip", "-n", self.namespace, "route", "add", "default", "via", "169.254.0.1", "dev", "link0", "onlink")

    def connects(self, address: str, port: int) -> bool:
        """Whether a TCP connection is made within two seconds."""
        attempt = ("timeout", "2", "bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}")
        return as_root("ip", "netns", "exec", self.namespace, *attempt, check=False).returncode == 0

    def remove(self) -> None:
        as_root("ip", "netns", "delete", self.namespace)
