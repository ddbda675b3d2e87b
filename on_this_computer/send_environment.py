"""Copies the locks, uv and, for `wheelhouse`, their wheels to the authority's machine; the resource `files` runs it.

Variables: LOCK, PYTHON, SOURCE as in the settings, JUPYTER (like LOCK for Jupyter's packages, or empty), CONNECTION
(JSON, as daskstack.ssh takes it). The wheels are downloaded once, into the user's cache folder. Prints a JSON object
for the step `environment`. With the argument `undo` it removes these files from the machine.
"""

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from daskstack import ssh
from daskstack.client_output import Connection
from daskstack.engine import PROJECT, cache_folder, digest
from settings import lock

UV = PROJECT / "tools" / "uv.txt"
FOLDER = "daskstack-files"
ARCHIVE = "environment.tar.gz"  # as in steps/environment.sh
OPT = "/opt/daskstack"  # as in steps/common.sh
WAIT = 3600  # seconds: 120 MB over a line of 300 kbit/s
ATTEMPTS = 3  # connections to a machine
# The oldest supported system has glibc 2.34.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(34, 4, -1)] + ["manylinux2014_x86_64"]


def collect(path: Path, python: str, source: str, jupyter: Path | None = None) -> Path:
    """The folder to send; created in the cache if it is not there."""
    locks = {"environment.lock": path.read_bytes()}
    if jupyter:
        # Without markers, because they can select other packages for a later release of the same minor version.
        locks["jupyter.lock"] = "\n".join(lock.read(jupyter, python, dask=False).requirements).encode()
    locked = lock.read(path, python)
    if locked.archive and sha256(locked.archive) != locked.archive_sha256:
        sys.exit(
            f"error: {locked.archive} is not the archive of {path.name}; run `daskstack lock {locked.archive.name}`"
        )
    kept = cache_folder() / "files" / digest(path, *([jupyter] if jupyter else []), UV, python, source) / FOLDER
    if kept.exists():
        if not (changed := difference(kept, locks)):
            return kept
        print(f"{changed}: creating {kept.parent} again", file=sys.stderr)
        shutil.rmtree(kept.parent)
    kept.parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent.parent) as temporary:
        new = Path(temporary) / "new" / FOLDER
        new.mkdir(parents=True)
        for name, content in locks.items():
            (new / name).write_bytes(content)
        download(["--requirement", str(UV)], python, new)
        if locked.archive:
            (new / ARCHIVE).symlink_to(locked.archive)
        own = locked.wheels
        if own:
            (new / "wheels").mkdir()
            for wheel in own:
                shutil.copy(wheel, new / "wheels")
        if source == "wheelhouse" and not locked.archive:
            print(f"downloading the lock's wheels (about {170 if jupyter else 120} MB, once)", file=sys.stderr)
            # Packages in both locks have the same versions.
            pinned = Path(temporary) / "pinned.txt"
            pinned.write_text("\n".join(requirements(path, python, jupyter)))
            places = ["--find-links", str(own[0].parent)] if own else []
            download(["--requirement", str(pinned), *places], python, new / "wheels")
        if not kept.parent.exists():  # another run may have been faster
            new.parent.rename(kept.parent)
    return kept


def requirements(path: Path, python: str, jupyter: Path | None) -> list[str]:
    here = lock.read(path, python)
    more = lock.read(jupyter, python, dask=False).requirements if jupyter else ()
    return [*here.requirements, *(each for each in more if each.partition("==")[0] not in here.packages)]


