"""Computations on stack dev, one of which detects recomputed results, and the tunnels of its clients."""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import distributed
import psutil
import pytest

import daskstack
from rehearsal.machines import until


def wait_until_working() -> None:
    """Waits until both workers run and a job returns the right result."""

    def answer() -> int | None:
        try:
            with daskstack.connect("dev") as client:
                client.wait_for_workers(2, timeout=30)
                return client.submit(sum, range(100), pure=False).result(timeout=30)
        except (OSError, ValueError, RuntimeError):
            return None  # it is still restarting

    until(lambda: answer() == 4950, 420)  # a worker that lost its scheduler drains for up to 90 s before it restarts


def tasks() -> tuple[Callable, Callable]:
    """Functions defined inside a function are pickled by value: the cluster does not have this file."""

    def numbers(part: int) -> list[float]:
        import random  # random, so that a recomputed result differs

        return [random.random() for _ in range(1000)]

    def total(part: list[float], more: int) -> float:
        import time

        time.sleep(0.3)  # so that tasks run all the time without using the CPU
        return sum(part) + more

    return numbers, total


def tunnels() -> set[psutil.Process]:
    """The running tunnels of this process that forward ports."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has ended
            if child.name() == "ssh" and "-N" in child.cmdline():
                found.add(child)
    return found


@dataclass
class Work:
    """Data on the workers, and an endless computation on it.

    If there are several at once, make all with `starts=False` and then start them: the workers of a small cluster would
    be too busy with the first ones to ever make the data of the last.
    """

    client: distributed.Client
    starts: bool = True
    rounds: int = 0
    wrong: list[object] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        numbers, self.total = tasks()
        self.parts = self.client.map(numbers, range(12), pure=False)
        self.sums = [sum(part) for part in self.client.gather(self.parts)]
        self.thread = threading.Thread(target=self.run)
        if self.starts:
            self.thread.start()

    def run(self) -> None:
        while not self.ended.is_set():
            try:
                tasks = self.client.map(self.total, self.parts, [self.rounds] * len(self.parts), pure=False)
                found = self.client.gather(tasks)
            except Exception as error:
                self.wrong.append(error)
                return
            right = [part + self.rounds for part in self.sums]
            if found != pytest.approx(right):
                self.wrong.append((found, right))
            self.rounds += 1

    def check_progress(self) -> None:
        """Fails unless all results so far are right, another one arrives, and the data was not recomputed."""
        so_far, deadline = self.rounds, time.monotonic() + 60
        while self.rounds < so_far + 2 and not self.wrong:
            assert time.monotonic() < deadline, f"no result in 60 s, after {self.rounds} rounds"
            time.sleep(0.1)
        assert self.wrong == []
        assert [sum(part) for part in self.client.gather(self.parts)] == self.sums

    def workers(self) -> dict[str, str]:
        """The status of each worker by name."""
        # Not scheduler_info(): the client's refresh can replace its result by one without workers.
        workers = self.client.sync(self.client.scheduler.identity, n_workers=-1)["workers"]
        return {each["name"]: each["status"] for each in workers.values()}

    def end(self) -> None:
        self.ended.set()
        self.thread.join(timeout=60)
        self.client.close()
