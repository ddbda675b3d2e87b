"""Clears the lock that a killed `pulumi` left on a stack in a local folder: python3 -m tools.unlock STACK

A lock whose process still runs is refused. Stacks that live elsewhere are left to `pulumi cancel`.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from daskstack import engine, kubectl

WAIT = 60  # seconds for kubectl


def main(stack: str) -> None:
    environ = {**os.environ, **engine.variables(stack)}
    backend = environ["PULUMI_BACKEND_URL"]
    found = locks(backend, stack)
    for holder in map(read, found):
        if holds(holder):
            sys.exit(
                f"error: stack {stack} is in use since {holder['timestamp']} by process {holder['pid']} on"
                f" {holder['hostname']}: wait for it to end; if it cannot be alive, run"
                f" `pulumi cancel --stack {stack}` under `make env`"
            )
    clear_unfinished_files(backend, stack)
    if not found:
        return
    clear(found)
    print("Cleared the lock of a run that is dead; going on where it ended")
    exported = engine.pulumi(stack, "stack", "export", capture_output=True)
    if exported.returncode == 0:  # else it ended before there was a stack
        clear_release(json.loads(exported.stdout))


def clear(found: list[Path]) -> None:
    """Removes dead locks, and attributes that were never written.

    `pulumi cancel` reads the stack first, which fails ("EOF") where the run was killed between making the empty
    file of a state's attributes and writing it. Nobody needs these.
    """
    folder = found[0].parent
    shutil.rmtree(folder)
    for attributes in folder.parents[3].rglob("*.attrs"):
        with suppress(FileNotFoundError):  # an engine at work on another stack
            if attributes.stat().st_size == 0:
                attributes.unlink()


def clear_unfinished_files(backend: str, stack: str) -> None:
    """Removes what an engine that was killed had not written to the end: each file gets its name only then."""
    for folder in state_folders(backend):
        for pattern in (f"stacks/dask/{stack}.json*.tmp", f"*/dask/{stack}/*.tmp"):
            for file in folder.glob(pattern):
                file.unlink(missing_ok=True)


def clear_release(exported: Mapping) -> None:
    """Has helm forget what a killed run began, and would not go on with; what it made stays, and is used again."""
    resources = (exported["deployment"] or {}).get("resources", [])
    known = any(each["type"] == "kubernetes:helm.sh/v3:Release" for each in resources)
    unfinished = ",status in (pending-install,pending-upgrade,pending-rollback)" if known else ""
    for environment in (
        each["inputs"]["environment"] for each in resources if each["urn"].endswith("-check-namespace")
    ):
        with kubectl.kubectl(json.loads(environment["CLUSTER"])) as command:
            words = ["--namespace", environment["NAMESPACE"], "--request-timeout", "20s", "delete", "secrets"]
            selector = f"owner=helm,name=dask{unfinished}"
            try:
                run = [*command, *words, "--selector", selector]
                done = subprocess.run(run, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=WAIT)
            except subprocess.TimeoutExpired:
                print(f"The Helm release that was under way could not be cleared: kubectl said nothing within {WAIT} s")
                continue
        if "deleted" in done.stdout:
            print("Cleared the Helm release that was under way; it is finished now")


def locks(backend: str, stack: str) -> list[Path]:
    """The lock files of a stack, none where the backend is not a local folder."""
    files = [file for folder in state_folders(backend) for file in folder.glob(f"locks/organization/dask/{stack}/*")]
    return [file for file in files if file.suffix != ".attrs"]


def state_folders(backend: str) -> list[Path]:
    """The folder with the states, or none where the backend is not a local folder."""
    url = urlsplit(backend)
    return [Path(unquote(url.path), ".pulumi")] if url.scheme == "file" else []


def read(lock: Path) -> dict:
    """Who holds a lock, empty where it has just been given back, or the holder was killed while it wrote that."""
    try:
        return json.loads(lock.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def holds(holder: Mapping) -> bool:
    """Whether a lock's process may still be running: on another host nobody can tell."""
    if not holder:
        return False
    if holder["hostname"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
        # The number may have gone to another program by now.
        return Path(f"/proc/{holder['pid']}/exe").readlink().name.startswith("pulumi")
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return sys.platform != "linux"  # a killed process that nobody has waited for has no program
    except PermissionError:
        return True


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except engine.EngineError as error:
        sys.exit(f"error: {error}")
