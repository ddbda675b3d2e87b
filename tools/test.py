"""Runs every test: python -m tools.test [ARGUMENTS of pytest, which then runs alone]

Two runs beside each other, about equally long: most tests wait most of the time.
"""

import signal
import subprocess
import sys
import tempfile

from daskstack.engine import PROJECT
from tools.running import phase

BESIDE = ["tests/machines/test_power_off.py", "tests/machines/test_rehearsed.py", "tests/kubernetes"]
OTHERS = ["tests/unit", "tests/engine", "tests/machines", *(f"--ignore={each}" for each in BESIDE)]  # cheapest first


def main(arguments: list[str]) -> int:
    pytest = [sys.executable, "-m", "pytest"]
    with tempfile.TemporaryFile("w+") as said:
        if arguments:
            running = [subprocess.Popen([*pytest, *arguments], cwd=PROJECT)]
        else:
            beside = subprocess.Popen([*pytest, *BESIDE], cwd=PROJECT, stdout=said, stderr=said)
            running = [subprocess.Popen([*pytest, *OTHERS], cwd=PROJECT), beside]
        # They clean up after Ctrl-C, which reaches them by itself, and are waited for.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: [each.send_signal(signal.SIGINT) for each in running])
        status = running[0].wait()
        if not arguments:
            with phase(f"Waiting for {' '.join(BESIDE)}"):
                status = beside.wait() or status
            said.seek(0)
            print(said.read(), end="", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
