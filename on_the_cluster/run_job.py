"""Runs a job's script in the working directory.

The folder CREDENTIALS_DIRECTORY has the file `job`, a JSON object:

    number   the job's number
    words    the script and its arguments
    at       when it runs, in seconds since 1970; null: at once
    every    seconds after which it runs again, until the job is stopped; null: it runs once
    workers  how many workers the cluster has while the script runs; null: as many as there are
    sleep    whether the cluster has its smallest number of workers afterwards
    report   whether Dask's performance report of the last run is kept in the shared directory

In Kubernetes, the folder also has the script's folder as a ZIP archive, `code`; on a machine, the working directory is
that folder already. Its modules can be imported on the scheduler and all workers.

If the script fails after its scheduler has restarted, its results were lost with the scheduler, so it runs again.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

AWAY = 600  # seconds to wait for a scheduler that restarts
ATTEMPTS = 100
LATE = 900  # seconds after which a run that was missed, e.g. during a reboot, is not made up for


def connect():
    import distributed

    deadline = time.monotonic() + AWAY
    while True:
        try:
            return distributed.Client(timeout=30, set_as_default=False)
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"the scheduler does not answer: {error}")
            time.sleep(2)


def archive():
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as zipped:
            for path in sorted(Path().rglob("*")):
                zipped.write(path)
        return buffer.getvalue()


@contextlib.contextmanager
def report(client, job):
    """Writes Dask's performance report about what happens inside the context."""
    if not job["report"]:
        yield
        return
    from distributed import performance_report

    folder = Path(os.environ["DASKSTACK_DATA"], "reports")
    name = f"job-{job['number']}.html"
    try:
        folder.mkdir(exist_ok=True)
        with client.as_current(), performance_report(str(folder / name)):
            yield
        print(f"the report is daskdata://reports/{name}", flush=True)
    except OSError as error:
        print(f"there is no report: {error}", flush=True)


def attempt(job, modules):
    """Runs the script once. Returns its exit status, and whether it lost its scheduler."""
    from daskstack import user_code

    stopped = threading.Event()

    def stop(*_):
        stopped.set()
        script.terminate()

    with connect() as client:
        before = client.scheduler_info(n_workers=0)["id"]
        for plugin in user_code.plugins(modules):
            client.register_plugin(plugin)
        with report(client, job):
            script = subprocess.Popen([sys.executable, "-u", *job["words"]])
            signal.signal(signal.SIGTERM, stop)
            status = script.wait()
    if status == 0 or stopped.is_set():
        return status, False
    with connect() as client:
        return status, client.scheduler_info(n_workers=0)["id"] != before


def run(job):
    """Runs the script, again if it has lost its scheduler. Returns its exit status."""
    import logging

    # Its tracebacks about lost connections would fill the job's output.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    modules = archive()
    with scaled(job["workers"], job["sleep"]):
        for _ in range(ATTEMPTS):
            status, lost = attempt(job, modules)
            if not lost:
                break
            print("the scheduler has restarted: the job starts again", flush=True)
    return reported(status)


@contextlib.contextmanager
def scaled(number, sleeps):
    """Inside the context, the cluster has this number of workers, if it is not None.

    Afterwards it has its smallest number if it `sleeps`; else the former one, unless someone has set another meanwhile.
    """
    if number is None and not sleeps:
        yield
        return
    with connect() as client:
        before = client.sync(client.scheduler.workers_scaling)
        if number is not None:
            set_workers(client, number, None)
    try:
        yield
    finally:
        with connect() as client:
            now = client.sync(client.scheduler.workers_scaling)
            if sleeps:
                set_workers(client, now["min"], None)
            elif (now["number"], now["adaptive"]) == (number, None):
                set_workers(client, before["number"], before["adaptive"])


def set_workers(client, number, adaptive):
    try:
        if adaptive:
            client.sync(client.scheduler.workers_adapt, minimum=adaptive[0], maximum=adaptive[1])
        else:
            client.sync(client.scheduler.workers_scale, number=number)
    except ValueError as error:
        sys.exit(str(error))


def reported(status):
    """The exit status of a process as a shell reports it: 143 after SIGTERM."""
    return status if status >= 0 else 128 - status


def first(at, every, now):
    """When a job whose program starts now runs first. A run that was missed a short time ago is due at once."""
    if not every or at > now:
        return at
    last = at + (now - at) // every * every
    return last if now - last < LATE else last + every


def following(at, every, now):
    return at + ((now - at) // every + 1) * every


def schedule(job):
    """Runs the script at its times. This process imports no package, because `up` may replace them meanwhile."""
    at, every = job["at"], job["every"]
    due = first(at, every, time.time())
    while True:
        while (left := due - time.time()) > 0:
            time.sleep(min(left, 60))  # the clock can be set
        status = once()
        if not every:
            sys.exit(status)
        due = following(at, every, time.time())
        print(f"the run has ended with status {status}; the next one is due at {time.ctime(due)}", flush=True)


def once():
    """Runs the script in another process. If the job is stopped, it ends after that."""
    stopped = []
    script = subprocess.Popen([sys.executable, *sys.argv, "--now"])

    def stop(*_):
        stopped.append(True)
        script.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    status = reported(script.wait())
    signal.signal(signal.SIGTERM, before)
    if stopped:
        sys.exit(128 + signal.SIGTERM)
    return status


def main(*options):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by default, PID 1 of a pod ignores it
    given = Path(os.environ["CREDENTIALS_DIRECTORY"])
    job = json.loads((given / "job").read_text())
    # A client with this name keeps an idle cluster awake (see record_last_work.py).
    os.environ["DASK_CLIENT_NAME"] = f"daskstack-job-{job['number']}"
    if (given / "code").exists():
        zipfile.ZipFile(given / "code").extractall()
    if job["at"] is None or options:
        sys.exit(run(job))
    schedule(job)


if __name__ == "__main__":
    main(*sys.argv[1:])
