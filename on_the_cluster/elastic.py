"""Scales the workers within the stack's bounds: a preload of the scheduler.

The stack sets the bounds. The running cluster sets the number: clients call the handlers at the end of `Elastic`, and
while adapting, the number follows the work. A file in the home of the cluster's user keeps both, for a scheduler that
restarts. It also names the workers that run: stay_retired.py starts a worker only if this file and the stack's list
name it.

A worker that stops has handed over its results (drain.py). If no other worker can take them, it does not stop. Neither
does the last worker while it has results or tasks.
"""

import asyncio
import json
import logging
import os
import runpy
import time
from collections import Counter, deque
from pathlib import Path

from distributed.core import Status
from tornado.ioloop import PeriodicCallback

INTERVAL = 1  # seconds
STEADY = 60  # seconds for which fewer workers must suffice before adapting stops some
ABSENT = 60  # seconds for a worker to join, or to return, before another one replaces it
WITHIN = 240  # seconds for drain.py; after a quarter of them, other workers repeat the tasks that are still running
REFUSED = 60  # seconds until a worker that could not hand over its results is asked again

ETC = Path("/etc/daskstack")  # `members`: the stack's workers; `bounds`: their smallest and largest number
DRAIN = Path(__file__).with_name("drain.py")
logger = logging.getLogger("dask.elastic")


