"""How many workers run within a stack's bounds, and which; on a clock of the tests, and in a real scheduler."""

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed
import pytest
from distributed.core import Status

import daskstack
from daskstack import connection
from daskstack.engine import PROJECT
from daskstack.status_and_logs import SCALE_WORKERS, ask
from daskstack.tunnel import Way
from tests.client_outputs import machines_client


def load(path: str) -> dict[str, Any]:
    """The names of a program that finds others in its folder, as on the cluster."""
    file = PROJECT / path
    module: dict[str, Any] = {"__name__": file.stem, "__file__": str(PROJECT / "charts/dask/files" / file.name)}
    exec(compile(file.read_text(), path, "exec"), module)
    return module


MODULE = load("on_the_cluster/elastic.py")
SCALING = MODULE["Elastic"].drain.__globals__
ABSENT, STEADY, REFUSED = MODULE["ABSENT"], SCALING["STEADY"], SCALING["REFUSED"]
MEMBERS = [f"worker-{machine}-{number}" for machine in (1, 2) for number in (1, 2, 3)]


class Room:
    """A scheduler with workers that join as soon as they are listed, and a clock that a test sets."""

    def __init__(self, folder: Path, bounds: str = "1 6", members: list[str] = MEMBERS) -> None:
        self.folder, self.now, self.needed = folder, 1000.0, 0
        self.retired: list[str] = []
        self.dead: set[str] = set()
        self.scheduler = SimpleNamespace(workers={}, adaptive_target=lambda: self.needed)
        self.scheduler.workers_to_close = lambda n, attribute: list(self.scheduler.workers)[::-1][:n]
        if members:
            (folder / "members").write_text("".join(f"{name}\n" for name in members))
        if bounds:
            (folder / "bounds").write_text(f"{bounds}\n")
        self.start()

    def start(self) -> None:
        """A scheduler that has just started."""
        self.elastic = MODULE["Elastic"](self.scheduler, self.folder, self.folder / "elastic.json", lambda: self.now)
        self.elastic.retire = self.retire

    def retire(self, names: set[str]) -> None:
        self.retired += names
        self.elastic.leaving |= names

    def join(self, name: str, status: Status = Status.running) -> None:
        self.scheduler.workers[name] = SimpleNamespace(
            name=name, status=status, has_what={}, processing={}, actors=set()
        )

    def listed(self) -> list[str]:
        return json.loads((self.folder / "elastic.json").read_text())["workers"]

    def pass_time(self, seconds: float = 1) -> int:
        """Returns the number of workers afterwards."""
        for _ in range(int(seconds)):
            self.now += 1
            for name in self.elastic.leaving:
                self.scheduler.workers.pop(name, None)
            self.elastic.leaving.clear()
            self.elastic.tick()
            if (self.folder / "elastic.json").exists():
                for name in set(self.listed()) - self.scheduler.workers.keys() - self.dead:
                    self.join(name)
        return len(self.scheduler.workers)


def test_the_first_run_starts_the_smallest_number_spread_over_the_machines(tmp_path: Path) -> None:
    room = Room(tmp_path, "2 6", [])
    assert room.pass_time() == 0, "`up` has not listed the workers"
    (tmp_path / "members").write_text("\n".join(MEMBERS))
    assert room.pass_time() == 2
    assert room.listed() == ["worker-1-1", "worker-2-1"]
    room.elastic.scale(4)
    assert room.listed() == ["worker-1-1", "worker-1-2", "worker-2-1", "worker-2-2"]


def test_scaling_keeps_within_the_bounds(tmp_path: Path) -> None:
    room = Room(tmp_path, "2 5")
    assert room.elastic.scale(5) == {"number": 5, "min": 2, "max": 5, "adaptive": None}
    assert room.pass_time() == 5
    for number in (1, 6):
        with pytest.raises(ValueError, match=rf"^{number} workers are outside of the stack's bounds, 2 to 5; change "):
            room.elastic.scale(number)
        with pytest.raises(ValueError, match="outside of the stack's bounds"):
            room.elastic.adapt(maximum=number)
    for wrong in (-1, 2.0, True, "3"):
        with pytest.raises(ValueError, match="is not a number of workers"):
            room.elastic.scale(wrong)
    with pytest.raises(ValueError, match="the minimum, 4, is larger than the maximum, 3"):
        room.elastic.adapt(4, 3)
    assert room.pass_time() == 5


def test_new_bounds_change_the_number_only_as_far_as_they_require(tmp_path: Path) -> None:
    room = Room(tmp_path, "1 6")
    room.elastic.scale(4)
    for bounds, number in (("1 5", 4), ("1 3", 3), ("1 6", 3), ("5 6", 5)):
        (tmp_path / "bounds").write_text(bounds)
        assert room.pass_time(3) == number


