"""Clears the lock that a killed `pulumi` left on a stack in a local folder: python3 -m tools.unlock STACK

Fails if the lock's process still runs. For stacks in other backends there is `pulumi cancel`.
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
                f"error: stack {stack} has been in use since {holder['timestamp']} by process {holder['pid']} on"
                f" {holder['hostname']}: wait for it to end; if it no longer exists, run"
                f" `pulumi cancel --stack {stack}` under `make env`"
            )
    clear_unfinished_files(backend, stack)
    if not found:
        return
    clear(found)
    print("Cleared the lock of a killed run; continuing from its state")
    exported = engine.pulumi(stack, "stack", "export", capture_output=True)
    if exported.returncode == 0:  # else the run ended before it created the stack
        clear_release(json.loads(exported.stdout))


def clear(found: list[Path]) -> None:
    """Removes locks of killed runs, and empty files of attributes.

    `pulumi cancel` would not do: it reads the stack first, and fails ("EOF") if the run was killed after it created a
    state's file of attributes and before it wrote to it. Nothing needs these files.
    """
    folder = found[0].parent
    shutil.rmtree(folder)
    for attributes in folder.parents[3].rglob("*.attrs"):
        with suppress(FileNotFoundError):  # an engine on another stack has removed it
            if attributes.stat().st_size == 0:
                attributes.unlink()


def clear_unfinished_files(backend: str, stack: str) -> None:
    """Removes files that a killed engine had not finished: it renames each file once it is complete."""
    for folder in state_folders(backend):
        for pattern in (f"stacks/dask/{stack}.json*.tmp", f"*/dask/{stack}/*.tmp"):
            for file in folder.glob(pattern):
                file.unlink(missing_ok=True)


def clear_release(exported: Mapping) -> None:
    """Deletes helm's record of a release that a killed run had begun: helm refuses to change it. Its objects stay."""
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
                print(f"Could not clear the unfinished Helm release: kubectl did not answer within {WAIT} s")
                continue
        if "deleted" in done.stdout:
            print("Cleared the record of an unfinished Helm release")


def locks(backend: str, stack: str) -> list[Path]:
    """The lock files of a stack; none if the backend is not a local folder."""
    files = [file for folder in state_folders(backend) for file in folder.glob(f"locks/organization/dask/{stack}/*")]
    return [file for file in files if file.suffix != ".attrs"]


def state_folders(backend: str) -> list[Path]:
    """The folder with the states; none if the backend is not a local folder."""
    url = urlsplit(backend)
    return [Path(unquote(url.path), ".pulumi")] if url.scheme == "file" else []


def read(lock: Path) -> dict:
    """A lock's holder; empty if it has just released the lock, or was killed while it wrote the file."""
    try:
        return json.loads(lock.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def holds(holder: Mapping) -> bool:
    """Whether a lock's process may still be running. For another host this cannot be checked, so it may."""
    if not holder:
        return False
    if holder["hostname"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
        # Another program may have this process ID by now.
        return Path(f"/proc/{holder['pid']}/exe").readlink().name.startswith("pulumi")
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return sys.platform != "linux"  # a zombie has no executable
    except PermissionError:
        return True


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except engine.EngineError as error:
        sys.exit(f"error: {error}")
