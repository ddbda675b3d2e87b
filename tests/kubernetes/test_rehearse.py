"""`make rehearse`: the lifecycle of a stack on one computer."""

import re
import threading
from pathlib import Path

import pytest

from rehearsal.kubernetes.supervisor import SYSCTLS
from tests.kubernetes.support import Cluster, traces
from tests.rehearsals import rehearse

PHASES = ["from nothing", "pulumi up", "one worker added", "asleep", "awake", "pulumi destroy", "clean-up"]


@pytest.mark.timeout(1200)  # the entire lifecycle on a busy computer
def test_the_shipped_gke_stack_is_created_changed_and_destroyed_without_leftovers(tmp_path: Path) -> None:
    before = [Path("/proc/sys", name).read_text() for name in SYSCTLS]
    cluster = Cluster(tmp_path / "daskstack" / "rehearsal" / "gke" / "kubernetes")
    seen, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(5):
            seen.append(len(traces(cluster)))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        printed = rehearse("gke", tmp_path, PHASES)
    finally:
        ended.set()
        looking.join()
    assert re.search(r"^workers +4 running", printed, re.MULTILINE), printed
    assert "nothing of stack gke is left in project my-project" in printed
    assert list(tmp_path.rglob("kubeconfig")) == []

    # Nothing is left of its Kubernetes either: no process, mount, cgroup, link or kernel setting.
    assert max(seen) >= 5, "this test looks at the wrong places"
    assert traces(cluster) == []
    assert [Path("/proc/sys", name).read_text() for name in SYSCTLS] == before
