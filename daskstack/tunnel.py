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
    """The tunnel did not open; the message has OpenSSH's own words."""


@dataclass(frozen=True)
class Way:
    """Ports of this computer's loopback that lead to a cluster."""

    ports: list[int]
    fault: Callable[[], str]
    """Says why the ports no longer lead there; empty while they do. Another program may have taken them by then."""


@contextlib.contextmanager
def tunnel(connection: Connection, targets: Sequence[str]) -> Generator[Way]:
    """A port for each of `targets` ("host:port"), as the machine behind `connection` reaches them.

    They are open inside the context, and nothing is sent to them before ssh itself says that it holds them: any user
    of this computer can listen at a port that ssh is about to take.
    """
    ports = [free_port() for _ in targets]
    forwards = [f"-L127.0.0.1:{port}:{target}" for port, target in zip(ports, targets, strict=True)]
    # ssh runs the local command once it listens at all ports; it ends instead where it cannot.
    options = ["-N", "-oExitOnForwardFailure=yes", "-oPermitLocalCommand=yes", "-oLocalCommand=echo open"]
    # A file, for ssh says something at each refused connection and would stand still once a pipe is full.
    with tempfile.TemporaryFile("w+") as said:
        with ssh.command(connection) as command:
            process = subprocess.Popen(
                [*command[:-1], *options, *forwards, command[-1]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                env=os.environ | {"SHELL": "/bin/sh"},  # which runs the local command
            )
            try:
                _wait(process, said)
            except BaseException:
                _end(process)
                raise

        def fault() -> str:
            return "" if process.poll() is None else f"the SSH tunnel has ended: {_read(said) or 'ssh said nothing'}"

        # ssh has read its keys by now, and they are off the disk again.
        try:
            yield Way(ports, fault)
        finally:
            _end(process)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def opens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something takes connections at the port, on this computer's loopback or elsewhere."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _wait(process: subprocess.Popen, said: IO[str]) -> None:
    """Until ssh says that it listens."""
    assert process.stdout  # a pipe, as `tunnel` asks for
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
