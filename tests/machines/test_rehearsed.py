"""`make rehearse` of machines in Google Cloud: the lifecycle of a stack on one computer."""

import re
from pathlib import Path

import pytest

from tests.rehearsals import rehearse

PHASES = [
    "from nothing", "pulumi up", "one worker preempted, one deleted", "one worker added, idle", "asleep", "awake",
    "pulumi destroy", "clean-up",
]  # fmt: skip


def touched(printed: str, phase: str) -> set[str]:
    """The resources that `up` created or changed in a phase."""
    [text] = re.findall(rf"^== {phase}[^\n]*\n(.*?)^== ", printed, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"^ (?:\+|~|\+-|\+\+) +\S+ (\S+) (?:created|updated|replaced)", text, re.MULTILINE))


@pytest.mark.timeout(1200)  # the entire lifecycle on a busy computer
def test_the_shipped_vms_stack_is_created_changed_and_destroyed_and_keeps_its_data(tmp_path: Path) -> None:
    printed = rehearse("vms", tmp_path, PHASES)
    assert re.search(r"^workers +2 running", printed, re.MULTILINE), printed
    own = {"dask-check", "dask-members"}  # which are told who is there
    changed = touched(printed, "one worker preempted, one deleted") - own
    assert {each for each in changed if "-worker-1" not in each} == {"machines-worker-2"}
    assert changed >= {"machines-worker-1", "dask-worker-1-service"}
    changed = touched(printed, "one worker added, idle") - own
    others = {f"dask-{name}-idle" for name in ("scheduler", "worker-1", "worker-2")}
    assert {each for each in changed if "-worker-3" not in each} == others
    assert changed >= {"machines-worker-3", "dask-worker-3-service"}
    left = re.findall(r"^ +gcloud (.*) --zone us-central1-a --project my-project$", printed, re.MULTILINE)
    assert left == ["compute disks delete dask-vms-data"], printed
