"""SSH tunnels to a stack's scheduler and dashboard."""

import contextlib
import os
import select
import socket
import subprocess
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import IO

from daskstack import ssh
from daskstack.client_output import Connection

WAIT = 30  # seconds for a tunnel to open


class TunnelError(ConnectionError):
    """The tunnel did not open. The message contains OpenSSH's output."""


@dataclass(frozen=True)
class Way:
    """Ports of this computer's loopback that lead to a cluster."""

    ports: list[int]
    fault: Callable[[], str]
    """Returns why the ports no longer lead there, or an empty string. Other programs may hold the ports by then."""


@contextlib.contextmanager
def tunnel(connection: Connection, targets: Sequence[str]) -> Generator[Way]:
    """A port for each of `targets` ("host:port"), as the machine behind `connection` reaches them.

    The ports are open inside the context. Nothing is sent to them before ssh reports that it listens there: any user
    of this computer could take a port before ssh does.
    """
    ports = [free_port() for _ in targets]
    forwards = [f"-L127.0.0.1:{port}:{target}" for port, target in zip(ports, targets, strict=True)]
    # ssh runs the local command once it listens on all ports; if it cannot listen, it ends.
    options = ["-N", "-oExitOnForwardFailure=yes", "-oPermitLocalCommand=yes", "-oLocalCommand=echo open"]
    # ssh logs every refused connection; a full pipe would block it, so log to a file.
    with tempfile.TemporaryFile("w+") as said:
        with ssh.command(connection) as command:
            process = subprocess.Popen(
                [*command[:-1], *options, *forwards, command[-1]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                env=os.environ | {"SHELL": "/bin/sh"},  # ssh runs the local command with it
            )
            try:
                _wait(process, said)
            except BaseException:
                _end(process)
                raise

        def fault() -> str:
            return "" if process.poll() is None else f"the SSH tunnel has ended: {_read(said) or 'ssh said nothing'}"

        # By now ssh has read its keys, and their files are deleted.
        try:
            yield Way(ports, fault)
        finally:
            _end(process)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def opens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a program accepts connections on the port, on this computer's loopback or elsewhere."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _wait(process: subprocess.Popen, said: IO[str]) -> None:
    """Waits until ssh reports that it listens."""
    assert process.stdout  # because `tunnel` passes stdout=PIPE
    ready, _, _ = select.select([process.stdout], [], [], WAIT)
    if not ready:
        raise TunnelError(f"the SSH tunnel did not open within {WAIT} s")
    if not process.stdout.read(1):
        _end(process)
        raise TunnelError(f"the SSH tunnel did not open: {_read(said)}")


def _read(said: IO[str]) -> str:
    said.seek(0)
    return said.read().strip()


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()
