"""`make rehearse`: a stack's whole life on one computer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from daskstack.engine import PROJECT

PHASES = ["from nothing", "pulumi up", "one worker more", "asleep", "awake", "pulumi destroy", "the rest of it goes"]


@pytest.mark.timeout(1200)  # a whole life, on a busy machine
def test_the_shipped_gke_stack_lives_a_whole_life_and_leaves_nothing(tmp_path: Path) -> None:
    before = (PROJECT / "Pulumi.gke.yaml").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "tools.rehearse", "gke"],
        cwd=PROJECT,
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1100,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"^workers +4 running", done.stdout, re.MULTILINE), done.stdout
    assert "nothing of stack gke is left in project my-project" in done.stdout
    times = [line for line in done.stdout.splitlines() if re.search(r" \d+ s$", line)]
    assert [phase for phase in PHASES if not any(line.startswith(phase) for line in times)] == []
    assert list(tmp_path.rglob("kubeconfig")) == []
    assert (PROJECT / "Pulumi.gke.yaml").read_text() == before
