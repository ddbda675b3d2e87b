"""Starts, lists and stops jobs on the scheduler's machine. The login user runs it there as root.

    jobs.py start       a line with the script and its arguments, a JSON list, and then a ZIP archive of the script's
                        folder arrive on standard input; prints the job's number
    jobs.py list        prints a JSON list of all jobs
    jobs.py output N    prints the job's output until the job has ended
    jobs.py stop N      stops a job
    jobs.py ended N     systemd runs this when a job's unit has ended

Each job has a folder that only root can write to, with the files job.json, output and ended.json and the folder `code`,
which belongs to the user of the jobs. Its unit is an instance of dask-job@.service; it is enabled until the job has
ended, so a job also starts again after a reboot.
"""

import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

JOBS = Path("/var/lib/daskstack/jobs")
USER, GROUP = "dask-jobs", "dask"
KEPT = 100  # jobs that have ended
PAUSE = 0.5  # seconds between two looks at a job's output


def unit(number):
    return f"dask-job@{number}.service"


def systemctl(*words, check=True):
    return subprocess.run(["systemctl", *words], check=check, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def numbers():
    return sorted(int(each.name) for each in JOBS.iterdir() if each.name.isdecimal())


def record(number):
    """What is known about a job. `status` is running, succeeded, failed or stopped; a running job has no `ended`."""
    folder = JOBS / str(number)
    job = json.loads((folder / "job.json").read_text())
    job["number"] = number
    try:
        return job | json.loads((folder / "ended.json").read_text())
    except FileNotFoundError:
        return job | {"status": "running", "ended": None, "code": None}


def known(word):
    """The number of a job. Ends the program if there is no such job."""
    if not word.isdecimal() or not (JOBS / word / "job.json").is_file():
        sys.exit(f"there is no job {word}")
    return int(word)


def start(said):
    """Begins a job and prints its number."""
    words = json.loads(said.readline())
    archive = zipfile.ZipFile(io.BytesIO(said.read()))
    with (JOBS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        number = add(words, archive)
    systemctl("--quiet", "enable", unit(number))
    systemctl("start", "--no-block", unit(number))
    print(number)


def add(words, archive):
    """Writes the folder of a new job, which appears complete or not at all. Returns the job's number."""
    while len(old := [each for each in numbers() if record(each)["ended"]]) > KEPT:
        shutil.rmtree(JOBS / str(old[0]))
    new = JOBS / ".new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o711)
    archive.extractall(new / "code")
    for folder, _, files in os.walk(new / "code"):
        for path in (folder, *(os.path.join(folder, file) for file in files)):
            shutil.chown(path, USER, GROUP)
            os.chmod(path, 0o700 if path == folder else 0o600)
    (new / "job.json").write_text(json.dumps({"words": words, "started": time.time()}))
    (new / "job.json").chmod(0o600)
    (new / "output").touch(mode=0o600)
    number = max(numbers(), default=0) + 1
    new.rename(JOBS / str(number))
    return number


def output(number):
    with (JOBS / str(number) / "output").open("rb") as file:
        while True:
            over = record(number)["ended"] is not None
            for part in iter(lambda: file.read(1 << 16), b""):
                sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
            if over:
                break
            time.sleep(PAUSE)


def stop(number):
    """A job that is not running yet ends too. Its unit's ExecStopPost records the end."""
    if record(number)["ended"] is None:
        (JOBS / str(number) / "stopped").touch(mode=0o600)
        systemctl("stop", unit(number))
        ended(number)


def ended(number):
    """Records how a job ended. When the machine shuts down, the job has not ended: it starts again after the boot."""
    folder = JOBS / str(number)
    if systemctl("is-system-running", check=False).stdout.strip() == "stopping" or (folder / "ended.json").exists():
        return
    exited = os.environ.get("EXIT_STATUS", "")
    code = int(exited) if exited.isdecimal() else 1  # a signal's name, or the job had not started
    status = "stopped" if (folder / "stopped").exists() else "failed" if code else "succeeded"
    new = folder / "ended.json.new"
    new.write_text(json.dumps({"status": status, "ended": time.time(), "code": code}))
    new.chmod(0o600)
    new.rename(folder / "ended.json")
    systemctl("--quiet", "disable", unit(number))


def main(command, *words):
    if command == "start":
        start(sys.stdin.buffer)
    elif command == "list":
        print(json.dumps([record(each) for each in numbers()]))
    else:
        {"output": output, "stop": stop, "ended": ended}[command](known(*words))


if __name__ == "__main__":
    main(*sys.argv[1:])
