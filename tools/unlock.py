"""Clears the lock that a killed `pulumi` left on a stack in a local folder: python3 -m tools.unlock STACK

A lock whose process still runs is refused. Stacks that live elsewhere are left to `pulumi cancel`.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from daskstack import engine, kubernetes


def main(stack: str) -> None:
    environ = {**os.environ, **engine.variables(stack)}
    holders = [json.loads(lock.read_text()) for lock in locks(environ["PULUMI_BACKEND_URL"], stack)]
    if not holders:
        return
    for holder in holders:
        if holds(holder):
            sys.exit(
                f"error: stack {stack} is in use since {holder['timestamp']} by process {holder['pid']} on"
                f" {holder['hostname']}: wait for it to end; if it cannot be alive, run"
                f" `pulumi cancel --stack {stack}` under `make env`"
            )
    engine.pulumi(stack, "cancel", "--yes", capture_output=True, check=True)
    print(f"Cleared the lock of a run that is dead (process {holders[0]['pid']}); going on where it ended")
    clear_release(json.loads(engine.pulumi(stack, "stack", "export", capture_output=True, check=True).stdout))


def clear_release(exported: Mapping) -> None:
    """Has helm forget what a killed run began, and would not go on with; what it made stays, and is used again."""
    resources = (exported["deployment"] or {}).get("resources", [])
    known = any(each["type"] == "kubernetes:helm.sh/v3:Release" for each in resources)
    unfinished = ",status in (pending-install,pending-upgrade,pending-rollback)" if known else ""
    for environment in (each["inputs"]["environment"] for each in resources if each["urn"].endswith("::answers")):
        with kubernetes.kubectl(json.loads(environment["CLUSTER"])) as command:
            words = ["--namespace", environment["NAMESPACE"], "--request-timeout", "20s", "delete", "secrets"]
            selector = f"owner=helm,name=dask{unfinished}"
            done = subprocess.run([*command, *words, "--selector", selector], capture_output=True, text=True)
        if "deleted" in done.stdout:
            print("Cleared the Helm release that was under way; it is finished now")


def locks(backend: str, stack: str) -> list[Path]:
    """The lock files of a stack, none where the backend is not a local folder."""
    url = urlsplit(backend)
    if url.scheme != "file":
        return []
    return list(Path(unquote(url.path), ".pulumi/locks/organization/dask", stack).glob("*.json"))


def holds(holder: Mapping) -> bool:
    """Whether a lock's process may still be running: on another host nobody can tell."""
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