def difference(kept: Path, locks: Mapping[str, bytes]) -> str:
    """How a folder of the cache differs from the locks and tools/uv.txt; empty if it does not.

    Machines run this uv as root. They compare the wheels with the locks themselves.
    """
    for name, content in locks.items():
        if (kept / name).read_bytes() != content:
            return f"{kept / name} differs from the lock"
    uv = next(kept.glob("uv-*.whl"), None)
    if uv is None or sha256(uv) not in re.findall(r"--hash=sha256:([0-9a-f]{64})", UV.read_text()):
        return f"{uv or kept / 'uv-*.whl'} has none of the checksums in {UV}"
    return ""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(what: list[str], python: str, folder: Path) -> None:
    """Downloads wheels for machines with this Python, and compares them with their hashes."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    command += [f"--platform={each}" for each in PLATFORMS]
    try:
        done = subprocess.run([*command, *what, "--dest", str(folder)], stdout=sys.stderr, timeout=WAIT)
    except subprocess.TimeoutExpired:
        sys.exit(f"error: pip did not download the wheels within {WAIT} s; check the network and pip's package index")
    if done.returncode:
        sys.exit("error: pip could not download the wheels; its message is above")


# What the machine runs: bash, in one line without single quotes, so that every login shell passes it on unchanged. The
# folder appears at once and complete: the next step must not find the files of a killed run.
TAKE = (
    f"set -eu; umask 022; cd /; install -d -m 0755 {OPT}; rm -rf {OPT}/files.??????;"
    f" new=$(mktemp -d {OPT}/files.XXXXXX);"
    f' trap "rm -rf $new; rmdir --ignore-fail-on-non-empty {OPT}" EXIT;'
    f" timeout {WAIT} tar --extract --no-same-owner --directory=$new; chmod -R u=rwX,go=rX $new/{FOLDER};"
    f" rm -rf {OPT}/files; mv $new/{FOLDER} {OPT}/files"
)
REMOVE = f"cd /; rm -rf {OPT}/files {OPT}/files.??????; rmdir {OPT} 2>/dev/null || true"


def send(folder: Path, connection: Connection) -> None:
    """Copies the folder to a place that only root can write to."""
    tar = ["tar", "--create", "--dereference", "--directory", folder.parent, FOLDER]
    for _ in range(ATTEMPTS):
        # Leaving the context closes this side of the pipe, so that tar ends when ssh has ended without reading it all.
        with subprocess.Popen(tar, stdout=subprocess.PIPE) as sender:
            assert sender.stdout  # a pipe, as asked above
            status = as_root(connection, TAKE, sender.stdout)
        if not ssh.lost(status):
            break
    if status or sender.returncode:
        sys.exit(
            f"error: copying the lock and wheels to {OPT} on {connection['host']} failed;"
            " the messages of ssh and tar are above"
        )


def as_root(connection: Connection, script: str, stdin: IO[bytes] | int = subprocess.DEVNULL) -> int:
    """Runs a bash script on the machine and returns its status; ends the program if it takes longer than WAIT."""
    privilege = [] if connection["user"] == "root" else ["sudo", "-n"]
    with ssh.command(connection) as command:
        try:
            run = [*command, shlex.join([*privilege, "bash", "-c", script])]
            # A login shell can print something.
            return subprocess.run(run, stdin=stdin, stdout=sys.stderr, timeout=WAIT).returncode
        except subprocess.TimeoutExpired:
            sys.exit(f"error: copying files to {connection['host']} took more than {WAIT} s")


def main(undo: bool) -> None:
    if platform.system() == "Windows":
        sys.exit("error: Windows is not supported, because this needs tar and ssh: use Linux, macOS or WSL")
    connection = json.loads(os.environ["CONNECTION"])
    if undo:
        sys.exit(as_root(connection, REMOVE))
    jupyter = PROJECT / os.environ["JUPYTER"] if os.environ["JUPYTER"] else None
    folder = collect(PROJECT / os.environ["LOCK"], os.environ["PYTHON"], os.environ["SOURCE"], jupyter)
    send(folder, connection)
    uv = next(folder.glob("uv-*.whl"))
    print(json.dumps({"uv": uv.name, "uvSha256": sha256(uv)}))


if __name__ == "__main__":
    main(sys.argv[1:] == ["undo"])
