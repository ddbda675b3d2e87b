"""Runs a job's script in the working directory.

The folder CREDENTIALS_DIRECTORY has the file `job`, a JSON object whose `words` are the script and its arguments. In
Kubernetes it also has the script's folder as a ZIP archive, `code`; on a machine, the working directory is that folder
already. Its modules can be imported on the scheduler and all workers.

If the script fails after its scheduler has restarted, its results were lost with the scheduler, so it runs again.
"""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import distributed

from daskstack import user_code

AWAY = 600  # seconds to wait for a scheduler that restarts
ATTEMPTS = 100

# Its tracebacks about lost connections would fill the job's output.
logging.getLogger("distributed.client").setLevel(logging.CRITICAL)


def connect():
    """The client keeps an idle cluster awake (see record_last_work.py)."""
    deadline = time.monotonic() + AWAY
    while True:
        try:
            return distributed.Client(name="daskstack-job", timeout=30, set_as_default=False)
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"the scheduler does not answer: {error}")
            time.sleep(2)


def archive():
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as zipped:
            for path in sorted(Path().rglob("*")):
                zipped.write(path)
        return buffer.getvalue()


def attempt(words, modules):
    """Runs the script once. Returns its exit status, and whether it lost its scheduler."""
    stopped = threading.Event()

    def stop(*_):
        stopped.set()
        script.terminate()

    with connect() as client:
        before = client.scheduler_info(n_workers=0)["id"]
        for plugin in user_code.plugins(modules):
            client.register_plugin(plugin)
        script = subprocess.Popen([sys.executable, "-u", *words])
        signal.signal(signal.SIGTERM, stop)
        status = script.wait()
    if status == 0 or stopped.is_set():
        return status, False
    with connect() as client:
        return status, client.scheduler_info(n_workers=0)["id"] != before


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by default, PID 1 of a pod ignores it
    given = Path(os.environ["CREDENTIALS_DIRECTORY"])
    words = json.loads((given / "job").read_text())["words"]
    if (given / "code").exists():
        zipfile.ZipFile(given / "code").extractall()
    modules = archive()
    for _ in range(ATTEMPTS):
        status, lost = attempt(words, modules)
        if not lost:
            break
        print("the scheduler has restarted: the job starts again", flush=True)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
