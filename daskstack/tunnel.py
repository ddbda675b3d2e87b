"""SSH tunnels to a stack's scheduler and dashboard."""

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from daskstack import ssh

WAIT = 30  # seconds for a tunnel to open


class TunnelError(ConnectionError):
    """The tunnel did not open; the message has OpenSSH's own words."""


@contextlib.contextmanager
def tunnel(connection: Mapping[str, Any], targets: Sequence[str]) -> Iterator[list[int]]:
    """Ports of this computer's loopback that lead to `targets` ("host:port") as the machine behind `connection`
    (see `ssh.command`) reaches them. They are open inside the context."""
    ports = [free_port() for _ in targets]
    forwards = [f"-L127.0.0.1:{port}:{target}" for port, target in zip(ports, targets, strict=True)]
    # A file, for ssh says something at each refused connection and would stand still once a pipe is full.
    with tempfile.TemporaryFile("w+") as said:
        with ssh.command(connection) as command:
            process = subprocess.Popen(
                [*command[:-1], "-N", "-oExitOnForwardFailure=yes", *forwards, command[-1]],
                stdin=subprocess.DEVNULL,
                stderr=said,
            )
            try:
                _wait(process, ports, said)
            except BaseException:
                _end(process)
                raise
        # ssh has read its keys by now, and they are off the disk again.
        try:
            yield ports
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


def _wait(process: subprocess.Popen, ports: Sequence[int], said: IO[str]) -> None:
    deadline = time.monotonic() + WAIT
    for port in ports:
        while not opens(port):
            if process.poll() is not None:
                said.seek(0)
                raise TunnelError(f"the SSH tunnel did not open: {said.read().strip()}")
            if time.monotonic() > deadline:
                raise TunnelError(f"the SSH tunnel did not open within {WAIT} s")
            time.sleep(0.05)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
