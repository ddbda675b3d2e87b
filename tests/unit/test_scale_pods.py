"""How the scheduler of a release in Kubernetes scales its workers; with a stand-in for Kubernetes' answers."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import distributed
import pytest
from distributed.core import Status

from tests.unit.test_elastic import load, slow, until

MODULE = load("charts/dask/files/scale_pods.py")
MAIN, OTHER = "dask-worker", "dask-gpu"


class Api:
    """The ConfigMap and the Deployments of a release. Pods run and stop at once."""

    def __init__(
        self,
        bounds: list[int] | None = None,
        idle: int | None = None,
        replicas: int = 1,
        group: dict[str, Any] | None = None,
    ) -> None:
        names = [MAIN, *([OTHER] if idle or group else [])]
        groups = {OTHER: group} if group else {}
        self.settings = {"deployments": names, "bounds": bounds, "idle": idle, "groups": groups}
        self.state: str | None = None
        self.replicas = dict.fromkeys(self.settings["deployments"], replicas)
        self.asked: list[tuple[str, int]] = []
        self.unready: set[str] = set()
        self.status: dict[str, int] = {}  # of all Deployments
        self.statuses: dict[str, dict[str, int]] = {}

    async def ask(self, method: str, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        await asyncio.sleep(0)
        if "configmaps" in what:
            assert what == "v1 configmaps/dask-scaling"
            if body:
                self.state = body["data"]["state"]
            state = {} if self.state is None else {"state": self.state}
            return {"data": {"settings": json.dumps(self.settings), **state}}
        name = what.split("/")[2]
        if body:
            assert (method, what.split("/")[3]) == ("PATCH", "scale")
            self.replicas[name] = body["spec"]["replicas"]
            self.asked.append((name, self.replicas[name]))
        number = self.replicas[name]
        counts = {"replicas": number, "updatedReplicas": number, "readyReplicas": number - len(self.unready)}
        status = {"observedGeneration": 1, **counts, **self.status, **self.statuses.get(name, {})}
        return {"metadata": {"generation": 1}, "spec": {"replicas": number}, "status": status}


class Room:
    """A scheduler of Kubernetes that a test drives step by step. Its workers follow the number of replicas."""

    def __init__(self, api: Api) -> None:
        self.api, self.now, self.needed, self.retired = api, 1000.0, 0, []
        self.scheduler = SimpleNamespace(
            workers={}, clients=[], idle_since=None, adaptive_target=lambda: self.needed, handlers={}, unrunnable={}
        )
        self.scheduler.workers_to_close = lambda n, attribute: list(self.scheduler.workers)
        self.start()

    def start(self) -> None:
        self.pods = MODULE["Pods"](self.scheduler, self.api.ask, "dask-scaling", lambda: self.now)
        self.pods.register()
        self.pods.retire = self.retire
        self.pods.stop_serving = self.stop_serving

    def retire(self, names: set[str]) -> None:
        self.retired.append(sorted(names))
        for name in names:
            self.scheduler.workers[name].status = Status.closing_gracefully
        self.pods.begun |= names
        self.pods.retired = set(names)

    async def stop_serving(self, addresses: list[str]) -> None:
        self.api.unready = set(addresses)

    def join(self) -> None:
        """Lets pods run and stop: those that are not ready stop first."""
        workers, number = self.scheduler.workers, self.api.replicas[MAIN]
        for name in [*self.api.unready, *reversed(workers)][: max(len(workers) - number, 0)]:
            del workers[name]
        self.api.unready &= workers.keys()
        while len(workers) < number:
            self.new = getattr(self, "new", 0) + 1
            name = f"{MAIN}-5d-{self.new}"
            workers[name] = SimpleNamespace(
                name=name, address=name, status=Status.running, has_what={}, processing={}, actors=set()
            )

    def follow(self, steps: int = 1) -> int:
        """Returns the number of workers afterwards."""
        for _ in range(steps):
            self.now += 1
            asyncio.run(self.pods.follow())
            self.join()
        return len(self.scheduler.workers)

    def ask(self, handler: str, **arguments: Any) -> dict[str, Any]:
        return asyncio.run(self.scheduler.handlers[f"workers_{handler}"](**arguments))


def test_the_retired_pods_are_those_that_stop() -> None:
    room = Room(Api([1, 6]))
    room.follow()
    room.ask("scale", number=6)
    assert room.follow(3) == 6
    before = set(room.scheduler.workers)
    room.ask("scale", number=2)
    assert room.follow(4) == 2
    [gone] = room.retired
    assert before - room.scheduler.workers.keys() == set(gone)
    assert room.api.asked == [(MAIN, 6), (MAIN, 2)]


def test_pods_that_do_not_run_yet_stop_first_and_an_update_ends_before_workers_retire() -> None:
    room = Room(Api([1, 6]))
    room.follow()
    room.ask("scale", number=5)
    asyncio.run(room.pods.follow())
    room.ask("scale", number=2)
    asyncio.run(room.pods.follow())
    assert room.api.asked == [(MAIN, 5), (MAIN, 2)]
    assert room.follow(3) == 2
    room.api.status = {"updatedReplicas": 1}
    room.ask("scale", number=1)
    assert room.follow(5) == 2
    room.api.status = {}
    assert room.follow(4) == 1
    assert len(room.retired) == 1


def test_a_scheduler_that_restarts_keeps_number_and_adapting() -> None:
    room = Room(Api([0, 8], replicas=3))
    room.follow()
    assert room.ask("scaling") == {"number": 3, "min": 0, "max": 8, "adaptive": None}, "it keeps its workers"
    room.ask("scale", number=5)
    room.start()
    room.api.replicas[MAIN] = 1  # somebody else has changed it
    assert room.follow(5) == 5
    room.ask("adapt", maximum=7)
    room.start()
    assert room.ask("scaling")["adaptive"] == [0, 7]


@pytest.mark.parametrize("state", ["", "{", "[]", '{"number": "6"}', '{"number": -1}', '{"adaptive": [1]}'])
def test_a_damaged_state_counts_as_none(state: str) -> None:
    api = Api([0, 8], replicas=2)
    api.state = state
    assert Room(api).follow(3) == 2


def test_new_bounds_take_effect_without_a_new_scheduler() -> None:
    room = Room(Api([1, 6]))
    room.ask("scale", number=6)
    assert room.follow(3) == 6
    room.api.settings["bounds"] = [0, 4]
    with pytest.raises(ValueError, match="5 workers are outside of the stack's bounds, 0 to 4"):
        room.ask("scale", number=5)
    assert room.follow(4) == 4


def test_a_retired_worker_that_restarts_counts_again_and_one_that_failed_halfway_retires_again() -> None:
    room = Room(Api([1, 6]))
    room.ask("scale", number=2)
    room.follow(3)
    room.api.status = {"readyReplicas": 2}
    room.ask("scale", number=1)
    room.follow(2)
    [[first]] = room.retired
    assert room.pods.retired == {first}
    room.scheduler.workers[first].status = Status.running
    room.api.unready.clear()
    room.follow()
    [_, again] = room.retired
    room.pods.retired.clear()
    room.follow()
    assert room.retired[2:] == [again]


@pytest.mark.parametrize(
    ("workers", "idle_for", "there_for", "clients", "scaled"),
    [
        (1, 61, 61, ["Client-1"], True),
        (1, 59, 61, [], False),
        (1, None, 61, [], False),
        (1, 3600, 59, [], False),
        (1, 3600, 3600, ["Client-daskstack-job-1"], False),
        (0, 3600, 3600, [], False),
    ],
    ids=["idle", "not long enough", "at work", "workers have just come", "a job runs", "asleep already"],
)
@pytest.mark.parametrize("bounds", [None, [1, 6]])
def test_idle_workers_stop_after_the_limit(
    bounds: list[int] | None,
    workers: int,
    idle_for: float | None,
    there_for: float,
    clients: list[str],
    scaled: bool,
) -> None:
    room = Room(Api(bounds, 60, workers))
    room.pods.number = workers
    room.join()
    room.pods.workers, room.pods.changed = set(room.scheduler.workers), time.time() - there_for
    room.scheduler.idle_since = None if idle_for is None else time.time() - idle_for
    room.scheduler.clients = clients
    asyncio.run(room.pods.follow())
    assert [each for each in room.api.asked if not each[1]] == (
        [(name, 0) for name in room.api.settings["deployments"]] if scaled else []
    )


def test_a_client_that_starts_idle_workers_gets_the_former_number() -> None:
    room = Room(Api([1, 6], 60))
    room.ask("scale", number=4)
    assert room.follow(3) == 4
    room.pods.changed = room.scheduler.idle_since = time.time() - 61
    assert room.follow(2) == 0
    room.start()
    assert room.follow(3) == 0, "a new scheduler started them"
    assert room.ask("scaling")["number"] == 4
    room.api.replicas[MAIN] = 1  # as kubectl.wake does
    room.scheduler.idle_since = time.time()
    assert room.follow(3) == 4


def test_a_client_starts_a_worker_of_a_cluster_that_was_scaled_to_zero() -> None:
    room = Room(Api([0, 6], 60))
    room.ask("scale", number=0)
    assert room.follow(4) == 0
    room.api.replicas[MAIN] = 1
    assert room.follow(4) == 1


def test_the_check_wakes_the_cluster_and_no_worker_stops_during_it() -> None:
    room = Room(Api([0, 6], 60, 0))
    assert room.follow(2) == 0
    assert room.ask("hold", seconds=240)["number"] == 0
    assert room.follow(3) == 1
    room.pods.changed = room.scheduler.idle_since = time.time() - 61
    assert room.follow(3) == 1
    room.scheduler.idle_since = None
    room.ask("hold", seconds=0)
    assert room.follow(4) == 0


def test_idle_workers_do_not_stop_during_the_check_of_a_cluster_without_bounds() -> None:
    room = Room(Api(None, 60, 3))
    room.follow(2)
    room.ask("hold", seconds=240)
    room.pods.changed = room.scheduler.idle_since = time.time() - 61
    assert room.follow(2) == 3
    room.ask("hold", seconds=0)
    assert room.follow(2) == 0


def asks(**resources: float) -> SimpleNamespace:
    return SimpleNamespace(resource_restrictions=resources or None)


@pytest.mark.parametrize(
    ("tasks", "number"),
    [
        ([asks(GPU=1)], 1),
        ([asks(GPU=1)] * 9, 4),
        ([asks(GPU=0.2)] * 10, 1),
        ([asks(GPU=0.2)] * 11, 2),
        ([asks(GPU=1, SSD=1), asks(SSD=2)], 1),
        ([asks(), asks(BIG=1), asks(GPU=3), asks(GPU=1, BIG=1)], 0),
    ],
)
def test_a_group_has_as_many_workers_as_its_waiting_tasks_can_use(tasks: list[Any], number: int) -> None:
    room = Room(Api(replicas=0, group={"min": 0, "max": 4, "resources": {"GPU": 2, "SSD": 8}}))
    room.scheduler.unrunnable = tasks
    room.follow(2)
    assert room.api.replicas == {MAIN: 0, OTHER: number}


def test_a_task_starts_a_group_of_a_cluster_that_is_asleep() -> None:
    room = Room(Api(None, 60, 1, group={"min": 0, "max": 4, "resources": {"GPU": 1}}))
    room.follow(2)
    room.pods.changed = room.scheduler.idle_since = time.time() - 61
    room.follow()
    assert room.api.replicas == {MAIN: 0, OTHER: 0}
    room.scheduler.idle_since = None
    room.scheduler.unrunnable = [asks(GPU=1)]
    room.follow(2)
    assert room.api.replicas[OTHER] == 1


def test_no_worker_of_a_group_stops_during_the_check() -> None:
    room = Room(Api(replicas=2, group={"min": 0, "max": 4, "resources": {"GPU": 1}}))
    room.follow()
    room.ask("hold", seconds=240)
    room.now += 120
    room.follow(2)
    assert room.api.replicas[OTHER] == 2
    room.ask("hold", seconds=0)
    room.follow(2)
    assert room.api.replicas[OTHER] == 0


# In a real scheduler


class Node:
    """Runs a worker for each replica. It notices late that HTTP servers have stopped; these workers stop first."""

    def __init__(self, scheduler: distributed.Scheduler, group: dict[str, Any] | None) -> None:
        self.scheduler, self.api, self.new = scheduler, Api([0, 6], replicas=0, group=group), 0
        self.pods = MODULE["Pods"](scheduler, self.api.ask, "dask-scaling")
        self.workers: dict[str, distributed.Worker] = {}
        self.victims: list[str] = []

    async def run(self) -> None:
        ready: list[str] = []
        for turn in itertools.count():
            await self.pods.follow()
            if turn % 5 == 0:
                ready = [name for name, worker in self.workers.items() if not worker.http_server._stopped]
            for deployment in self.api.settings["deployments"]:
                await self.run_pods(deployment, ready)
            await asyncio.sleep(0.05)

    def pods_of(self, deployment: str) -> list[str]:
        return [name for name in self.workers if MODULE["deployment_of"](name) == deployment]

    async def run_pods(self, deployment: str, ready: list[str]) -> None:
        found = self.pods_of(deployment)
        order = sorted(found, key=lambda name: name in ready)
        counts = {"replicas": len(found), "updatedReplicas": len(found)}
        self.api.statuses[deployment] = counts | {"readyReplicas": sum(name in ready for name in found)}
        for name in order[: max(len(order) - self.api.replicas[deployment], 0)]:
            worker = self.workers.pop(name)
            self.victims += [] if worker.http_server._stopped else [name]
            await worker.close()
        resources = self.api.settings["groups"].get(deployment, {}).get("resources")
        for _ in range(self.api.replicas[deployment] - len(found)):
            self.new += 1
            name = f"{deployment}-5d-{self.new}"
            self.workers[name] = await distributed.Worker(
                self.scheduler.address, name=name, nthreads=1, resources=resources, dashboard_address=":0"
            )

    async def become(self, number: int) -> None:
        await until(lambda: len(self.scheduler.running) == len(self.scheduler.workers) == number)


@asynccontextmanager
async def node(group: dict[str, Any] | None = None) -> AsyncIterator[tuple[Node, distributed.Client]]:
    async with (
        distributed.Scheduler(host="127.0.0.1", port=0, dashboard_address=":0") as scheduler,
        distributed.Client(scheduler.address, asynchronous=True) as client,
    ):
        there = Node(scheduler, group)
        running = asyncio.ensure_future(there.run())
        try:
            yield there, client
            assert not running.done(), running.exception()
        finally:
            running.cancel()
            await asyncio.gather(*(worker.close() for worker in there.workers.values()))


async def test_nothing_is_lost_or_repeated_while_the_number_of_pods_changes_at_random() -> None:
    async with node() as (there, client):
        await until(lambda: there.pods.bounds is not None)
        there.pods.scale(3)
        await there.become(3)
        parts = client.map(lambda _: random.random(), range(30), pure=False)
        before = await client.gather(parts)
        for _ in range(8):
            there.pods.scale(random.randint(1, 6))
            await asyncio.sleep(random.random() / 2)
            assert await client.gather(client.map(abs, parts, pure=False)) == before
        there.pods.scale(1)
        await there.become(1)
        assert await client.gather(parts) == before
        assert there.victims == [], "workers stopped that had not handed over their results"


async def test_the_last_pod_stays_while_it_holds_results_and_adapting_starts_one_for_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MODULE["Pods"].drain.__globals__, "STEADY", 1)
    async with node() as (there, client):
        await until(lambda: there.pods.bounds is not None)
        there.pods.adapt()
        part = client.submit(slow, 7)
        assert await part == 7
        await asyncio.sleep(2)
        assert len(there.workers) == 1
        del part
        await there.become(0)


async def test_only_main_workers_stop_and_tasks_that_wait_for_other_groups_start_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MODULE["Pods"].drain.__globals__, "STEADY", 1)
    async with (
        node() as (there, client),
        distributed.Worker(
            there.scheduler.address, name=f"{MAIN}-big-5d-1", nthreads=1, resources={"BIG": 1}, dashboard_address=":0"
        ) as big,
    ):
        await until(lambda: there.pods.bounds is not None)
        there.pods.scale(3)
        await there.become(4)
        there.pods.scale(0)
        await there.become(1)
        assert [worker.name for worker in there.scheduler.workers.values()] == [big.name]
        there.pods.adapt()
        waiting = client.map(slow, range(10), resources={"BIG": 1}, pure=False)
        await until(lambda: any(part.status == "finished" for part in waiting))
        assert there.pods.number == 0, "main workers would not help"
        plain = client.map(slow, range(100, 120), pure=False)
        await until(lambda: len(there.workers) > 1)
        await client.gather(plain)
        del plain
        await until(lambda: there.pods.number == 0)
        assert await client.gather(waiting) == list(range(10))
        await there.become(1)


async def test_the_number_of_a_groups_workers_follows_its_tasks_and_no_result_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MODULE["Pods"].drain.__globals__, "STEADY", 1)

    def number(_: int) -> float:  # a repeated task has another result
        time.sleep(0.2)
        return random.random()

    async with node({"min": 0, "max": 2, "resources": {"GPU": 1}}) as (there, client):
        await until(lambda: there.pods.bounds is not None)
        there.pods.adapt()
        parts = client.map(number, range(12), resources={"GPU": 1}, pure=False)
        before = await client.gather(parts)
        assert {name for name, _ in there.api.asked} == {OTHER}, "main workers would not help"
        assert max(replicas for _, replicas in there.api.asked) == 2
        assert len({holder for holders in (await client.who_has(parts)).values() for holder in holders}) == 2
        await until(lambda: len(there.pods_of(OTHER)) == 1)
        await asyncio.sleep(2)
        assert len(there.workers) == 1, "the last worker stays while it holds results"
        there.pods.scale(1)
        await until(lambda: not there.pods_of(OTHER))
        assert await client.gather(parts) == before
        assert there.victims == [], "workers stopped that had not handed over their results"


def test_only_pods_of_the_main_deployment_count() -> None:
    pods = Room(Api([1, 6])).pods
    pods.deployments = ["dask-worker"]
    assert pods.is_ours("dask-worker-5d4f9-x2x4z")
    for name in ("dask-worker-gpu-5d4f9-x2x4z", "mine", 7, "dask-worker-5d4f9"):
        assert not pods.is_ours(name)
