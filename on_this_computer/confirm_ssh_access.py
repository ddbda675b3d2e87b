"""Proves, over a new SSH connection, that a machine still lets us in after the step `firewall`; else that step takes
its change back.

Variables: CONNECTION (JSON, as daskstack.ssh takes it) and COMMAND, which runs a step there; the step is on stdin.
"""

import json
import os
import subprocess
import sys
import time

from daskstack import ssh

LOST = 255  # ssh's own status: no connection
WAIT = 45  # seconds; the change is taken back after 60
STEP = 1200  # seconds for the step


def main() -> None:
    step, connection = sys.stdin.read(), json.loads(os.environ["CONNECTION"])
    with ssh.command(connection) as machine:

        def run(argument: str, limit: float) -> int:
            command = [*machine, f"{os.environ['COMMAND']} {argument}"]
            try:
                return subprocess.run(command, input=step, text=True, timeout=limit).returncode
            except subprocess.TimeoutExpired:
                print(f"no answer from {connection['host']} within {limit:.0f} s", file=sys.stderr)
                return LOST

        def confirm() -> int:
            deadline = time.monotonic() + WAIT
            while (status := run("confirm", WAIT)) == LOST and time.monotonic() < deadline:
                time.sleep(1)
            return status

        status = confirm()
        if status not in (0, LOST):
            # It was taken back because nobody came within a minute: `up` was killed, or busy with many machines.
            status = run("", STEP) or confirm()
    if status == LOST:
        sys.exit(
            f"error: no new SSH connection to {connection['host']} since its firewall changed (see above); the change"
            " takes itself back within a minute. If no other reason is given, list the network that you come from in"
            " firewall.ssh; then run up again"
        )
    sys.exit(status)


if __name__ == "__main__":
    main()
