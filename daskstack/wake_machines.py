"""Starts machines in Google Cloud with gcloud after they have switched themselves off."""

import json
import shutil
import subprocess
import time

from daskstack.client_output import Connection, Google
from daskstack.tunnel import TunnelError, opens

WAIT = 180  # seconds until a machine must answer after its start
OFF = ("TERMINATED", "STOPPED")


def wake(google: Google, door: Connection, head: str, least: int | None = None) -> int:
    """Starts the machines that are off, waits until `door` answers, and returns the number of workers among them.

    `head` is the name of the scheduler's machine. With `least`, the smallest number of workers, that machine alone is
    started, and starts the others that the cluster needs; then `least` is returned. If gcloud is missing, or fails
    while `door` answers, this starts no machine and returns 0; `make up` starts them too.
    """

    def answers() -> bool:
        return opens(door.get("port") or 22, door["host"])

    if not shutil.which("gcloud"):
        return 0
    try:
        states = statuses(google)
    except TunnelError:
        if answers():
            return 0
        raise
    asleep = [name for name, status in states.items() if status in OFF and (least is None or name == head)]
    if not asleep:
        return 0
    gcloud(google, "start", *asleep)
    deadline = time.monotonic() + WAIT
    while not answers():
        if time.monotonic() > deadline:
            raise TunnelError(f"{', '.join(asleep)} started, but {door['host']} did not answer within {WAIT} s")
        time.sleep(1)
    return len(set(asleep) - {head}) if least is None else least


def statuses(google: Google) -> dict[str, str]:
    """The state of each machine, such as RUNNING or TERMINATED, by its name in the cluster."""
    listed = {each["name"]: each["status"] for each in json.loads(_compute(google, "list", "--format", "json") or "[]")}
    return {here: listed[there] for here, there in google.machines.items() if there in listed}


def gcloud(google: Google, what: str, *machines: str) -> None:
    """Runs an action of `gcloud compute instances` on machines, such as `start`."""
    _compute(google, what, *(google.machines[machine] for machine in machines), "--zone", google.zone)


def _compute(google: Google, *words: str) -> str:
    command = ["gcloud", "compute", "instances", *words, "--project", google.project, "--quiet"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT)
    except subprocess.TimeoutExpired:
        raise TunnelError(f"`{' '.join(command)}` did not end within {WAIT} s") from None
    if done.returncode:
        raise TunnelError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout
