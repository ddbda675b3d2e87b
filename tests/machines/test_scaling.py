"""Scaling within the bounds of a stack of local machines: no result is lost, and `up` keeps the number of workers."""

import random
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import daskstack
from daskstack import cluster_commands
from daskstack.status_and_logs import RemoteError
from rehearsal.machines import run, until
from tests.checkout import Checkout, stack_dev
from tests.machines.test_change import pids, touched
from tests.work import Work

pytestmark = pytest.mark.timeout(1800)
TIMES = 20
WORKERS = "workers: {perMachine: 3, min: 2, max: 6, memoryLimit: 600 MiB}"


@pytest.fixture(scope="module")
def elastic(image: str) -> Iterator[Checkout]:
    """A stack with bounds from its first `up` on."""
    folder = Path(tempfile.mkdtemp(prefix="daskstack-"))
    with stack_dev(folder) as checkout:
        checkout.change("Pulumi.dev.yaml", "^    target: machines", f"    target: machines\n    {WORKERS}")
        checkout.keep()
        checkout.first_up = checkout.make("up")
        yield checkout
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(elastic: Checkout) -> Iterator[daskstack.StackCluster]:
    elastic.restore()
    with daskstack.StackCluster("dev") as cluster:
        cluster.scale(2)
        yield cluster


@contextmanager
def working() -> Iterator[Work]:
    work = Work(daskstack.connect("dev"))
    try:
        yield work
    finally:
        work.end()


def become(work: Work, number: int) -> None:
    """Waits until exactly this many workers are there, and all of them run."""
    until(lambda: list(work.workers().values()) == number * ["running"], 120)


def units(elastic: Checkout) -> list[str]:
    """The states of the workers' units, running or kept stopped."""
    show = "systemctl is-active dask-worker@1 dask-worker@2 dask-worker@3"
    machines = [machine for name, machine in elastic.machines().items() if name != "scheduler"]
    return sorted("".join(machine.ssh(show, check=False).stdout for machine in machines).split())


def test_the_first_up_starts_the_smallest_number_of_workers(elastic: Checkout) -> None:
    assert re.search(r"^workers +2 running of at most 6, ", elastic.first_up, re.MULTILINE)


def test_nothing_is_lost_or_repeated_while_the_number_of_workers_changes_at_random(
    elastic: Checkout, cluster: daskstack.StackCluster
) -> None:
    def random_bytes(_: int) -> bytes:  # a repeated task has another result
        import os

        return os.urandom(100_000)

    with working() as work:
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
    until(lambda: units(elastic) == (6 - number) * ["activating"] + number * ["active"])


def test_a_job_has_its_own_number_of_workers_and_leaves_the_former_one(
    elastic: Checkout, cluster: daskstack.StackCluster, tmp_path: Path
) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "from distributed import Client\n"
        "if __name__ == '__main__':\n"
        "    with Client() as client:\n"
        "        client.wait_for_workers(4, timeout=120)\n"
        "        print('enough')\n"
    )

    def job(number: int, *more: str) -> subprocess.CompletedProcess[str]:
        words = [".venv/bin/daskstack", "run", "--workers", str(number), *more, str(script)]
        return run(words, cwd=elastic.folder, env=elastic.environ, seconds=300, check=False)

    done = job(4)
    assert (done.returncode, done.stdout) == (0, "enough\n"), done.stderr
    with cluster.get_client() as client:

        def number() -> int:
            return client.sync(client.scheduler.workers_scaling)["number"]

        assert number() == 2
        cluster.scale(3)
        assert job(4, "--then", "sleep").stdout == "enough\n"
        assert number() == 2, "the smallest number"
    assert "7 workers are outside of the stack's bounds, 2 to 6" in job(7).stderr


