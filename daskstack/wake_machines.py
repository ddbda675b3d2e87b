"""Starts machines in Google Cloud with gcloud after they have switched themselves off."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

from daskstack.client_output import Connection, Google
from daskstack.tunnel import TunnelError, opens

WAIT = 180  # seconds until a machine must answer after its start
OFF = ("TERMINATED", "STOPPED")
# Google's errors if it has no capacity for a machine.
STOCKOUT = (
    r"ZONE_RESOURCE_POOL_EXHAUSTED|GCE_STOCKOUT|does not have enough resources available to fulfill the request"
    r"|VM instance[^\n]* is currently unavailable in the"
)


def wake(google: Google, door: Connection, head: str, least: int | None = None) -> int:
    """Starts the machines that are off, waits until `door` answers, and returns the number of workers among them.

    `head` is the name of the scheduler's machine. With `least`, the smallest number of workers, that machine alone is
    started, and starts the others that the cluster needs; then `least` is returned. If gcloud is missing, or fails
    while `door` answers, this starts no machine and returns 0; `make up` starts them too. Workers for which Google has
    no capacity are left out, with a message.
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
    asleep = _start(google, asleep, head)
    deadline = time.monotonic() + WAIT
    while not answers():
        if time.monotonic() > deadline:
            raise TunnelError(f"{', '.join(asleep)} started, but {door['host']} did not answer within {WAIT} s")
        time.sleep(1)
    return len(set(asleep) - {head}) if least is None else least


def _start(google: Google, machines: list[str], head: str) -> list[str]:
    """Starts machines, and returns those for which Google has capacity. `head` must be one of them."""
    try:
        gcloud(google, "start", *machines)
    except TunnelError as error:
        if not re.search(STOCKOUT, str(error)):
            raise
        states = statuses(google)
        off = [name for name in machines if states.get(name) in OFF]
        if head in off:
            text = f"Google has no capacity for the scheduler's machine in {google.zone_of(head)} now: try again later"
            raise TunnelError(text) from error
        if off:
            print(f"Google has no capacity for {', '.join(off)} now; the cluster works without", file=sys.stderr)
        return [name for name in machines if name not in off]
    return machines


def statuses(google: Google) -> dict[str, str]:
    """The state of each machine, such as RUNNING or TERMINATED, by its name in the cluster."""
    listed = {each["name"]: each["status"] for each in json.loads(_compute(google, "list", "--format", "json") or "[]")}
    return {here: listed[there] for here, there in google.machines.items() if there in listed}


def gcloud(google: Google, what: str, *machines: str) -> None:
    """Runs an action of `gcloud compute instances` on machines, such as `start`."""
    zones = defaultdict(list)
    for machine in machines:
        zones[google.zone_of(machine)].append(google.machines[machine])
    with ThreadPoolExecutor() as pool:
        done = [pool.submit(_compute, google, what, *names, "--zone", zone) for zone, names in zones.items()]
    for each in done:  # all have ended, even if one has failed
        each.result()


def _compute(google: Google, *words: str) -> str:
    command = ["gcloud", "compute", "instances", *words, "--project", google.project, "--quiet"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT)
    except subprocess.TimeoutExpired:
        raise TunnelError(f"`{' '.join(command)}` did not end within {WAIT} s") from None
    if done.returncode:
        raise TunnelError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout
