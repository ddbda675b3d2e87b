"""What a worker is after it could not leave; charts/dask/files/drain.py runs on both targets."""

import asyncio
import runpy

import distributed

from daskstack.engine import PROJECT

leave = runpy.run_path(str(PROJECT / "charts/dask/files/drain.py"))["leave"]


class Counter:
    def more(self) -> int:
        return 1


async def test_a_worker_that_could_not_retire_works_again_however_late_it_answers() -> None:
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    async with (
        distributed.LocalCluster(**options, asynchronous=True) as cluster,
        distributed.Client(cluster, asynchronous=True) as client,
    ):
        worker = cluster.workers[0]
        actor = await client.submit(Counter, actor=True, workers=[worker.address])
        # Its answers to the scheduler wait, so that the next try begins before the last one is taken back.
        worker.batched_stream.interval = 0.5
        ready, kept = await leave([worker.name], False, 4, cluster.scheduler)
        assert (ready, kept) == ([], [worker.name])
        for _ in range(600):
            if worker.status == cluster.scheduler.workers[worker.address].status == distributed.Status.running:
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError(f"it is {worker.status}, to the scheduler {cluster.scheduler.workers[worker.address]}")
        assert await actor.more() == 1
