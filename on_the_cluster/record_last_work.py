"""Records in a file when the cluster last worked: a preload of the scheduler.

The file's modification time is the time of the last known work; its content is the number of workers on other machines.
The step `idle` reads it. A file is used because it does not change once the scheduler has died, so that the idle limit
still applies.
"""

import os
import time
from pathlib import Path
from urllib.parse import urlsplit

from tornado.ioloop import PeriodicCallback

INTERVAL = 5  # seconds


class Record:
    def __init__(self, scheduler, file):
        self.scheduler, self.file = scheduler, file
        self.workers, self.worked = set(), time.time()

    def write(self):
        now, workers = time.time(), set(self.scheduler.workers)
        if workers - self.workers:  # a new worker gets the full idle time
            self.worked = now
        elif workers:  # without workers, waiting tasks do not keep the cluster awake
            jobs = any("-daskstack-job-" in client for client in self.scheduler.clients)
            self.worked = now if jobs else max(self.worked, self.scheduler.idle_since or now)
        self.workers = workers
        here = urlsplit(self.scheduler.address).hostname
        others = sum(worker.host != here for worker in self.scheduler.workers.values())
        new = self.file.with_suffix(".new")
        new.write_text(f"{others}\n")
        os.utime(new, (self.worked, self.worked))
        new.replace(self.file)


def dask_setup(scheduler):
    record = Record(scheduler, Path.home() / "worked")
    scheduler.worked_record = PeriodicCallback(record.write, INTERVAL * 1000)
    scheduler.worked_record.start()
