"""SFTP to a stack's shared directory, for `daskdata://` outside of the cluster."""

import atexit
import socket
import subprocess
import tempfile
import threading
from typing import Any

import paramiko
from fsspec.implementations.sftp import SFTPFileSystem
from paramiko.sftp import CMD_WRITE, int64

from daskstack import shared_directory
from daskstack.shared_directory import DataError, Host

_opening = threading.Lock()


def files(stack: str | None = None) -> tuple[str, "Sftp"]:
    """The shared directory's path, and the file system that contains it. Later calls use the same connection.

    `stack` is the stack of the last `connect` by default. Raises DataError and engine.EngineError.
    """
    stack = stack or shared_directory.stack_in_use
    if stack is None:
        raise DataError(
            'daskdata:// needs a stack: connect first (daskstack.connect("dev")), '
            'or pass storage_options={"stack": "dev"}'
        )
    with _opening:
        known = shared_directory.connections
        if stack not in known or known[stack][1].process.poll() is not None:
            with shared_directory.host(stack) as host:
                known[stack] = host.directory, Sftp(host)
        return known[stack]


class Sftp(SFTPFileSystem):
    """SFTP through OpenSSH or kubectl, which know the stack's keys and bastions; paramiko speaks only SFTP itself."""

    cachable = False

    def __init__(self, host: Host):
        self._host = host
        super().__init__(host.name)

    def _connect(self) -> None:
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile("w+") as errors, theirs:
            self.process = subprocess.Popen(
                self._host.sftp,
                stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=errors,
                start_new_session=True,  # otherwise Ctrl-C would end it
            )  # fmt: skip
            theirs.close()
            try:
                self.ftp = _Client(ours)
            except (EOFError, OSError, paramiko.SSHException) as error:
                self.process.kill()
                self.process.wait()
                errors.seek(0)
                raise DataError(f"no SFTP connection to {self._host.name}: {errors.read().strip() or error}") from None
        atexit.register(self.process.terminate)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> paramiko.SFTPFile:
        file = self.ftp.open(path, mode, bufsize=2**15)
        # paramiko's own method waits for answers without the lock of _Client.
        file._write = lambda data: self.ftp.write(file, data)
        return file


class _Client(paramiko.SFTPClient):
    """paramiko's client for several threads, of which one at a time waits for an answer."""

    def __init__(self, sock: socket.socket):
        self._turn = threading.Lock()
        super().__init__(sock)

    def _log(self, level: int, msg: str | list[str], *args: object) -> None:
        """paramiko's own method needs the name of a channel."""

    def _request(self, t: int, *args: Any) -> Any:
        with self._turn:
            return super()._request(t, *args)

    def write(self, file: paramiko.SFTPFile, data: bytes) -> int:
        part = bytes(data[: file.MAX_REQUEST_SIZE])
        self._request(CMD_WRITE, file.handle, int64(file._realpos), part)
        return len(part)
