"""Waits until a new machine has started up, and prints the ed25519 host key that it showed first.

Variables: NAME; CONNECTION (JSON, as daskstack.ssh takes it, without a host key); WAIT, seconds; CONSOLE, the command
that shows what the machine said; TUNNEL, the command of a tunnel that somebody has to hold open, empty where none is.
"""

import json
import os
import subprocess
import sys
import time

from components.vms.host_key import first_contact, scan
from daskstack import ssh

PAUSE = 2  # seconds between two attempts
# Units that start up are done, those of the image too; one that failed is not ours to judge.
STARTED = "case $(systemctl is-system-running) in running | degraded) ;; *) exit 1 ;; esac"


def main() -> None:
    connection = json.loads(os.environ["CONNECTION"])
    wait = float(os.environ["WAIT"])
    deadline = time.monotonic() + wait
    if os.environ["TUNNEL"]:
        print(f"this machine is reached through a tunnel; keep it open: {os.environ['TUNNEL']}", file=sys.stderr)

    said = "its SSH did not answer"
    while time.monotonic() < deadline:
        key, problem = scan(connection["host"], str(connection["port"]), connection.get("proxy"))
        if key and not (problem := started(connection | {"host_key": key})):
            first_contact(connection["host"], str(connection["port"]), key)
            return
        said = problem or said
        time.sleep(PAUSE)
    sys.exit(
        f"error: {os.environ['NAME']} was not ready within {wait:g} s ({said}); what it said: {os.environ['CONSOLE']}"
    )


def started(connection: dict) -> str:
    """Empty where the machine has started up; else what is not so yet."""
    with ssh.command(connection) as command:
        try:
            done = subprocess.run([*command, STARTED], capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return "it stopped answering"
    return {0: "", 1: "it still starts"}.get(done.returncode, done.stderr.strip() or "nobody could log in")


if __name__ == "__main__":
    main()
