"""The number of workers within the stack's bounds, for preloads of the scheduler: elastic.py and scale_pods.py.

The stack sets the bounds. The running cluster sets the number: clients call the handlers at the end of `Number`, and
while adapting, the number follows the work.
"""

import itertools
import logging
import math
import runpy
import time
from collections import deque
from pathlib import Path

STEADY = 60  # seconds for which fewer workers must suffice before adapting stops some
WITHIN = 240  # seconds for drain.py; after a quarter of them, other workers repeat the tasks that are still running
REFUSED = 60  # seconds until a worker that could not hand over its results is asked again
SAMPLE = 100  # tasks of each worker
WAITING = 10_000  # tasks without a worker

DRAIN = Path(__file__).with_name("drain.py")
DAMAGED = (AttributeError, LookupError, TypeError, ValueError)  # what reading a damaged state raises
logger = logging.getLogger("dask.scaling")


class Number:
    """The number of workers within the stack's bounds. A subclass sets `bounds`, and starts and stops workers."""

    def __init__(self, scheduler, clock=time.monotonic):
        self.scheduler, self.clock = scheduler, clock
        self.bounds = None
        self.groups = {}  # other groups whose number of workers follows the work
        # None: the smallest number, unless the cluster ran without bounds before.
        self.number, self.adaptive = None, None
        self.leaving, self.refused = set(), {}
        self.targets, self.held_until = deque(), 0

    def wanted(self):
        low, high = self.bounds or (0, 0)
        if self.number is None:
            self.number = low
        self.number = min(max(self.number, low), high)
        if self.adaptive:
            self.number = self.adapted()
        return max(self.number, 1) if self.is_held() else self.number

    def tick(self):
        """Takes the next steps towards the number."""
        raise NotImplementedError

    def adapted(self):
        """The largest number that was needed in the last STEADY seconds, so that a short pause stops no worker."""
        low, high = self.limits()
        return min(max(low, self.steady(self.targets, self.number, self.target())), high)

    def steady(self, targets, number, target):
        """The largest of the targets in the last STEADY seconds. Without former ones, `number` counts as one."""
        now = self.clock()
        if not targets:
            targets.append((now, number))
        targets.append((now, target))
        while targets[0][0] < now - STEADY:
            targets.popleft()
        return max(each for _, each in targets)

    def target(self):
        """The number of workers that the work needs now.

        Workers of other groups neither start nor stop, and tasks that only they can run need no more of ours.
        """
        scheduler, number = self.scheduler, len(self.scheduler.workers)
        ours = {address for address, worker in scheduler.workers.items() if self.is_ours(worker.name)}
        target = scheduler.adaptive_target()
        if len(ours) == number and not self.groups:
            return target
        share = self.unbound()
        if share and target >= number:
            return len(ours) + math.ceil(share * (target - number))
        return len(ours - set(scheduler.workers_to_close()))

    def unbound(self):
        """The share of the tasks, in a sample, that do not wait for Dask resources, which other groups have."""
        scheduler = self.scheduler
        tasks = [task for worker in scheduler.workers.values() for task in itertools.islice(worker.processing, SAMPLE)]
        waiting = list(itertools.islice(scheduler.unrunnable, WAITING))
        bound = sum(bool(task.resource_restrictions) for task in tasks)
        # Without any worker, all tasks wait.
        bound += sum(bool(scheduler.workers or task.resource_restrictions) for task in waiting)
        every = len(scheduler.queued) + len(waiting) + len(tasks)
        return 1 - bound / every if every else 0

    def is_ours(self, name):
        """Whether this is the name of a worker of the main group."""
        raise NotImplementedError

    def limits(self):
        """The bounds of adapting, which are within the stack's."""
        low, high = self.bounds or (0, 0)
        return [min(max(each, low), high) for each in self.adaptive or ()]

    def is_held(self):
        return self.clock() < self.held_until

    def can_leave(self, worker, now):
        """Workers with actors stay, and so do those with a task that has seceded, e.g. with `worker_client`."""
        return not worker.actors and now - self.refused.get(worker.name, -REFUSED) >= REFUSED

    def cheapest(self, present):
        """The names of the workers that can stop, of these workers by name. Those that cost least come first."""
        now = self.clock()
        order = self.scheduler.workers_to_close(n=len(self.scheduler.workers), attribute="name")
        return [name for name in order if name in present and self.can_leave(present[name], now)]

    def without_last(self, names, present):
        """The last worker stays until there are neither results nor tasks."""
        staying = present.keys() - self.leaving
        if len(names) == len(staying) and any(worker.has_what or worker.processing for worker in present.values()):
            return names[:-1]
        return names

    async def drain(self, names):
        """Retires these workers, and returns the addresses of those that have handed over their results."""
        ready, kept = await runpy.run_path(str(DRAIN))["leave"](names, False, WITHIN, self.scheduler)
        self.refused |= dict.fromkeys(kept, self.clock())
        for name in kept:
            logger.warning("Cannot move the results of %s: no other worker has enough memory", name)
        return ready

    def state(self):
        """What a scheduler that restarts must know."""
        return {"number": self.number, "adaptive": self.adaptive}

    def restore(self, known):
        """Raises one of DAMAGED if `known` is not a state: tasks can write to it."""
        number, adaptive = known.get("number"), known.get("adaptive")
        self.number = whole(number) if number is not None else None
        self.adaptive = [whole(adaptive[0]), whole(adaptive[1])] if adaptive is not None else None

    # Handlers

    def register(self):
        handlers = (self.scaling, self.scale, self.adapt, self.hold)
        self.scheduler.handlers |= {f"workers_{handler.__name__}": handler for handler in handlers}

    def scaling(self):
        """The state as a dictionary."""
        if not self.bounds:
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


def whole(number):
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"{number!r} is not a number of workers")
    return number
