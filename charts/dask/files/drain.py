"""Lets workers leave without a loss; runs on the machines, in their environment, with their credentials.

    drain.py SCHEDULER [--within SECONDS] NAME...    these are about to be stopped
    drain.py SCHEDULER --all-but NAME...             all but these leave for good
    drain.py SCHEDULER --until-idle SECONDS          the scheduler itself is about to be stopped: what runs may end

A worker that leaves gets no new tasks, hands back those that it has not begun, and moves its results to others.
Fails where results cannot be moved.
"""

import asyncio
import os
import socket
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

WITHIN = 80  # seconds, a quarter of them for tasks that a worker has begun; then others do them again
GONE = 60  # seconds without any worker until none is expected back
QUIET = 5  # seconds after the last task, for a client to fetch its result or to go on
ALONE = 15  # seconds until another worker can take over: a machine may just be restarting its own


async def leave(names, all_but, within, dask_scheduler):
    """Runs in the scheduler. Returns the addresses of workers that may stop now, and the names of those that cannot."""
    scheduler, start = dask_scheduler, time.monotonic()
    leaving = {address: worker for address, worker in scheduler.workers.items() if (worker.name in names) != all_but}
    before = {address: worker.status for address, worker in leaving.items()}
    ready, idle = {}, False
    begun_until = within / 4
    alone_until = min(ALONE, begun_until)
    while (
        any(worker.has_what or worker.processing for worker in leaving.values())
        and scheduler.running <= set(leaving.values())
        and time.monotonic() - start < alone_until
    ):
        await asyncio.sleep(0.2)
    while leaving:
        ready = await scheduler.retire_workers(list(leaving), close_workers=False, remove=False)
        passed = time.monotonic() - start
        # Moved once more after the last task has ended, for its result.
        if idle or passed > begun_until or (len(ready) < len(leaving) and passed > alone_until):
            break
        begun = await scheduler.broadcast(
            msg={"op": "call_stack", "keys": None}, workers=list(ready), on_error="ignore"
        )
        for address in ready:
            hand_back(scheduler, leaving[address], begun.get(address, ()))
        idle = len(ready) == len(leaving) and not any(begun.values())
        if not idle:
            await asyncio.sleep(0.2)
    for address in ready:
        hand_back(scheduler, leaving[address], ())
    kept = [address for address in leaving if address not in ready]
    for address in kept:
        # Dask takes back its retirement, too; but to what it found, which may be what the try before had begun.
        message = {"op": "worker-status-change", "status": before[address].name, "stimulus_id": f"drain-{time.time()}"}
        if address in scheduler.stream_comms:
            scheduler.stream_comms[address].send(message)
    return list(ready), [leaving[address].name for address in kept]


async def idle(seconds, dask_scheduler):
    """Runs in the scheduler: waits for what runs to end, or for workers to be gone. Whether nothing runs any more."""
    scheduler, start = dask_scheduler, time.monotonic()
    worked = start
    while scheduler.idle_since is None or time.time() - scheduler.idle_since < QUIET:
        now = time.monotonic()
        worked = now if scheduler.workers else worked
        if now - start > seconds or now - worked > GONE:
            return False
        await asyncio.sleep(0.2)
    return True


def hand_back(scheduler, worker, begun):
    """Else tasks wait on the worker until it is gone, and then count as ones that may have killed it."""
    for task in list(worker.processing):
        if task.key not in begun:
            scheduler._reschedule(task.key, worker=worker.address, stimulus_id="drain")


def end_with(where):
    """Ends this program where the scheduler goes: a client would wait for an answer that never comes."""
    while True:
        time.sleep(2)
        try:
            socket.create_connection(where, timeout=5).close()
        except OSError as error:
            print(f"the scheduler at {where[0]} went away: {error}", file=sys.stderr, flush=True)
            os._exit(1)


def stay_away(dask_worker):
    """The mark on the worker's machine that keeps its unit from coming back by itself."""
    Path.home().joinpath(f"retired-{dask_worker.name}").touch()


def main():
    address, *names = sys.argv[1:]
    for_good, within = names[0] == "--all-but", WITHIN
    if names[0] == "--within":
        _, within, *names = names
    where = (urlsplit(address).hostname, urlsplit(address).port)
    try:
        # Known at once where the scheduler is not there, at a power-off of all; Dask itself would try for long.
        socket.create_connection(where, timeout=5).close()
        if names[0] != "--until-idle":
            threading.Thread(target=end_with, args=[where], daemon=True).start()
        from distributed import Client

        with Client(address, timeout=60) as client:  # a busy machine takes long; one that is gone is seen by end_with
            if names[0] == "--until-idle":
                if not client.run_on_scheduler(idle, float(names[1])):
                    sys.exit("there are tasks left")
                return
            ready, kept = client.run_on_scheduler(leave, names[for_good:], for_good, float(within))
            if for_good and ready:
                # Shuffles place their results on every worker that the scheduler knows, idle ones too.
                client.run(stay_away, workers=ready)
                client.retire_workers(ready, close_workers=True, remove=True)
    except OSError as error:
        sys.exit(f"the scheduler at {address} does not answer: {error}")
    if kept:
        sys.exit(f"what {', '.join(kept)} hold cannot be moved: there are actors, or no worker has memory for it")


if __name__ == "__main__":
    main()
