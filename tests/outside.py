"""Hosts outside of the machines' network, and a watch of this computer's command lines."""

import contextlib
import json
import os
import sys
import threading
from pathlib import Path

from rehearsal.machines import Machine, Stack, as_root

SCAN = Path(__file__).parent / "scan.py"
OUTSIDE_ADDRESS = "198.51.100.1"  # reserved for examples (RFC 5737), so it is in no cluster's network


class CommandLines:
    """While open, collects the command lines of all processes, as any user of this computer can read them.

    Processes of local machines are included: `lines` pairs each process's control group, which names the machine, with
    its command line.
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
                with contextlib.suppress(OSError):  # it has exited
                    line = Path("/proc", process, "cmdline").read_bytes().decode(errors="replace")
                    group = Path("/proc", process, "cgroup").read_text().splitlines()[-1]
                    self.lines.add((group.removeprefix("0::"), line))


class Outside:
    """A host on the machines' bridge with an address outside of the cluster's network."""

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
        """Whether a TCP connection succeeds within 20 seconds. firewalld rejects it immediately."""
        self._is_reached_by(machine)
        attempt = f"exec 3<>/dev/tcp/{machine.address}/{port}"
        command = ("ip", "netns", "exec", self.namespace, "timeout", "20", "bash", "-c", attempt)
        return as_root(*command, check=False).returncode == 0

    def open_ports(self, machine: Machine) -> list[int]:
        """The open TCP ports of the machine."""
        self._is_reached_by(machine)
        here = ("ip", "netns", "exec", self.namespace)
        scan = as_root(*here, sys.executable, str(SCAN), OUTSIDE_ADDRESS, machine.address)
        return json.loads(scan.stdout)

    def _is_reached_by(self, machine: Machine) -> None:
        """Adds the return route, without which every connection would fail. A reboot removes it."""
        as_root(
            *("nsenter", "--target", str(machine.pid), "--net"),
            *("ip", "route", "replace", OUTSIDE_ADDRESS, "dev", "host0"),
        )

    def remove(self) -> None:
        as_root("ip", "netns", "delete", self.namespace)


class Stranger:
    """A host outside of a rehearsed Google network, with its own address."""

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
        """Whether a TCP connection succeeds within two seconds."""
        attempt = ("timeout", "2", "bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}")
        return as_root("ip", "netns", "exec", self.namespace, *attempt, check=False).returncode == 0

    def remove(self) -> None:
        as_root("ip", "netns", "delete", self.namespace)