def test_up_and_a_restarted_scheduler_keep_the_number_within_new_bounds(
    elastic: Checkout, cluster: daskstack.StackCluster
) -> None:
    head = elastic.machines()["scheduler"]
    cluster.scale(3)
    with working() as work:
        become(work, 3)
        # A worker leaves the scheduler before its process ends.
        until(lambda: units(elastic) == 3 * ["activating"] + 3 * ["active"], 60)
        processes = pids(*elastic.machines().values())
        elastic.change("Pulumi.dev.yaml", "min: 2, max: 6", "min: 0, max: 5")
        printed = elastic.make("up")
        assert touched(printed) == {"dask-members", "dask-check"}
        assert re.search(r"^workers +3 running of at most 5, ", printed, re.MULTILINE)
        assert pids(*elastic.machines().values()) == processes
        with pytest.raises(ValueError, match="6 workers are outside of the stack's bounds, 0 to 5"):
            cluster.scale(6)

        # Workers restart machine by machine, and those that are stopped stay so.
        elastic.change("Pulumi.dev.yaml", "perMachine: 3", "perMachine: 3, threads: 2")
        printed = elastic.make("up")
        assert re.search(r"^workers +3 running of at most 5, 6 threads", printed, re.MULTILINE)
        work.check_progress()
        become(work, 3)

    head.ssh("sudo systemctl kill --signal=KILL dask-scheduler")
    with working() as work:
        become(work, 3)
        work.check_progress()
        become(work, 3)

    with cluster.get_client() as client:
        cluster.scale(0)
        until(lambda: client.nthreads() == {}, 120)
        elastic.change("Pulumi.dev.yaml", "max: 5", "max: 4")
        printed = elastic.make("up")
        assert re.search(r"^workers +1 running of at most 4, ", printed, re.MULTILINE), "for the check"
        until(lambda: client.nthreads() == {}, 120)


def test_workers_of_groups_always_run_and_the_number_does_not_include_them(
    elastic: Checkout, cluster: daskstack.StackCluster
) -> None:
    cluster.scale(3)
    with working() as work:
        become(work, 3)
        others = [*elastic.machines().values()]
        processes = pids(*others)
        elastic.change("Pulumi.dev.yaml", "600 MiB}", "600 MiB, groups: [{name: big, perMachine: 1}]}")
        printed = elastic.make("up")
        assert re.search(r"^workers +4 running of at most 7, ", printed, re.MULTILINE)
        assert pids(*others) == processes
        cluster.scale(2)
        become(work, 3)
        assert "big-1-1" in work.workers()
        work.check_progress()
        with pytest.raises(ValueError, match="7 workers are outside of the stack's bounds, 2 to 6"):
            cluster.scale(7)


def test_removing_a_machine_starts_other_workers_and_loses_nothing(
    elastic: Checkout, cluster: daskstack.StackCluster
) -> None:
    cluster.scale(3)
    with working() as work:
        become(work, 3)
        assert {name.rpartition("-")[0] for name in work.workers()} == {"worker-1", "worker-2"}
        elastic.change("Pulumi.dev.yaml", "max: 6", "max: 3")
        elastic.change("Pulumi.dev.yaml", "workers: 2", "workers: 1")
        printed = elastic.make("up")
        assert re.search(r"^workers +3 running of at most 3, ", printed, re.MULTILINE)
        become(work, 3)
        work.check_progress()
        assert set(work.workers()) == {"worker-1-1", "worker-1-2", "worker-1-3"}


def test_adapting_grows_under_load_shrinks_afterwards_and_does_not_flap(
    cluster: daskstack.StackCluster, capsys: pytest.CaptureFixture
) -> None:
    def wait(_: int) -> None:
        import time

        time.sleep(1)

    with cluster.get_client() as client:
        until(lambda: len(client.nthreads()) == 2, 120)
        cluster_commands.scale("dev", None, True, None, None)
        assert "the number adapts from 2 to 6; the stack allows 2 to 6\n" in capsys.readouterr().out
        seen = [2]

        def number() -> int:
            found = client.sync(client.scheduler.workers_scaling)["number"]
            if found != seen[-1]:
                seen.append(found)
            return found

        for _ in range(3):
            waits = client.map(wait, range(60), pure=False)
            until(lambda waits=waits: number() and all(each.status == "finished" for each in waits), 120)
            for _ in range(10):  # a short pause
                number()
                time.sleep(1)
        assert len(client.nthreads()) == 6
        cluster_commands.status("dev")
        assert ", 6 workers of at most 6\n" in capsys.readouterr().out
        assert seen == sorted(seen), "it stopped workers in a short pause"
        until(lambda: number() == 2 and len(client.nthreads()) == 2, 180)
        grown = seen.index(6)
        assert seen[grown:] == sorted(seen[grown:], reverse=True), "it started workers without work"
        cluster_commands.scale("dev", 3, False, None, None)
        assert "workers      3; the number stays" in capsys.readouterr().out
        until(lambda: len(client.nthreads()) == 3, 120)
        with pytest.raises(RemoteError, match="7 workers are outside of the stack's bounds, 2 to 6"):
            cluster_commands.scale("dev", 7, False, None, None)
