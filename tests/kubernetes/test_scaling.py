"""Scaling within bounds in a real Kubernetes: no result is lost, and `up` keeps the number of workers."""

import json
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import daskstack
from daskstack import connection
from daskstack.engine import PROJECT
from tests.kubernetes.release import STACK, Stack
from tests.kubernetes.support import until
from tests.work import Work

pytestmark = pytest.mark.timeout(1200)
TIMES = 20
SMALL = {"cpu": 0.1, "memory": "1 GiB"}
PLAIN = {"scheduler": SMALL, "jupyter": {"enabled": False}, "data": {}}
FIXED = PLAIN | {"workers": {"replicas": 2, **SMALL}}
BOUNDED = {most: PLAIN | {"workers": {"min": 0, "max": most, **SMALL}} for most in (6, 7)}
GROUPS = [{"name": "big", "resources": {"BIG": 1}}, {"name": "rare", "max": 2, "resources": {"RARE": 1}}]
GROUPED = PLAIN | {"workers": {"min": 0, "max": 6, **SMALL, "groups": GROUPS}}


@pytest.fixture(scope="module")
def kept(stack: Stack) -> tuple[set[str], str]:
    """The pods of a stack with two workers before it got bounds, and the output of the `up` that set them."""
    stack.has(FIXED)
    return pods(stack), stack.has(BOUNDED[6])


