"""Joins simulated workers to a scheduler and keeps them: python simulated_workers.py SCHEDULER FOLDER FIRST LAST.

It starts when the file FOLDER/go appears, and writes the time at which the last one had joined to FOLDER/joined-FIRST.
These workers compute nothing, and leave out what would only load this computer: profiles, their own measurements and
dashboards. Their connections and heartbeats are the same as those of others.
"""

import asyncio
import sys
import time
from pathlib import Path

import dask
from distributed import Worker

AT_ONCE = 50  # because all share a few processors, which real workers do not
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.worker.http.routes": [],
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.tick.interval": "1s",
    "distributed.diagnostics.nvml": False,
}


async def main(scheduler: str, place: str, first: int, last: int) -> None:
    folder, turns = Path(place), asyncio.Semaphore(AT_ONCE)

    async def join(number: int) -> Worker:
        async with turns:
            name = f"simulated-{number}-1"
            return await Worker(scheduler, name=name, nthreads=1, memory_limit=0, local_directory=place)

    while not (folder / "go").exists():
        await asyncio.sleep(0.01)
    workers = await asyncio.gather(*map(join, range(first, last + 1)))
    (folder / f"joined-{first}").write_text(f"{time.time()}\n")
    await asyncio.gather(*(worker.finished() for worker in workers))


if __name__ == "__main__":
    with dask.config.set(QUIET):
        asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
