"""A shipped stack's whole life, by `make rehearse`."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from daskstack.engine import PROJECT


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