@pytest.fixture
def cluster(stack: Stack, kept: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[daskstack.StackCluster]:
    if stack.applied not in [(each, "", {}, stack.project) for each in BOUNDED.values()]:
        stack.has(BOUNDED[6])
    facts = stack.outputs()["client"]
    monkeypatch.setattr(connection, "facts_of", lambda _: facts)
    with daskstack.StackCluster(STACK) as cluster:
        cluster.scale(2)
        yield cluster


@contextmanager
def working(cluster: daskstack.StackCluster) -> Iterator[Work]:
    work = Work(cluster.get_client())
    try:
        yield work
    finally:
        work.end()


def become(work: Work, number: int) -> None:
    """Waits until exactly this many workers are there, and all of them run."""
    until(lambda: list(work.workers().values()) == number * ["running"], 180)


def pods(stack: Stack, component: str = "worker") -> set[str]:
    """The names of the pods that do not stop."""
    found = json.loads(stack.kubectl("get", "pods", "--selector", f"component={component}", "--output", "json"))
    return {each["metadata"]["name"] for each in found["items"] if "deletionTimestamp" not in each["metadata"]}


def test_a_stack_that_gets_bounds_keeps_its_workers(stack: Stack, kept: tuple[set[str], str]) -> None:
    before, printed = kept
    assert len(before) == 2
    assert re.search(r"workers +2 running of at most 6, ", printed)


def test_nothing_is_lost_or_repeated_while_the_number_of_workers_changes_at_random(
    stack: Stack, cluster: daskstack.StackCluster
) -> None:
    def random_bytes(_: int) -> bytes:  # a repeated task has another result
        import os

        return os.urandom(100_000)

    with working(cluster) as work:
        become(work, 2)
        parts = work.client.map(random_bytes, range(60), pure=False)
        before = work.client.gather(parts)
        number = 2
        for _ in range(TIMES):
            number = random.choice([each for each in range(2, 7) if each != number])
            cluster.scale(number)
            if random.random() < 0.5:
                become(work, number)
            else:
                time.sleep(3 * random.random())
            assert work.wrong == []
        become(work, number)
        work.check_progress()
        assert work.client.gather(parts) == before
    until(lambda: len(pods(stack)) == number)


def test_up_and_a_restarted_scheduler_keep_the_number_within_new_bounds(
    stack: Stack, cluster: daskstack.StackCluster
) -> None:
    other = 13 - cluster._facts.bounds[1]
    cluster.scale(3)
    with working(cluster) as work:
        become(work, 3)
        running, scheduler = pods(stack), pods(stack, "scheduler")
        printed = stack.has(BOUNDED[other])
        assert re.search(rf"workers +3 running of at most {other}, ", printed)
        assert (pods(stack), pods(stack, "scheduler")) == (running, scheduler), "new bounds restarted pods"
        with pytest.raises(ValueError, match=f"8 workers are outside of the stack's bounds, 0 to {other}"):
            cluster.scale(8)
        work.check_progress()
    stack.kubectl("delete", "pods", "--selector", "component=scheduler", "--grace-period=1")
    stack.kubectl("rollout", "status", "deployment/dask-scheduler", "--timeout=110s")
    with stack.connect() as client:
        until(lambda: len(client.nthreads()) == 3, 180)
        assert client.sync(client.scheduler.workers_scaling)["number"] == 3
        assert pods(stack) == running


def test_tasks_that_ask_for_a_groups_resource_run_there_and_scaling_leaves_the_group_alone(
    stack: Stack, kept: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pod(_: int) -> str:
        import os

        return os.environ["POD_NAME"]

    printed = stack.has(GROUPED)
    assert re.search(r"workers +\d running of at most 9, ", printed)
    [big] = pods(stack, "worker-big")
    assert pods(stack, "worker-rare") == set()
    facts = stack.outputs()["client"]
    monkeypatch.setattr(connection, "facts_of", lambda _: facts)
    with daskstack.StackCluster(STACK) as cluster, cluster.get_client() as client:
        cluster.scale(2)
        until(lambda: len(client.nthreads()) == 3, 180)
        bound = client.map(pod, range(8), resources={"BIG": 1}, pure=False)
        until(lambda: all(part.status == "finished" for part in bound), 60)
        assert set(client.gather(bound)) == {big}
        cluster.scale(0)
        until(lambda: not pods(stack) and len(client.nthreads()) == 1, 180)
        assert client.submit(pod, 9).result(timeout=60) == big, "other tasks run everywhere"

        rare = client.map(pod, range(4), resources={"RARE": 1}, pure=False)
        where = client.gather(rare)
        assert {name.rsplit("-", 2)[0] for name in where} == {"dask-worker-rare"}
        hurry(client)
        until(lambda: not pods(stack, "worker-rare"), 180)
        assert client.gather(rare) == where, "a result was lost and computed again"
        stack.has(GROUPED | {"wait": 501})
        assert pods(stack, "worker-rare") == set(), "the check needs no worker of a group that may have none"
    assert pods(stack, "worker-big") == {big}


def hurry(client: Any) -> None:
    """Workers stop after 15 seconds without work instead of a minute."""

    def change(dask_scheduler: Any) -> None:  # a function inside a function is sent by value
        dask_scheduler.scaling.adapted.__globals__["STEADY"] = 15

    client.run_on_scheduler(change)


def test_adapting_grows_under_load_shrinks_afterwards_and_does_not_flap(
    stack: Stack, cluster: daskstack.StackCluster
) -> None:
    def wait(_: int) -> None:
        import time

        time.sleep(1)

    def said(*words: str) -> str:
        command = [str(PROJECT / ".venv/bin/daskstack"), *words, "--stack", STACK]
        environ = stack.environ | {"PYTHONPATH": str(PROJECT)}  # not the package that .venv refers to
        return subprocess.check_output(command, env=environ, text=True, timeout=120)

    with cluster.get_client() as client:
        until(lambda: len(client.nthreads()) == 2, 180)
        hurry(client)
        most = cluster._facts.bounds[1]
        printed = said("scale", "--adapt", "--minimum", "1", "--maximum", "5")
        assert f"the number adapts from 1 to 5; the stack allows 0 to {most}\n" in printed
        seen = [2]

        def number() -> int:
            found = client.sync(client.scheduler.workers_scaling)["number"]
            if found != seen[-1]:
                seen.append(found)
            return found

        def finished(waits: list[Any]) -> Callable[[], bool]:
            return lambda: bool(number()) and all(each.status == "finished" for each in waits)

        for _ in range(2):
            until(finished(client.map(wait, range(60), pure=False)), 180)
            for _ in range(2):  # a short pause
                number()
                time.sleep(1)
        assert seen[-1] == 5
        assert seen == sorted(seen), "it stopped workers in a short pause"
        until(lambda: number() == 1 and len(client.nthreads()) == 1, 180)
        grown = seen.index(5)
        assert seen[grown:] == sorted(seen[grown:], reverse=True), "it started workers without work"
        assert "workers      0; the number stays" in said("scale", "0")
        until(lambda: client.nthreads() == {}, 180)
        assert f", 0 workers of at most {most}\n" in said("status")
