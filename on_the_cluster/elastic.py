"""Scales the workers within the stack's bounds: a preload of the scheduler on machines.

scaling.py sets the number. A file in the home of the cluster's user keeps it, for a scheduler that restarts. The file
also names the workers that run: stay_retired.py starts a worker only if this file and the stack's list name it.

The bounds concern the main group alone. The workers of other groups always run.

A worker that stops has handed over its results (drain.py). If no other worker can take them, it does not stop. Neither
does the last worker while it has results or tasks.
"""

import asyncio
import json
import logging
import os
import runpy
import time
from collections import Counter
from pathlib import Path

from distributed.core import Status
from tornado.ioloop import PeriodicCallback

INTERVAL = 1  # seconds
ABSENT = 60  # seconds for a worker to join, or to return, before another one replaces it

# `members`: the stack's workers; `fixed`: those of them that always run; `bounds`: the smallest and the largest number
# of the others and, if it is not ABSENT, the time to join
ETC = Path("/etc/daskstack")
SCALING = runpy.run_path(str(Path(__file__).with_name("scaling.py")))
logger = logging.getLogger("dask.elastic")


class Elastic(SCALING["Number"]):
    def __init__(self, scheduler, etc=ETC, file=None, clock=time.monotonic):
        super().__init__(scheduler, clock)
        self.etc, self.file = etc, file or Path.home() / "elastic.json"
        # Dictionaries without values keep the order, and find a name fast.
        self.members, self.fixed, self.absent = {}, {}, ABSENT
        # The workers that run or are to start, and when each was seen last.
        self.listed = {}
        self.failed, self.saved, self.tasks = {}, "", set()
        self.load()

    def wanted(self):
        if self.bounds:
            return super().wanted()
        self.number = len(self.members)
        return max(self.number, 1) if self.is_held() else self.number

    def is_ours(self, name):
        return name in self.members

    # The workers

    def tick(self):
        self.read()
        if not self.members and not self.fixed:
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
        self.save({machine(name) for name in (*present, *self.listed, *self.leaving, *self.fixed)})

    def replace(self, now):
        """Takes workers that do not join off the list if there are others."""
        absent = [name for name, seen in self.listed.items() if now - seen > self.absent]
        for name in absent and absent[: len(self.spare())]:  # with a thousand workers, `spare` takes long
            logger.warning("Worker %s did not join within %s s; starting another one", name, self.absent)
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
        """Stops this many workers: first those that are not there yet, then those that cost least on each machine."""
        for name in [name for name in self.listed if name not in present][: max(count, 0)]:
            del self.listed[name]
            count -= 1
        if count <= 0:
            return
        can = self.cheapest({name: worker for name, worker in present.items() if name in self.listed})
        names = self.without_last(self.spread(can, count), present)
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

    def retire(self, names):
        self.leaving |= names
        task = asyncio.ensure_future(self.leave(names))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def leave(self, names):
        try:
            if ready := await self.drain(names):
                await self.scheduler.retire_workers(ready, close_workers=True, remove=True)
        except Exception:
            logger.exception("Stopping %s failed; trying again", ", ".join(sorted(names)))
        finally:
            self.leaving -= names

    # Files

    def read(self):
        # `up` writes the list last.
        members = (read(self.etc / "members") or "").split()
        fixed = set((read(self.etc / "fixed") or "").split())
        self.members = dict.fromkeys(name for name in members if name not in fixed)
        self.fixed = dict.fromkeys(name for name in members if name in fixed)
        numbers = [int(each) for each in (read(self.etc / "bounds") or "").split()]
        self.bounds = numbers[:2] if numbers and members else None
        self.absent = numbers[2] if numbers[2:] else ABSENT

    def load(self):
        """Continues where the scheduler was before it restarted. Tasks can write to the file."""
        try:
            known = json.loads(read(self.file) or "{}")
            self.restore(known)
            self.listed = {str(name): self.clock() for name in known.get("workers", [])}
        except SCALING["DAMAGED"] as error:
            logger.warning("%s is damaged (%s); scaling starts at the smallest number", self.file, error)
            self.number, self.adaptive, self.listed = None, None, {}

    def save(self, machines):
        """Also names, for power.py, the machines on which workers run, start or hand over their results."""
        known = {**self.state(), "workers": sorted([*self.listed, *self.fixed])}
        # stay_retired.py looks for lines with a name in quotes, which this space prevents.
        known["machines"] = " ".join(["", *sorted(machines)])
        text = json.dumps(known, indent=0)
        if text == self.saved and self.file.is_file():
            return
        new = self.file.with_suffix(".new")
        try:
            new.write_text(text)
            os.replace(new, self.file)
            self.saved = text
        except OSError as error:  # the next tick tries again
            logger.warning("Cannot write %s: %s", self.file, error)

    def scaling(self):
        self.read()
        return super().scaling()


def machine(name):
    return name.rpartition("-")[0]


def read(file):
    try:
        return file.read_text()
    except OSError:
        return None


def dask_setup(scheduler):
    scheduler.elastic = elastic = Elastic(scheduler)
    elastic.register()
    scheduler.elastic_callback = PeriodicCallback(elastic.tick, INTERVAL * 1000)
    scheduler.elastic_callback.start()
