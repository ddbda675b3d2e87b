"""SFTP to a stack's shared directory, for `daskdata://` outside of the cluster."""

import atexit
import contextlib
import socket
import subprocess
import tempfile
import threading
from collections import deque
from io import BytesIO
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
        with contextlib.suppress(IndexError):
            while True:
                self.ftp.unclosed.popleft().close()
        file = self.ftp.open(path, mode)
        file._closed = True  # the next object closes the handle
        return _File(self.ftp, file.handle, mode, _File.MAX_REQUEST_SIZE)


class _File(paramiko.SFTPFile):
    """paramiko's file, whose requests are those of _Client."""

    MAX_REQUEST_SIZE = 2**17
    """Bytes per request. OpenSSH takes 256 KiB, and a request takes at least the time to the server and back."""

    def _close(self, async_: bool = False) -> None:
        # The garbage collector can close a file in any thread, also in the middle of another request.
        if self.sftp.is_busy_here():
            self._wbuffer = BytesIO(self._wbuffer.getvalue())  # it may close the former one next
            self.sftp.unclosed.append(self)
        else:
            super()._close()

    def _write(self, data: bytes) -> int:
        """paramiko's own method waits for answers of other threads."""
        part = bytes(data[: self.MAX_REQUEST_SIZE])
        self.sftp._request(CMD_WRITE, self.handle, int64(self._realpos), part)
        return len(part)


class _Client(paramiko.SFTPClient):
    """paramiko's client for several threads, of which one at a time waits for an answer."""

    def __init__(self, sock: socket.socket):
        self.unclosed: deque[_File] = deque()
        self._turn = threading.RLock()  # the garbage collector can close a file between two lines of a request
        self._busy: int | None = None
        super().__init__(sock)

    def is_busy_here(self) -> bool:
        """Whether the calling thread is in the middle of a request."""
        return self._busy == threading.get_ident()

    def get(self, *args: Any, **kwargs: Any) -> None:
        """Without paramiko's prefetch, which sends requests in a thread of its own."""
        super().get(*args, **kwargs, prefetch=False)

    def _log(self, level: int, msg: str | list[str], *args: object) -> None:
        """paramiko's own method needs the name of a channel."""

    def _request(self, t: int, *args: Any) -> Any:
        with self._turn:
            self._busy = threading.get_ident()
            try:
                return super()._request(t, *args)
            finally:
                self._busy = None