def test_a_cluster_that_gets_bounds_keeps_its_workers(tmp_path: Path) -> None:
    room = Room(tmp_path, "")
    assert room.pass_time() == 6
    (tmp_path / "bounds").write_text("1 6")
    assert room.pass_time(3) == 6
    with pytest.raises(ValueError, match="outside"):
        room.elastic.scale(0)


def test_workers_that_cost_least_stop_first_and_every_machine_keeps_some(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.elastic.scale(6)
    assert room.pass_time() == 6
    for name in MEMBERS[::-1]:  # those of worker-1 cost least
        room.scheduler.workers[name] = room.scheduler.workers.pop(name)
    room.elastic.scale(2)
    assert set(room.retired) == {"worker-1-1", "worker-1-2", "worker-2-1", "worker-2-2"}
    assert room.pass_time() == 2
    assert room.listed() == list(room.scheduler.workers)[::-1] == ["worker-1-3", "worker-2-3"]


def test_a_restarted_scheduler_keeps_the_number_and_the_workers(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.elastic.scale(3)
    assert room.pass_time() == 3
    before = room.listed()
    room.scheduler.workers.clear()
    room.start()
    assert room.pass_time() == 3
    assert room.listed() == before
    room.elastic.adapt(2, 4)
    room.start()
    room.pass_time()
    assert room.elastic.scaling() == {"number": 3, "min": 1, "max": 6, "adaptive": [2, 4]}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"number": "6"}', '{"number": -1}', '{"adaptive": [1]}', '{"workers": 5}']
)
def test_a_damaged_file_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "elastic.json").write_text(text)
    room = Room(tmp_path, "2 6")
    assert room.pass_time() == 2


