"""Copies the steps, and the programs that they install, to a machine; the resource `scripts` runs it.

Only root can read or change them there. Each file is named by its SHA-256, so the steps of an `up` that was interrupted
find theirs beside newer ones. Steps name their files in this way, which keeps the texts out of Pulumi's state.

Variables: CONNECTION (JSON, as daskstack.ssh takes it). With the argument `undo` it removes the files.
"""

import functools
import hashlib
import io
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path

from daskstack import ssh
from daskstack.client_output import Connection
from daskstack.engine import PROJECT
from on_this_computer.send_environment import ATTEMPTS, as_root

STEPS = PROJECT / "on_the_cluster" / "steps"
PROGRAMS = (
    *sorted((PROJECT / "on_the_cluster").glob("*.py")),
    *(PROJECT / "daskstack" / f"{name}.py" for name in ("daskdata", "user_code")),
    # The chart's pods run these too.
    *(PROJECT / "charts/dask/files" / f"{name}.py" for name in ("drain", "people", "scaling")),
)
PLACE = "/etc/daskstack/scripts"

# What the machine runs: bash, in one line without single quotes, so that every login shell passes it on unchanged. Each
# file appears at once and complete.
TAKE = (
    f"set -eu; umask 077; cd /; install -d -m 0755 {PLACE.rpartition('/')[0]}; install -d -m 0700 {PLACE};"
    f' rm -rf {PLACE}.??????; new=$(mktemp -d {PLACE}.XXXXXX); trap "rm -rf $new" EXIT;'
    f" timeout 300 tar --extract --no-same-owner --directory=$new; mv -f $new/* {PLACE}"
)
REMOVE = f"cd /; rm -rf {PLACE} {PLACE}.??????; rmdir {PLACE.rpartition('/')[0]} 2>/dev/null || true"


def step_text(state: str) -> str:
    """A step's file. If there is a folder with the step's name, the files in it are put in front."""
    files = [*sorted((STEPS / state).glob("*.sh")), STEPS / f"{state}.sh"]
    return "".join(file.read_text() for file in files)


@functools.cache
def step(state: str) -> str:
    """The name of a step's file on the machines."""
    return digest(step_text(state))


@functools.cache
def program(path: Path) -> str:
    """The name of a program's file on the machines."""
    return digest(path.read_text())


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def texts() -> dict[str, str]:
    """All files, by their names on the machines."""
    found = [*(step_text(path.stem) for path in STEPS.glob("*.sh")), *(path.read_text() for path in PROGRAMS)]
    return {digest(text): text for text in found}


@functools.cache
def version() -> str:
    """A hash that changes with every file."""
    return digest(" ".join(sorted(texts())))


def send(connection: Connection) -> None:
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, text in texts().items():
                file = tarfile.TarInfo(name)
                file.size, file.mode = len(text.encode()), 0o600
                tar.addfile(file, io.BytesIO(text.encode()))
        for _ in range(ATTEMPTS):
            archive.seek(0)
            status = as_root(connection, TAKE, archive)
            if not ssh.lost(status):
                break
    if status:
        sys.exit(f"error: copying the steps to {connection['host']} failed; ssh's messages are above")


def main(undo: bool) -> None:
    connection = json.loads(os.environ["CONNECTION"])
    if undo:
        sys.exit(as_root(connection, REMOVE))
    send(connection)


if __name__ == "__main__":
    main(sys.argv[1:] == ["undo"])
