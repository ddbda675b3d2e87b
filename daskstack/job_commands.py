"""The commands for jobs."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from daskstack import engine, jobs
from daskstack.cluster_commands import asleep
from daskstack.jobs import Job, JobError
from daskstack.printable import printable
from daskstack.route import wake
from daskstack.status_and_logs import RemoteError

LATE = 30  # seconds after the end of a job's output for its record


def run(stack: str, script: str, arguments: Sequence[str], detach: bool) -> int:
    """Starts a job. Unless `detach`, prints its output until it has ended, and returns its exit status."""
    from daskstack.user_code import Code  # loads Dask

    path = Path(script)
    if path.suffix != ".py" or not path.is_file():
        raise JobError(f"{script} is not a Python script on this computer")
    try:
        archive = Code(path.resolve().parent).archive()
    except ValueError as error:
        raise JobError(str(error)) from None
    if woken := wake(engine.cluster(stack)["client"]):
        print(asleep(woken), file=sys.stderr)
    number = jobs.of(stack).start([path.name, *arguments], archive)
    print(f"job {number} has started", file=sys.stderr)
    return 0 if detach else follow(stack, number)


def show(stack: str) -> None:
    """Prints a line for each job."""
    for job in jobs.of(stack).all():
        seconds = (job.ended or time.time()) - job.started
        took = f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started))
        print(printable(f"{job.number:>4}  {job.status:<9}  {began}  {took:>8}  {' '.join(job.words)}"))


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