class Elastic:
    def __init__(self, scheduler, etc=ETC, file=None, clock=time.monotonic):
        self.scheduler, self.etc, self.clock = scheduler, etc, clock
        self.file = file or Path.home() / "elastic.json"
        self.members, self.bounds = [], None
        # None: the smallest number, unless the cluster ran without bounds before.
        self.number, self.adaptive = None, None
        # The workers that run or are to start, and when each was seen last.
        self.listed = {}
        self.leaving, self.failed, self.refused = set(), {}, {}
        self.targets, self.held_until, self.saved = deque(), 0, ""
        self.tasks = set()
        self.load()

    # The number of workers

    def wanted(self):
        low, high = self.bounds or (len(self.members), len(self.members))
        if self.number is None or not self.bounds:
            self.number = low
        self.number = min(max(self.number, low), high)
        if self.adaptive and self.bounds:
            self.number = self.adapted()
        return max(self.number, 1) if self.is_held() else self.number

    def adapted(self):
        """The largest number that was needed in the last STEADY seconds, so that a short pause stops no worker."""
        now, (low, high) = self.clock(), self.limits()
        if not self.targets:
            self.targets.append((now, self.number))
        self.targets.append((now, self.scheduler.adaptive_target()))
        while self.targets[0][0] < now - STEADY:
            self.targets.popleft()
        return min(max(low, *(target for _, target in self.targets)), high)

    def limits(self):
        """The bounds of adapting, which are within the stack's."""
        low, high = self.bounds or (0, 0)
        return [min(max(each, low), high) for each in self.adaptive or ()]

    def is_held(self):
        return self.clock() < self.held_until

    # The workers

    def tick(self):
        self.read()
        if not self.members:
            return  # `up` has not completed yet
        now, wanted = self.clock(), self.wanted()
        present = {each.name: each for each in self.scheduler.workers.values() if each.name in self.members}
        self.listed = {name: seen for name, seen in self.listed.items() if name in self.members}
        for name, worker in present.items():
            # A worker that others stop returns if it is listed.
            if name in self.listed or (name not in self.leaving and worker.status != Status.closing_gracefully):
                self.listed[name] = now
        self.replace(now)
        if len(self.listed) < wanted:
            for name in self.spare()[: wanted - len(self.listed)]:
                self.listed[name] = now
        elif not self.is_held():
            self.drop(len(self.listed) - wanted, present)
            # Those whose retirement has failed halfway.
            stuck = {name for name in present if name not in self.listed and name not in self.leaving}
            if stuck:
                self.retire(stuck)
        self.save()

    def replace(self, now):
        """Takes workers that do not join off the list if there are others."""
        absent = [name for name, seen in self.listed.items() if now - seen > ABSENT]
        for name in absent[: len(self.spare())]:
            logger.warning("Worker %s did not join within %s s; starting another one", name, ABSENT)
            self.failed[name] = now
            del self.listed[name]

    def spare(self):
        """The workers that can be started, in the order in which to do so: spread over the machines."""
        busy = Counter(machine(name) for name in (*self.listed, *self.leaving))
        rest = [name for name in self.members if name not in self.listed and name not in self.leaving]
        chosen = []
        while rest:
            name = min(rest, key=lambda name: (self.failed.get(name, 0), busy[machine(name)]))
            busy[machine(name)] += 1
            rest.remove(name)
            chosen.append(name)
        return chosen

    def drop(self, count, present):
        """Stops this many workers: first those that are not there yet, then those that cost least on each machine.

        Workers with actors stay, and so do those with a task that has seceded, e.g. with `worker_client`.
        """
        for name in [name for name in self.listed if name not in present][: max(count, 0)]:
            del self.listed[name]
            count -= 1
        if count <= 0:
            return
        now = self.clock()
        order = self.scheduler.workers_to_close(n=len(self.scheduler.workers), attribute="name")
        can = [name for name in order if name in self.listed and self.can_leave(present[name], now)]
        names = self.spread(can, count)
        staying = present.keys() - self.leaving
        if len(names) == len(staying) and any(worker.has_what or worker.processing for worker in present.values()):
            names = names[:-1]  # the last worker stays until there are neither results nor tasks
        for name in names:
            del self.listed[name]
        if names:
            self.retire(set(names))

    def spread(self, can, count):
        """Workers of the machines with most: `up` restarts workers machine by machine, and others must hold results."""
        left, names = Counter(map(machine, self.listed)), []
        while can and len(names) < count:
            name = max(can, key=lambda name: left[machine(name)])
            left[machine(name)] -= 1
            names.append(name)
            can = [each for each in can if each != name]
        return names

    def can_leave(self, worker, now):
        return not worker.actors and now - self.refused.get(worker.name, -REFUSED) >= REFUSED

    def retire(self, names):
        self.leaving |= names
        task = asyncio.ensure_future(self.leave(names))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def leave(self, names):
        try:
            ready, kept = await runpy.run_path(str(DRAIN))["leave"](names, False, WITHIN, self.scheduler)
            if ready:
                await self.scheduler.retire_workers(ready, close_workers=True, remove=True)
            self.refused |= dict.fromkeys(kept, self.clock())
            for name in kept:
                logger.warning("Cannot move the results of %s: no other worker has enough memory", name)
        except Exception:
            logger.exception("Stopping %s failed; trying again", ", ".join(sorted(names)))
        finally:
            self.leaving -= names

    # Files

    def read(self):
        # `up` writes the bounds before the list.
        self.members = (read(self.etc / "members") or "").split()
        bounds = read(self.etc / "bounds")
        self.bounds = [int(each) for each in bounds.split()] if bounds else None

    def load(self):
        """Continues where the scheduler was before it restarted. Tasks can write to the file."""
        try:
            known = json.loads(read(self.file) or "{}")
            number, adaptive = known.get("number"), known.get("adaptive")
            self.number = whole(number) if number is not None else None
            self.adaptive = [whole(adaptive[0]), whole(adaptive[1])] if adaptive is not None else None
            self.listed = {str(name): self.clock() for name in known.get("workers", [])}
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            logger.warning("%s is damaged (%s); scaling starts at the smallest number", self.file, error)
            self.number, self.adaptive, self.listed = None, None, {}

    def save(self):
        known = {"number": self.number, "adaptive": self.adaptive, "workers": sorted(self.listed)}
        text = json.dumps(known, indent=0)  # stay_retired.py looks for lines
        if text == self.saved and self.file.is_file():
            return
        new = self.file.with_suffix(".new")
        try:
            new.write_text(text)
            os.replace(new, self.file)
            self.saved = text
        except OSError as error:  # the next tick tries again
            logger.warning("Cannot write %s: %s", self.file, error)

    # Handlers

    def scaling(self):
        """The state as a dictionary."""
        self.read()
        if not self.bounds or not self.members:
            raise ValueError("the cluster is not complete yet; wait until `up` has ended")
        low, high = self.bounds
        adaptive = self.limits() if self.adaptive else None
        number = self.number if self.number is not None else low
        return {"number": min(max(number, low), high), "min": low, "max": high, "adaptive": adaptive}

    def scale(self, number):
        self.within(number)
        self.number, self.adaptive = number, None
        self.tick()
        return self.scaling()

    def adapt(self, minimum=None, maximum=None):
        state = self.scaling()
        low = state["min"] if minimum is None else minimum
        high = state["max"] if maximum is None else maximum
        self.within(low, high)
        if low > high:
            raise ValueError(f"the minimum, {low}, is larger than the maximum, {high}")
        self.adaptive = [low, high]
        self.targets.clear()
        self.tick()
        return self.scaling()

    def hold(self, seconds):
        """For this long, no worker is stopped and at least one runs: the check of `up` needs both."""
        self.held_until = self.clock() + seconds
        self.tick()
        return self.scaling()

    def within(self, *numbers):
        state = self.scaling()
        for number in numbers:
            if not state["min"] <= whole(number) <= state["max"]:
                raise ValueError(
                    f"{number} workers are outside of the stack's bounds, {state['min']} to {state['max']}; change"
                    " workers.min or workers.max in the stack file and run up, or write another number"
                )


def machine(name):
    return name.rpartition("-")[0]


def whole(number):
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"{number!r} is not a number of workers")
    return number


def read(file):
    try:
        return file.read_text()
    except OSError:
        return None


def dask_setup(scheduler):
    scheduler.elastic = elastic = Elastic(scheduler)
    handlers = (elastic.scaling, elastic.scale, elastic.adapt, elastic.hold)
    scheduler.handlers |= {f"workers_{handler.__name__}": handler for handler in handlers}
    scheduler.elastic_callback = PeriodicCallback(elastic.tick, INTERVAL * 1000)
    scheduler.elastic_callback.start()
