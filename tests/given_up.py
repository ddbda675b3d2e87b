"""What a command had said that a test gave up."""

import subprocess
from collections.abc import Iterator

import pytest


def said(error: pytest.ExceptionInfo[BaseException]) -> str:
    """Of commands that took too long or failed, and of the one that ran when the whole test took too long."""
    parts = [*of_errors(error.value)] or [*of_processes(error)]
    return "\n".join(part.decode(errors="replace") if isinstance(part, bytes) else part for part in parts if part)


def of_errors(error: BaseException | None) -> Iterator[str | bytes | None]:
    while error is not None:
        if isinstance(error, subprocess.TimeoutExpired | subprocess.CalledProcessError):
            yield from (error.stdout, error.stderr)
        error = error.__cause__ or error.__context__


def of_processes(error: pytest.ExceptionInfo[BaseException]) -> Iterator[bytes]:
    """subprocess.run drops what it has read when anything else than its own limit ends it."""
    for entry in error.traceback:
        process = entry.frame.f_locals.get("self")
        if isinstance(process, subprocess.Popen):
            for chunks in (getattr(process, "_fileobj2output", None) or {}).values():
                yield b"".join(chunks)
