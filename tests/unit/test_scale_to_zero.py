"""When the scheduler of a release lets its workers go."""

import asyncio
import runpy
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

IDLE = Path(__file__).parents[2] / "charts" / "dask" / "files" / "scale_to_zero.py"


@pytest.mark.parametrize(
    ("workers", "idle_for", "there_for", "clients", "scaled"),
    [
        ({"a"}, 61, 61, ["Client-1"], True),
        ({"a"}, 59, 61, [], False),
        ({"a"}, None, 61, [], False),
        ({"a"}, 3600, 59, [], False),
        ({"a"}, 3600, 3600, ["Client-daskstack-job-1"], False),
        (set(), 3600, 3600, [], False),
    ],
    ids=["idle", "not long enough", "at work", "workers have just come", "a job runs", "asleep already"],
)
def test_idle_workers_stop_after_the_limit(
    monkeypatch: pytest.MonkeyPatch,
    workers: set[str],
    idle_for: float | None,
    there_for: float,
    clients: list[str],
    scaled: bool,
) -> None:
    monkeypatch.setenv("IDLE_SECONDS", "60")
    monkeypatch.setenv("IDLE_DEPLOYMENTS", "dask-worker dask-gpu")
    module: dict[str, Any] = runpy.run_path(str(IDLE))
    asked: list[tuple[str, int]] = []
    check = module["Watch"].check
    monkeypatch.setitem(check.__globals__, "scale", lambda name, replicas: asked.append((name, replicas)))
    idle_since = None if idle_for is None else time.time() - idle_for
    scheduler = SimpleNamespace(workers=dict.fromkeys(workers), idle_since=idle_since, clients=clients)
    watch = module["Watch"](scheduler)
    watch.workers, watch.changed = workers, time.time() - there_for
    asyncio.run(watch.check())
    assert asked == ([("dask-worker", 0), ("dask-gpu", 0)] if scaled else [])
