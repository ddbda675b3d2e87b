"""Keeps a retired worker stopped until the step `members` lists it again: runs before each start of the worker.

    stay_retired.py NAME LIST SSH...    SSH: the command that reaches the machine with the file LIST

drain.py leaves a mark in the home of the cluster's user when it retires a worker. systemd starts the worker again
after a reboot, for example; without this program it would take on work that it was to hand over.
"""

import subprocess
import sys
import time
from pathlib import Path

INTERVAL = 5  # seconds


def main(name: str, members: str, *ssh: str) -> None:
    mark = Path.home() / f"retired-{name}"
    # Tasks can create a folder with this name; only drain.py's file counts.
    while mark.is_file():
        if subprocess.run([*ssh, "grep", "-qxF", name, members], stdin=subprocess.DEVNULL).returncode == 0:
            mark.unlink(missing_ok=True)
        else:
            time.sleep(INTERVAL)


if __name__ == "__main__":
    main(*sys.argv[1:])
