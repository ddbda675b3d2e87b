"""Retires workers without losing results. Runs in the cluster's environment with its credentials.

    drain.py SCHEDULER [--within SECONDS] NAME...    retire these workers, which are about to be stopped
    drain.py SCHEDULER --pod NAME                    the same in a worker's container, even if the worker is starting
    drain.py SCHEDULER --all-but NAME...             retire all other workers permanently
    drain.py SCHEDULER --until-idle SECONDS          wait for running tasks before the scheduler is stopped

A retiring worker gets no new tasks, hands back tasks that it has not started, and moves its results to other workers.
The program fails if results cannot be moved.
"""

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

WITHIN = 80  # seconds; after a quarter of them, other workers repeat the tasks that are still running
GONE = 60  # seconds without any worker after which none is expected to return
QUIET = 5  # seconds after the last task for a client to fetch its result or to submit more work
JOINING = 20  # seconds for a starting worker to join
ALONE = 15  # seconds to wait for another worker, because a machine may be restarting its own


async def leave(names, all_but, within, dask_scheduler):
    """Runs in the scheduler. Returns the addresses of workers that can stop now, and the names of the others."""
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
        # Retire once more after the last task has finished, to move its result.
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
        # Dask also reverts the retirement, but to the status before this attempt, which an earlier one may have set.
        message = {"op": "worker-status-change", "status": before[address].name, "stimulus_id": f"drain-{time.time()}"}
        if address in scheduler.stream_comms:
            scheduler.stream_comms[address].send(message)
    return list(ready), [leaving[address].name for address in kept]


async def idle(seconds, dask_scheduler):
    """Runs in the scheduler. Waits until no task is running, or gives up. Returns whether the scheduler is idle."""
    scheduler, start = dask_scheduler, time.monotonic()
    worked = start
    while scheduler.idle_since is None or time.time() - scheduler.idle_since < QUIET:
        now = time.monotonic()
        worked = now if scheduler.workers else worked
        if now - start > seconds or now - worked > GONE:
            return False
        await asyncio.sleep(0.2)
    return True


async def joined(name, seconds, dask_scheduler):
    """Runs in the scheduler. Waits for a worker with this name, or gives up."""
    start = time.monotonic()
    while all(worker.name != name for worker in dask_scheduler.workers.values()) and time.monotonic() - start < seconds:
        await asyncio.sleep(0.2)


def wait_for_signal_handler(process="/proc/1/status"):
    """Process 1 of a container ignores SIGTERM until it has a handler. It would run, and work, until it is killed."""
    while True:
        lines = Path(process).read_text().splitlines()
        [caught] = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")]
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.1)


def hand_back(scheduler, worker, begun):
    """Reschedule the worker's waiting tasks. Otherwise they count as suspects for its death when it stops."""
    for task in list(worker.processing):
        if task.key not in begun:
            scheduler._reschedule(task.key, worker=worker.address, stimulus_id="drain")


def exit_without_scheduler(where):
    """Exit if the scheduler disappears, because the client would wait forever for an answer."""
    while True:
        time.sleep(2)
        try:
            socket.create_connection(where, timeout=5).close()
        except OSError as error:
            print(f"lost the scheduler at {where[0]}: {error}", file=sys.stderr, flush=True)
            os._exit(1)


def stay_away(dask_worker):
    """Leave a file on the worker's machine that keeps its systemd unit from starting it again."""
    Path.home().joinpath(f"retired-{dask_worker.name}").touch()


def main():
    address, *names = sys.argv[1:]
    permanently, within = names[0] == "--all-but", WITHIN
    pod = names[0] == "--pod"
    if names[0] == "--within":
        _, within, *names = names
    elif pod:
        del names[0]
        wait_for_signal_handler()
    where = (urlsplit(address).hostname, urlsplit(address).port)
    try:
        # If all machines power off, the scheduler may be gone already. Fail at once, because Dask would retry for long.
        socket.create_connection(where, timeout=5).close()
        if names[0] != "--until-idle":
            threading.Thread(target=exit_without_scheduler, args=[where], daemon=True).start()
        from distributed import Client

        with Client(address, timeout=60) as client:  # long, for busy machines; the thread notices a lost scheduler
            if names[0] == "--until-idle":
                if not client.run_on_scheduler(idle, float(names[1])):
                    sys.exit("tasks are still running")
                return
            if pod:
                client.run_on_scheduler(joined, names[0], JOINING)
            ready, kept = client.run_on_scheduler(leave, names[permanently:], permanently, float(within))
            if permanently and ready:
                # Remove them from the scheduler as well, because shuffles place results on every worker that it knows.
                client.run(stay_away, workers=ready)
                client.retire_workers(ready, close_workers=True, remove=True)
    except OSError as error:
        sys.exit(f"the scheduler at {address} does not answer: {error}")
    if kept:
        sys.exit(f"cannot move results of {', '.join(kept)}: they hold actors, or no other worker has enough memory")


if __name__ == "__main__":
    main()
