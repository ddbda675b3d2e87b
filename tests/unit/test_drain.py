"""What a worker is after it could not leave; charts/dask/files/drain.py runs on both targets."""

import asyncio
import runpy
from pathlib import Path

import distributed

from daskstack.engine import PROJECT

MODULE = runpy.run_path(str(PROJECT / "charts/dask/files/drain.py"))
leave = MODULE["leave"]


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


async def test_a_worker_that_is_starting_when_its_pod_stops_joins_first(tmp_path: Path) -> None:
    """Else it would ignore the signal to stop, or have results that it does not hand over."""
    status = tmp_path / "status"
    status.write_text("Name:\tdask\nSigCgt:\t0000000100000002\n")
    waiting = asyncio.ensure_future(asyncio.to_thread(MODULE["wait_for_signal_handler"], status))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    new = tmp_path / "new"
    new.write_text("Name:\tdask\nSigCgt:\t0000000100004002\n")
    new.replace(status)  # never empty, as it is while it is written
    await asyncio.wait_for(waiting, 20)
    async with distributed.Scheduler(host="127.0.0.1", port=0, dashboard_address=":0") as scheduler:
        waiting = asyncio.ensure_future(MODULE["joined"]("late", 60, scheduler))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        async with distributed.Worker(scheduler.address, name="late"):
            await asyncio.wait_for(waiting, 20)
        await MODULE["joined"]("never", 0.1, scheduler)
