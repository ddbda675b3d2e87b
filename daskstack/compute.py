"""Machines in Google Cloud that have switched themselves off, started again with gcloud."""

import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from daskstack.tunnel import TunnelError, opens

WAIT = 180  # seconds for a machine that was started to answer


def wake(google: Mapping[str, Any], door: Mapping[str, Any]) -> int:
    """Starts what is off of `google` (project, zone, and `machines`: names there by names here), and waits for `door`.

    Returns how many workers will come. Without gcloud nothing is started: `make up` does it, too.
    """
    if not shutil.which("gcloud"):
        return 0
    where = ["--project", google["project"]]
    listed = json.loads(_gcloud("instances", "list", *where, "--format", "json") or "[]")
    off = {each["name"] for each in listed if each["status"] in ("TERMINATED", "STOPPED")}
    asleep = {here: there for here, there in google["machines"].items() if there in off}
    if not asleep:
        return 0
    _gcloud("instances", "start", *asleep.values(), "--zone", google["zone"], *where)
    deadline = time.monotonic() + WAIT
    while not opens(door.get("port") or 22, door["host"]):
        if time.monotonic() > deadline:
            raise TunnelError(f"{', '.join(asleep)} were started, but {door['host']} does not answer after {WAIT} s")
        time.sleep(1)
    return len(asleep.keys() - {"scheduler"})


def _gcloud(*words: str) -> str:
    try:
        done = subprocess.run(["gcloud", "compute", *words, "--quiet"], capture_output=True, text=True, timeout=WAIT)
    except subprocess.TimeoutExpired:
        raise TunnelError(f"`gcloud compute {' '.join(words[:2])}` did not end within {WAIT} s") from None
    if done.returncode:
        raise TunnelError(f"`gcloud compute {' '.join(words[:2])}` failed: {done.stderr.strip()}")
    return done.stdout
