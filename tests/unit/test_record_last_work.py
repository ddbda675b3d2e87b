"""What the scheduler of machines records of its work."""

import os
import runpy
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

MODULE: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "on_the_cluster/record_last_work.py"))


def workers(*hosts: str) -> dict[str, SimpleNamespace]:
    return {f"tls://{host}:9000": SimpleNamespace(host=host) for host in hosts}


@pytest.mark.parametrize(
    ("before", "after", "idle_for", "recorded"),
    [
        (["10.0.0.2"], ["10.0.0.2"], None, 0),
        (["10.0.0.2"], ["10.0.0.2"], 50, 50),
        (["10.0.0.2"], ["10.0.0.2"], 500, 100),
        (["10.0.0.2"], ["10.0.0.2", "10.0.0.3"], 50, 0),
        (["10.0.0.2", "10.0.0.3"], ["10.0.0.2"], 50, 50),
        (["10.0.0.2"], [], None, 100),
    ],
    ids=["at work", "idle", "idle before its start", "a worker has come", "a worker has gone", "none to do what waits"],
)
def test_the_time_of_the_last_work_is_the_files_modification_time(
    tmp_path: Path, before: list[str], after: list[str], idle_for: float | None, recorded: float
) -> None:
    """Started 100 seconds ago; seconds are counted back from now."""
    now = time.time()
    scheduler = SimpleNamespace(address="tls://10.0.0.1:8786", workers=workers(*after), clients=["Client-1"])
    scheduler.idle_since = None if idle_for is None else now - idle_for
    record = MODULE["Record"](scheduler, tmp_path / "worked")
    record.workers, record.worked = set(workers(*before)), now - 100
    record.write()
    assert now - (tmp_path / "worked").stat().st_mtime == pytest.approx(recorded, abs=2)
    assert os.listdir(tmp_path) == ["worked"]


def test_the_cluster_works_while_a_job_runs(tmp_path: Path) -> None:
    client, now = "Client-daskstack-job-3-5b1b7cf4", time.time()
    there = SimpleNamespace(address="tls://10.0.0.1:8786", workers=workers("10.0.0.2"), clients=[client])
    there.idle_since = now - 50
    record = MODULE["Record"](there, tmp_path / "worked")
    record.workers, record.worked = set(there.workers), now - 100
    record.write()
    assert now - (tmp_path / "worked").stat().st_mtime == pytest.approx(0, abs=2)


def test_workers_on_the_schedulers_own_machine_are_not_counted(tmp_path: Path) -> None:
    there = workers("10.0.0.1", "10.0.0.2", "10.0.0.3")
    scheduler = SimpleNamespace(address="tls://10.0.0.1:8786", workers=there, idle_since=None)
    MODULE["Record"](scheduler, tmp_path / "worked").write()
    assert (tmp_path / "worked").read_text() == "2\n"
