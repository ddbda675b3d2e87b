"""Rehearsals of shipped stacks by `make rehearse`, and stacks that several tests share."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Generic, TypeVar

import psutil
import pytest

from daskstack.engine import PROJECT

T = TypeVar("T")


class Shared(Generic[T]):
    """An expensive resource that tests share; it is replaced after a failed test, which may have damaged it."""

    def __init__(self, make: Callable[[], AbstractContextManager[T]]) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that `timeout pytest` cleans up too
        self._make, self._made = make, ExitStack()
        self._shared: T | None = None

    def lend(self, request: pytest.FixtureRequest) -> Iterator[T]:
        """Lends it to one test, in a fixture: `yield from shared.lend(request)`."""
        failed = request.session.testsfailed
        if self._shared is None:
            self._shared = self._made.enter_context(self._make())
        yield self._shared
        if request.session.testsfailed > failed:
            self.close()

    def close(self) -> None:
        self._shared = None
        self._made.close()


def end_processes(folder: Path) -> None:
    """Kills all processes of the rehearsal in this folder: engines, plugins, machines and everything they started."""

    def belongs(process: psutil.Process) -> bool:
        with suppress(psutil.Error):  # it has exited, or belongs to another user
            return process.environ().get("DASKSTACK_REHEARSAL") == str(folder)
        return False

    while found := [each for each in psutil.process_iter() if belongs(each)]:
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, 10)


def rehearse(stack: str, folder: Path, phases: Sequence[str]) -> str:
    """Rehearses a shipped stack; checks its phases and that the stack file is unchanged, and returns the output."""
    file = PROJECT / f"Pulumi.{stack}.yaml"
    before = file.read_text()
    with subprocess.Popen(
        [sys.executable, "-m", "tools.rehearse", stack],
        cwd=PROJECT,
        env={**os.environ, "XDG_DATA_HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that Ctrl-C reaches it only once, from here
    ) as rehearsal:
        try:
            printed, _ = rehearsal.communicate(timeout=1100)
        except BaseException:
            rehearsal.send_signal(signal.SIGINT)
            rehearsal.communicate(timeout=120)  # it cleans up
            raise
    assert rehearsal.returncode == 0, printed
    times = [line for line in printed.splitlines() if re.search(r" \d+ s$", line)]
    assert [phase for phase in phases if not any(line.startswith(phase) for line in times)] == []
    assert file.read_text() == before
    return printed
