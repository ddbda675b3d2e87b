"""`make rehearse`: a stack's whole life on one computer."""

import re
from pathlib import Path

import pytest
from life import lived

PHASES = ["from nothing", "pulumi up", "one worker more", "asleep", "awake", "pulumi destroy", "the rest of it goes"]


@pytest.mark.timeout(1200)  # a whole life, on a busy machine
def test_the_shipped_gke_stack_lives_a_whole_life_and_leaves_nothing(tmp_path: Path) -> None:
    printed = lived("gke", tmp_path, PHASES)
    assert re.search(r"^workers +4 running", printed, re.MULTILINE), printed
    assert "nothing of stack gke is left in project my-project" in printed
    assert list(tmp_path.rglob("kubeconfig")) == []
