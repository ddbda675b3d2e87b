"""Keeps a worker stopped that the cluster does not list: runs before each start of the worker.

    stay_retired.py NAME LIST ELASTIC SSH...

LIST      the file with the stack's workers, which the step `members` writes
ELASTIC   the file with the workers that the running cluster wants (elastic.py); empty: it wants all
SSH       the command that reaches the machine with both files

drain.py leaves a mark in the home of the cluster's user when it retires a worker. systemd starts the worker again
after a reboot, for example; without this program it would take on work that it was to hand over. If the running
cluster sets the number of workers, each one must be listed, and the mark says that this one is not.
"""

import contextlib
import shlex
import subprocess
import sys
import time
from pathlib import Path

INTERVAL = 1  # seconds
ROUNDS = 300  # questions over one connection
PAUSE = 5  # seconds after a connection that failed


def main(name: str, members: str, elastic: str, *ssh: str) -> None:
    mark, rounds = Path.home() / f"retired-{name}", 1
    listed = f"grep -qsxF {shlex.quote(name)} {members}"
    if elastic:
        listed += f""" && grep -qsF {shlex.quote(f'"{name}"')} {elastic}"""
    # Tasks can create a folder with this name; only drain.py's file counts.
    while elastic or mark.is_file():
        ask = f"for _ in $(seq {rounds}); do if {listed}; then exit; fi; sleep {INTERVAL}; done; exit 1"
        status = run([*ssh, ask], rounds * INTERVAL + 60)
        with contextlib.suppress(OSError):  # a full disk, or a folder of a task
            if status == 0:
                mark.unlink()
            elif elastic:
                mark.touch()
        if status == 0:
            return
        if status == 1:
            rounds = ROUNDS
        else:
            time.sleep(PAUSE)


def run(command: list[str], limit: float) -> int | None:
    """The exit status, or None if the command did not end in time."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, stdin=subprocess.DEVNULL, timeout=limit).returncode
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
