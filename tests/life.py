"""Lives of stacks on this computer: a shipped one's, by `make rehearse`, and one that several tests share."""

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
    """What tests share because it is dear. After a failed one nobody knows its state: the next test has a new one."""

    def __init__(self, make: Callable[[], AbstractContextManager[T]]) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout pytest` must clean up, too
        self._make, self._made = make, ExitStack()
        self._shared: T | None = None

    def lend(self, request: pytest.FixtureRequest) -> Iterator[T]:
        """For one test, in a fixture: `yield from shared.lend(request)`."""
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
    """Ends engines, plugins and whatever they started for the rehearsal in this folder, its machines as well."""

    def belongs(process: psutil.Process) -> bool:
        with suppress(psutil.Error):  # it ended, or is not this user's
            return process.environ().get("DASKSTACK_REHEARSAL") == str(folder)
        return False

    while found := [each for each in psutil.process_iter() if belongs(each)]:
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, 10)


def lived(stack: str, folder: Path, phases: Sequence[str]) -> str:
    """What is printed by a rehearsal with these phases, which leaves the stack file as it was."""
    file = PROJECT / f"Pulumi.{stack}.yaml"
    before = file.read_text()
    with subprocess.Popen(
        [sys.executable, "-m", "tools.rehearse", stack],
        cwd=PROJECT,
        env={**os.environ, "XDG_DATA_HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C reaches it once, from here
    ) as rehearsal:
        try:
            printed, _ = rehearsal.communicate(timeout=1100)
        except BaseException:
            rehearsal.send_signal(signal.SIGINT)
            rehearsal.communicate(timeout=120)  # it takes away what it made
            raise
    assert rehearsal.returncode == 0, printed
    times = [line for line in printed.splitlines() if re.search(r" \d+ s$", line)]
    assert [phase for phase in phases if not any(line.startswith(phase) for line in times)] == []
    assert file.read_text() == before
    return printed
