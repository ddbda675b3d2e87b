"""The commands for jobs."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from daskstack import access_file, jobs
from daskstack.client_output import NO_BOUNDS
from daskstack.cluster_commands import asleep
from daskstack.jobs import Job, JobError, Plan
from daskstack.printable import printable
from daskstack.route import wake
from daskstack.status_and_logs import RemoteError

LATE = 30  # seconds after the end of a job's output for its record


def run(
    stack: str,
    script: str,
    arguments: Sequence[str],
    detach: bool,
    at: datetime | None,
    every: timedelta | None,
    workers: int | None,
    then: str | None,
    report: bool,
) -> int:
    """Starts a job. Unless `detach`, or if it runs later, prints its output until it has ended.

    Returns the exit status, which is the script's if this has waited for it.
    """
    from daskstack.user_code import Code  # loads Dask

    now = time.time()
    if at and at.timestamp() < now:
        raise JobError(f"{at:%Y-%m-%d %H:%M} has passed; write a later time")
    path = Path(script)
    if path.suffix != ".py" or not path.is_file():
        raise JobError(f"{script} is not a Python script on this computer")
    try:
        archive = Code(path.resolve().parent).archive()
    except ValueError as error:
        raise JobError(str(error)) from None
    found = jobs.of(stack)
    bounds = found.client.bounds
    if (workers is not None or then) and not bounds:
        raise JobError(NO_BOUNDS.format(stack=access_file.stack_name(stack)))
    if workers is not None and bounds and not bounds[0] <= workers <= bounds[1]:
        raise JobError(f"{workers} workers are outside of the stack's bounds, {bounds[0]} to {bounds[1]}")
    if not at and (woken := wake(found.client)):
        print(asleep(woken), file=sys.stderr)
    first = at.timestamp() if at else now if every else None
    plan = Plan([path.name, *arguments], first, every.total_seconds() if every else None, workers, bool(then), report)
    number = found.start(plan, archive)
    if not at:
        print(f"job {number} has started", file=sys.stderr)
        return 0 if detach or every else follow(stack, number)
    print(f"job {number} starts at {at:%Y-%m-%d %H:%M}", file=sys.stderr)
    return 0


def show(stack: str, as_json: bool) -> None:
    """Prints a line for each job, or a JSON list."""
    found = jobs.of(stack).all()
    if as_json:
        print(json.dumps([job.model_dump() for job in found], indent=2))
        return
    for job in found:
        seconds = (job.ended or time.time()) - job.started
        took = f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
        due = job.next_run()
        words = [*job.words, f"(next run: {local(due)})"] if due else job.words
        print(printable(f"{job.number:>4}  {job.status:<9}  {local(job.started)}  {took:>8}  {' '.join(words)}"))


def local(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def follow(stack: str, number: int, quiet: bool = False) -> int:
    """Waits until a job has ended, and prints its output unless `quiet`. Returns the exit status."""
    found = jobs.of(stack)
    try:
        while (job := copied(found, number, quiet)).ended is None:
            pass  # its pod was replaced
    except KeyboardInterrupt:
        option = "" if stack == "dev" else f" --stack {stack}"
        print(f"\njob {number} goes on: daskstack jobs logs {number}{option}", file=sys.stderr)
        raise
    print(f"job {number} {'was' if job.status == 'stopped' else 'has'} {job.status}", file=sys.stderr)
    return job.code or 0


def copied(found: jobs.MachineJobs | jobs.KubernetesJobs, number: int, quiet: bool) -> Job:
    """Copies a job's output until the output ends. Returns the job's record, which can be late."""
    with found.output(number) as command, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)
        try:
            assert process.stdout  # because of PIPE above
            for line in process.stdout:
                if not quiet:
                    print(printable(line.decode(errors="replace")), end="", flush=True)
            status = process.wait()
        finally:
            process.terminate()
            process.wait()
        said.seek(0)
        if status:
            raise RemoteError(f"no output of job {number}: {said.read().decode(errors='replace').strip()}")
    deadline = time.monotonic() + LATE
    while True:
        [job] = [job for job in found.all() if job.number == number]
        if job.ended is not None or time.monotonic() > deadline:
            return job
        time.sleep(0.5)


def stop(stack: str, number: int) -> None:
    jobs.of(stack).stop(number)
