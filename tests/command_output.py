"""The output of a command that timed out or failed in a test."""

import subprocess
from collections.abc import Iterator

import pytest


def output(error: pytest.ExceptionInfo[BaseException]) -> str:
    """Output of commands that failed or timed out, and of the command that ran when the test itself timed out."""
    parts = [*of_errors(error.value)] or [*of_processes(error)]
    return "\n".join(part.decode(errors="replace") if isinstance(part, bytes) else part for part in parts if part)


def of_errors(error: BaseException | None) -> Iterator[str | bytes | None]:
    while error is not None:
        if isinstance(error, subprocess.TimeoutExpired | subprocess.CalledProcessError):
            yield from (error.stdout, error.stderr)
        error = error.__cause__ or error.__context__


def of_processes(error: pytest.ExceptionInfo[BaseException]) -> Iterator[bytes]:
    """subprocess.run discards the output it has read unless its own timeout ends it."""
    for entry in error.traceback:
        process = entry.frame.f_locals.get("self")
        if isinstance(process, subprocess.Popen):
            for chunks in (getattr(process, "_fileobj2output", None) or {}).values():
                yield b"".join(chunks)
