"""SSH tunnels to a stack's scheduler and dashboard."""

import contextlib
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import IO

from daskstack import ssh
from daskstack.client_output import Connection

WAIT = 30  # seconds for a tunnel to open
LOG = 1 << 16  # bytes of ssh's messages
PAUSE = 2  # seconds before a tunnel is opened again


class TunnelError(ConnectionError):
    """The tunnel did not open. The message contains OpenSSH's output."""


@dataclass(frozen=True)
class Way:
    """Ports of this computer's loopback that lead to a cluster."""

    ports: list[int]
    fault: Callable[[], str]
    """Returns why the ports no longer lead there, or an empty string. Other programs may hold the ports by then."""


@contextlib.contextmanager
def tunnel(connection: Connection, targets: Sequence[str], restarts: bool = False) -> Generator[Way]:
    """A port for each of `targets` ("host:port"), as the machine behind `connection` reaches them.

    The ports are open inside the context. Nothing is sent to them before ssh reports that it listens there: any user
    of this computer could take a port before ssh does. With `restarts`, a tunnel that ends is opened again on the same
    ports, as long as no other program has taken them and sshd accepts the key; meanwhile there is a fault.
    """
    opened = Tunnel(connection, targets)
    try:
        if restarts:
            opened.keep()
        yield Way(opened.ports, opened.fault)
    finally:
        opened.close()


class Tunnel:
    """An ssh process that forwards ports of this computer's loopback."""

    def __init__(self, connection: Connection, targets: Sequence[str]) -> None:
        self.ports = [free_port() for _ in targets]
        self._connection = connection
        self._forwards = [f"-L127.0.0.1:{port}:{target}" for port, target in zip(self.ports, targets, strict=True)]
        # ssh logs every refused connection; a full pipe would block it, so log to a file.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._closing = threading.Event()
        self._keeper: threading.Thread | None = None
        try:
            self._start()
        except BaseException:
            self._said.close()
            raise

    def _start(self) -> None:
        """Starts ssh and waits until it listens. By then it has read its keys, and their files are deleted."""
        self._listens = False
        self._said.seek(0)
        self._said.truncate()
        # ssh runs the local command once it listens on all ports; if it cannot listen, it ends.
        options = ["-N", "-oExitOnForwardFailure=yes", "-oPermitLocalCommand=yes", "-oLocalCommand=echo open"]
        options.append("-oLogLevel=INFO")  # at this level, ssh logs why sshd refuses a connection
        with ssh.command(self._connection) as command:
            self._process = subprocess.Popen(
                [*command[:-1], *options, *self._forwards, command[-1]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env=os.environ | {"SHELL": "/bin/sh"},  # ssh runs the local command with it
            )
            try:
                _wait(self._process, self._said)
            except BaseException:
                _end(self._process)
                raise
        self._listens = True

    def _ended(self) -> bool:
        return not self._listens or self._process.poll() is not None

    def fault(self) -> str:
        said = _read(self._said)
        if not self._ended():
            # A stopped scheduler refuses connections, too, and may start again; sshd's rules stay.
            return _explained(said) if "administratively prohibited" in said else ""
        return f"the SSH tunnel has ended: {_explained(said) or 'ssh said nothing'}"

    def keep(self) -> None:
        """From now on, ssh starts again whenever it ends."""
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        while True:
            self._process.wait()
            if self._closing.is_set():
                return
            print(f"{self.fault()}; trying again", file=sys.stderr)
            while self._ended():
                if self._closing.wait(PAUSE) or re.search(
                    "Address already in use|Permission denied", _read(self._said)
                ):
                    return
                with contextlib.suppress(TunnelError):
                    self._start()
            print("the SSH tunnel is open again", file=sys.stderr)

    def close(self) -> None:
        self._closing.set()
        _end(self._process)
        while self._keeper and self._keeper.is_alive():  # it may be starting another process
            self._process.kill()
            self._keeper.join(0.1)
        self._said.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def opens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a program accepts connections on the port, on this computer's loopback or elsewhere."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _wait(process: subprocess.Popen, said: IO[bytes]) -> None:
    """Waits until ssh reports that it listens."""
    assert process.stdout  # because `tunnel` passes stdout=PIPE
    ready, _, _ = select.select([process.stdout], [], [], WAIT)
    if not ready:
        raise TunnelError(f"the SSH tunnel did not open within {WAIT} s")
    if not process.stdout.read(1):
        _end(process)
        raise TunnelError(f"the SSH tunnel did not open: {_explained(_read(said))}")


def _read(said: IO[bytes]) -> str:
    """The last lines. ssh may still be writing at the file's position, which this does not move."""
    size = os.fstat(said.fileno()).st_size
    return os.pread(said.fileno(), LOG, max(0, size - LOG)).decode(errors="replace").strip()


def _explained(said: str) -> str:
    text = ssh.explained(said)
    if "Permission denied" not in text:
        return text
    return f"{text}; an access file may have expired, or access was revoked: ask the stack's owner for a new file"


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()
