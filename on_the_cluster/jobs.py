"""Starts, lists and stops jobs on the scheduler's machine, as root.

    jobs.py serve          systemd runs this for a connection of jobs_door.py, which hands over a request
    jobs.py ended N        systemd runs this when a job's unit has ended
    jobs.py revoked NAME   stops the jobs of a person whose access ends
    jobs.py busy           prints the numbers of the jobs that use packages now

The requests:

    start       a line with what to start, a JSON object, and then a ZIP archive of the script's folder arrive on
                standard input; prints the job's number
    list        prints a JSON list of all jobs
    output N    prints the job's output until the job has ended
    stop N      stops a job

A person can read and stop only their own jobs, the stack's owner all of them. Each job has a folder that only root can
write to, with the files job.json, output and ended.json and the folder `code`, which belongs to the user of the jobs.
Its unit is an instance of dask-job@.service; it is enabled until the job has ended, so a job also starts again after a
reboot.
"""

import fcntl
import io
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

JOBS = Path("/var/lib/daskstack/jobs")
USER, GROUP = "dask-jobs", "dask"
KEPT = 100  # jobs that have ended
PAUSE = 0.5  # seconds between two looks at a job's output
SIZE = 64 << 20  # bytes of an archive, and of its files
OWNER, PERSON = "client", "person:"  # in SSH certificates


def unit(number):
    return f"dask-job@{number}.service"


def systemctl(*words, check=True):
    return subprocess.run(["systemctl", *words], check=check, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def numbers():
    return sorted(int(each.name) for each in JOBS.iterdir() if each.name.isdecimal())


def record(number):
    """What is known about a job. `status` is running, succeeded, failed or stopped; a running job has no `ended`."""
    folder = JOBS / str(number)
    job = {"number": number, "person": ""} | json.loads((folder / "job.json").read_text())
    try:
        return job | json.loads((folder / "ended.json").read_text())
    except FileNotFoundError:
        return job | {"status": "running", "ended": None, "code": None}


def start(person, said):
    """Begins a job and prints its number."""
    job = json.loads(said.readline(SIZE))
    data = said.read(SIZE + 1)
    archive = zipfile.ZipFile(io.BytesIO(data)) if len(data) <= SIZE else None
    if not archive or sum(each.file_size for each in archive.infolist()) > SIZE:
        sys.exit(f"the script's folder has more than {SIZE >> 20} MB")
    job = {key: job[key] for key in ("words", "at", "every", "workers", "sleep", "report")} | {
        "person": person,
        "started": time.time(),
    }
    with (JOBS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        number = add(job, archive)
    systemctl("--quiet", "enable", unit(number))
    systemctl("start", "--no-block", unit(number))
    print(number)


def add(job, archive):
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
    number = max(numbers(), default=0) + 1
    (new / "job.json").write_text(json.dumps(job | {"number": number}))
    (new / "job.json").chmod(0o600)
    (new / "output").touch(mode=0o600)
    new.rename(JOBS / str(number))
    return number


def output(number, door):
    """Copies a job's output until the job has ended, or until `door` closes."""
    with (JOBS / str(number) / "output").open("rb") as file:
        while True:
            over = record(number)["ended"] is not None
            for part in iter(lambda: file.read(1 << 16), b""):
                sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
            if over or select.select([door], [], [], PAUSE)[0]:
                break


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


def serve():
    """Answers a request with the door's own standard input, output and error, and sends the exit status back."""
    door = socket.socket(fileno=os.dup(0))
    said, files, *_ = socket.recv_fds(door, 1 << 16, 3)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    status = 1
    try:
        request = json.loads(said)
        answer(holder(request["login"]), request["words"], door)
        sys.stdout.flush()
        status = 0
    except SystemExit as error:
        print(error, file=sys.stderr, flush=True)
    except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
        print(f"the request failed: {error!r}", file=sys.stderr, flush=True)
    finally:
        door.send(bytes([status]))


def answer(person, words, door):
    """Does what a person wants; the stack's owner is ""."""
    if words == ["start"]:
        start(person, sys.stdin.buffer)
    elif words == ["list"]:
        print(json.dumps([record(each) for each in numbers()]))
    elif len(words) == 2 and words[0] in ("output", "stop"):
        number = known(words[1])
        if person and record(number)["person"] != person:
            sys.exit(f"job {number} is not yours")
        if words[0] == "output":
            output(number, door)
        else:
            stop(number)
    else:
        sys.exit("only daskstack uses this login: see daskstack run --help")


def known(word):
    """The number of a job. Ends the program if there is no such job."""
    if not word.isdecimal() or not (JOBS / word / "job.json").is_file():
        sys.exit(f"there is no job {word}")
    return int(word)


def holder(login):
    """The person whose SSH certificate is in what sshd says about a login; the stack's owner is ""."""
    certificate = login.partition(" ")[2]  # after `publickey`
    said = subprocess.run(["ssh-keygen", "-L", "-f", "-"], input=certificate, capture_output=True, text=True).stdout
    [name] = re.findall(r'^\s+Key ID: "(.*)"$', said, re.MULTILINE)
    if name != OWNER and not name.startswith(PERSON):
        sys.exit(f"{name} is not a person")
    return "" if name == OWNER else name[len(PERSON) :]


def revoked(person):
    for number in numbers():
        if record(number)["person"] == person:
            stop(number)


def busy():
    """Jobs that wait for their time do not count: they are one process each, which has loaded no package."""
    for job in map(record, numbers()):
        if job["ended"] is None and not (job.get("at") is not None and is_alone(unit(job["number"]))):
            print(job["number"])


def is_alone(service):
    """Whether the main process of the service has no children."""
    main = systemctl("show", "--value", "--property=MainPID", service).stdout.strip()
    return main != "0" and subprocess.run(["pgrep", "--parent", main], stdout=subprocess.DEVNULL).returncode == 1


def main(command, *words):
    if command == "serve":
        serve()
    elif command == "ended":
        ended(known(words[0]))
    elif command == "revoked":
        revoked(words[0])
    elif command == "busy":
        busy()


if __name__ == "__main__":
    main(*sys.argv[1:])