def test_a_worker_that_does_not_join_is_replaced_and_a_wanted_one_returns(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.dead = {"worker-1-1"}
    room.elastic.scale(2)
    assert room.pass_time(ABSENT - 2) == 1
    assert room.pass_time(5) == 2
    assert "worker-1-1" not in room.listed()
    room.elastic.scale(6)
    assert room.pass_time(3 * ABSENT) == 5, "no other one could replace it"
    assert "worker-1-1" in room.listed()
    room.dead.clear()
    assert room.pass_time() == 6


def test_workers_whose_machines_must_boot_get_the_time_that_the_bounds_name(tmp_path: Path) -> None:
    room = Room(tmp_path, "1 6 300")
    room.dead.add("worker-1-1")
    room.pass_time(298)
    assert room.listed() == ["worker-1-1"]
    room.pass_time(5)
    assert "worker-1-1" not in room.listed()


def test_the_file_names_the_machines_of_workers_that_run_start_or_hand_over_their_results(tmp_path: Path) -> None:
    def machines() -> str:
        return json.loads((tmp_path / "elastic.json").read_text())["machines"]

    room = Room(tmp_path, "0 6")
    room.dead.add("worker-1-1")
    room.elastic.scale(1)
    assert machines() == " worker-1"
    room.dead.clear()
    room.pass_time()
    room.elastic.scale(0)
    assert machines() == " worker-1", "its results are not handed over yet"
    room.elastic.leaving.clear()
    room.elastic.scheduler.workers["worker-1-1"].status = Status.closing_gracefully
    room.elastic.tick()
    assert machines() == " worker-1", "its process has not ended"
    room.pass_time()
    assert machines() == ""
    assert '"worker-1"' not in (tmp_path / "elastic.json").read_text()


def test_a_worker_that_restarts_is_neither_replaced_nor_counted_as_new(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.elastic.scale(3)
    room.pass_time()
    before = room.listed()
    room.join(before[0], Status.closing_gracefully)  # a step or systemd stops it
    assert room.pass_time(10) == 3
    room.dead = {before[0]}
    del room.scheduler.workers[before[0]]
    room.pass_time(ABSENT - 5)
    room.dead.clear()
    assert room.pass_time(2 * ABSENT) == 3
    assert (room.listed(), room.retired) == (before, [])


def test_a_worker_that_the_settings_remove_is_replaced_at_once_and_left_to_up(tmp_path: Path) -> None:
    room = Room(tmp_path, "1 3")
    room.elastic.scale(2)
    room.pass_time()
    assert room.listed() == ["worker-1-1", "worker-2-1"]
    (tmp_path / "members").write_text("\n".join(MEMBERS[:3]))
    room.pass_time()
    assert room.listed() == ["worker-1-1", "worker-1-2"]
    assert room.retired == []


def test_adapting_grows_at_once_and_shrinks_after_a_steady_minute(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.elastic.adapt()
    assert room.pass_time() == 1
    room.needed = 4
    assert room.pass_time(2) == 4
    room.needed = 0
    assert room.pass_time(STEADY - 5) == 4
    room.needed = 3  # a short burst
    assert room.pass_time() == 4
    room.needed = 0
    assert room.pass_time(10) == 3
    assert room.pass_time(STEADY) == 1
    room.needed = 99
    assert room.pass_time(2) == 6
    assert room.elastic.scale(2)["adaptive"] is None
    assert room.pass_time(2 * STEADY) == 2


def test_a_thousand_workers_of_which_few_run_cost_the_scheduler_little(tmp_path: Path) -> None:
    room = Room(tmp_path, "10 1000", [f"worker-{machine}-1" for machine in range(1000)])
    assert room.pass_time(2) == 10
    before = time.process_time()
    room.pass_time(10)
    assert time.process_time() - before < 0.3  # seconds; the order in which all others would start takes 0.9


def test_work_that_comes_and_goes_does_not_stop_and_start_workers(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.elastic.adapt(minimum=2, maximum=5)
    seen = []
    for second in range(10 * STEADY):
        room.needed = 9 * (second // 20 % 2)
        seen.append(room.pass_time())
    assert seen[:20] == 20 * [2]
    assert set(seen[25:]) == {5}
    assert room.retired == []


def test_a_zero_minimum_starts_a_worker_for_the_check_only(tmp_path: Path) -> None:
    room = Room(tmp_path, "0 6")
    assert room.pass_time() == 0
    assert room.elastic.hold(240)["number"] == 0
    assert room.pass_time(5) == 1
    room.elastic.hold(0)
    assert room.pass_time(2) == 0


def test_no_worker_stops_during_the_check_or_after_it_was_killed(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.elastic.scale(3)
    room.pass_time()
    room.elastic.hold(240)
    room.elastic.scale(1)
    assert room.pass_time(230) == 3
    room.elastic.scale(4)
    assert room.pass_time() == 4
    room.elastic.scale(1)
    assert room.pass_time(15) == 1


def test_workers_of_groups_always_run_and_do_not_count(tmp_path: Path) -> None:
    room = Room(tmp_path, "0 6", [*MEMBERS, "big-1-1"])
    (tmp_path / "fixed").write_text("big-1-1\n")
    assert room.pass_time(2) == 1
    assert (room.listed(), json.loads((tmp_path / "elastic.json").read_text())["machines"]) == (["big-1-1"], " big-1")
    assert room.elastic.scale(3) == {"number": 3, "min": 0, "max": 6, "adaptive": None}
    assert room.pass_time() == 4
    room.start()
    assert room.pass_time() == 4
    assert not room.elastic.is_ours("big-1-1")
    room.elastic.scale(0)
    assert room.pass_time(2) == 1
    assert room.listed() == ["big-1-1"]
    assert "big-1-1" not in room.retired


def test_up_has_to_end_before_a_cluster_scales(tmp_path: Path) -> None:
    room = Room(tmp_path, "1 6", [])
    with pytest.raises(ValueError, match="wait until `up` has ended"):
        room.elastic.scale(3)


# In a real scheduler


class Machines:
    """Starts a worker for each name in the file, as stay_retired.py does."""

    def __init__(self, folder: Path, scheduler: distributed.Scheduler) -> None:
        (folder / "members").write_text("\n".join(MEMBERS))
        (folder / "bounds").write_text("0 6")
        self.file, self.scheduler = folder / "elastic.json", scheduler
        self.elastic = MODULE["Elastic"](scheduler, folder, self.file)
        self.workers: dict[str, distributed.Worker] = {}

    async def run(self) -> None:
        while True:
            self.elastic.tick()
            for name in json.loads(self.file.read_text())["workers"]:
                if name not in self.workers or self.workers[name].status in (Status.closed, Status.failed):
                    self.workers[name] = await distributed.Worker(self.scheduler.address, name=name, nthreads=1)
            await asyncio.sleep(0.1)

    async def become(self, number: int) -> None:
        await until(lambda: len(self.scheduler.running) == len(self.scheduler.workers) == number)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it did not become true within 60 s")


@asynccontextmanager
async def machines(folder: Path) -> AsyncIterator[tuple[Machines, distributed.Client]]:
    async with (
        distributed.Scheduler(host="127.0.0.1", port=0, dashboard_address=":0") as scheduler,
        distributed.Client(scheduler.address, asynchronous=True) as client,
    ):
        there = Machines(folder, scheduler)
        running = asyncio.ensure_future(there.run())
        try:
            yield there, client
        finally:
            running.cancel()
            await asyncio.gather(*(worker.close() for worker in there.workers.values()))


async def test_clients_and_the_command_line_scale_through_the_schedulers_handlers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with machines(tmp_path) as (there, _):
        address = there.scheduler.address
        monkeypatch.setitem(MODULE, "Elastic", lambda scheduler: there.elastic)
        MODULE["dask_setup"](there.scheduler)
        there.scheduler.elastic_callback.stop()
        port = int(address.rpartition(":")[2])
        monkeypatch.setattr(connection, "way_to", lambda *_, **__: nullcontext(Way([port, port], lambda: "")))
        monkeypatch.setattr(connection, "facts_of", lambda _: machines_client(scheduler=address, bounds=[0, 6]))
        async with daskstack.StackCluster("mine", asynchronous=True) as cluster:
            await cluster.scale(2)
            await cluster.wait_for_workers(2, timeout=60)
            await there.become(2)
            assert "2 of at most 6" in cluster._scaling_status()
            with pytest.raises(ValueError, match="7 workers are outside of the stack's bounds, 0 to 6"):
                await cluster.scale(7)
            cluster.scale(3)  # without await
            await there.become(3)
            await cluster.adapt(maximum=4)
            assert there.elastic.scaling()["adaptive"] == [0, 4]

        def run(handler: str, arguments: str) -> dict[str, Any]:
            command = [sys.executable, "-I", "-", address, handler, arguments]
            return json.loads(ask(command, SCALE_WORKERS.read_text()))

        known = {"number": 1, "min": 0, "max": 6, "adaptive": None}
        assert await asyncio.to_thread(run, "workers_scale", '{"number": 1}') == known
        assert await asyncio.to_thread(run, "workers_scaling", "{}") == known
        error = await asyncio.to_thread(run, "workers_adapt", '{"minimum": 9, "maximum": null}')
        assert error["error"].startswith("9 workers are outside of the stack's bounds")

        monkeypatch.setattr(connection, "facts_of", lambda _: machines_client(scheduler=address))
        async with daskstack.StackCluster("mine", asynchronous=True) as cluster:
            for scale in (lambda: cluster.scale(2), cluster.adapt):
                with pytest.raises(NotImplementedError, match=r"set workers.min or workers.max in Pulumi.mine.yaml"):
                    scale()


async def test_no_result_is_lost_while_the_number_changes_at_random(tmp_path: Path) -> None:
    async with machines(tmp_path) as (there, client):
        there.elastic.scale(6)
        await there.become(6)
        parts = client.map(lambda _: random.random(), range(60), pure=False)
        before = await client.gather(parts)
        for number in (2, 5, 1):
            there.elastic.scale(number)
            await asyncio.sleep(random.random() / 2)
            assert await client.gather(client.map(abs, parts, pure=False)) == before
        await there.become(1)
        assert await client.gather(parts) == before


async def test_the_last_worker_stays_while_it_holds_results(tmp_path: Path) -> None:
    async with machines(tmp_path) as (there, client):
        there.elastic.scale(3)
        await there.become(3)
        parts = client.map(lambda _: random.random(), range(30), pure=False)
        before = await client.gather(parts)
        there.elastic.scale(0)
        await there.become(1)
        await asyncio.sleep(1)
        assert await client.gather(parts) == before
        del parts
        await there.become(0)


async def test_a_worker_with_an_actor_stays(tmp_path: Path) -> None:
    async with machines(tmp_path) as (there, client):
        there.elastic.scale(2)
        await there.become(2)
        actor = await client.submit(Counter, actor=True)
        there.elastic.scale(0)
        await there.become(1)
        await asyncio.sleep(0.5)
        assert await actor.more() == 1


async def test_a_worker_whose_results_nobody_can_take_stays_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCALING, "WITHIN", 4)
    async with machines(tmp_path) as (there, client):
        there.elastic.scale(2)
        await there.become(2)
        [full, holder] = there.workers.values()
        full.memory_manager.memory_pause_fraction = 1e-9
        await until(lambda: len(there.scheduler.running) == 1)
        part = await client.scatter(random.random(), workers=[holder.address])
        before = await client.gather(part)
        there.elastic.retire({holder.name})
        await until(lambda: holder.name in there.elastic.refused)
        await until(lambda: holder.status == Status.running)
        there.elastic.tick()
        assert holder.name in there.elastic.listed
        assert not there.elastic.can_leave(there.scheduler.workers[holder.address], there.elastic.clock())
        assert await client.gather(part) == before
        monkeypatch.setitem(SCALING, "REFUSED", 0)
        full.memory_manager.memory_pause_fraction = 1.0
        await until(lambda: len(there.scheduler.running) == 2)
        there.elastic.scale(1)
        await there.become(1)
        assert await client.gather(part) == before


class Counter:
    def more(self) -> int:
        return 1


async def test_adapting_starts_a_worker_for_work_and_stops_it_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCALING, "STEADY", 2)
    async with machines(tmp_path) as (there, client):
        there.elastic.adapt()
        assert await client.submit(sum, [1, 2]) == 3
        assert await client.gather(client.map(slow, range(20), pure=False)) == list(range(20))
        assert len(there.workers) > 1
        await there.become(0)


def slow(number: int) -> int:
    import time

    time.sleep(0.5)
    return number
