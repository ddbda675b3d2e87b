"""Confirms, over a new SSH connection, that the step `firewall` has not locked us out; without it the step rolls back.

Variables: CONNECTION (JSON, as daskstack.ssh takes it) and COMMAND, which runs a step on the machine; stdin: the step.
"""

import json
import os
import subprocess
import sys
import time

from daskstack import ssh

LOST = 255  # the status of ssh if there is no connection
WAIT = 45  # seconds; the step rolls back after 60
STEP = 1200  # seconds for the step


def main() -> None:
    step, connection = sys.stdin.read(), json.loads(os.environ["CONNECTION"])
    with ssh.command(connection) as machine:

        def run(argument: str, limit: float) -> int:
            command = [*machine, f"{os.environ['COMMAND']} {argument}"]
            try:
                return subprocess.run(command, input=step, text=True, timeout=limit).returncode
            except subprocess.TimeoutExpired:
                print(f"{connection['host']} did not answer within {limit:.0f} s", file=sys.stderr)
                return LOST

        def confirm() -> int:
            deadline = time.monotonic() + WAIT
            while (status := run("confirm", WAIT)) == LOST and time.monotonic() < deadline:
                time.sleep(1)
            return status

        status = confirm()
        if status not in (0, LOST):
            # The step rolled back, because nothing confirmed it within a minute: `up` was killed or too slow.
            status = run("", STEP) or confirm()
    if status == LOST:
        sys.exit(
            f"error: a new SSH connection to {connection['host']} failed after its firewall changed (see above); the"
            " change rolls back within a minute. If no other reason is given above, add your own network to"
            " firewall.ssh; then run up again"
        )
    sys.exit(status)


if __name__ == "__main__":
    main()
