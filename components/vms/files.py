"""Puts the lock, uv and, for `wheelhouse`, the lock's wheels on the authority's machine; run by the step `files`.

Variables: LOCK, PYTHON, SOURCE as in the settings, CONNECTION (JSON, as daskstack.ssh takes it). The wheels are
downloaded once, into the user's cache folder. Prints what the step `environment` needs to know, as a JSON object.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import lock
from daskstack import ssh
from daskstack.engine import PROJECT, cache_folder, digest

UV = PROJECT / "tools" / "uv.txt"
FOLDER = "daskstack-files"
# What the oldest system that we support, with glibc 2.34, can load.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(34, 4, -1)] + ["manylinux2014_x86_64"]


def collect(path: Path, python: str, source: str) -> Path:
    """The folder to hand out, from the cache or made there."""
    kept = cache_folder() / "files" / digest(path, UV, python, source) / FOLDER
    if kept.exists():
        return kept
    kept.parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent.parent) as temporary:
        new = Path(temporary) / "new" / FOLDER
        new.mkdir(parents=True)
        shutil.copy(path, new / "environment.lock")
        download(["--requirement", str(UV)], python, new)
        if source == "wheelhouse":
            print("downloading the lock's wheels (about 120 MB, once)", file=sys.stderr)
            pinned = Path(temporary) / "pinned.txt"
            pinned.write_text("\n".join(lock.read(path, python).requirements))
            download(["--requirement", str(pinned)], python, new / "wheels")
        if not kept.parent.exists():  # another run may have been faster
            new.parent.rename(kept.parent)
    return kept


def download(what: list[str], python: str, folder: Path) -> None:
    """The named wheels, checked against their hashes, for machines with this Python."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    command += [f"--platform={each}" for each in PLATFORMS]
    done = subprocess.run([*command, *what, "--dest", str(folder)], stdout=sys.stderr)
    if done.returncode:
        sys.exit("error: the wheels could not be downloaded; pip's own words are above")


def send(folder: Path, connection: dict) -> None:
    """Copies the folder into the login user's home."""
    with ssh.command(connection) as command:
        # Whole or not at all: the step that takes it over must not meet what a killed run is still sending.
        take = (
            f"new=$(mktemp -d {FOLDER}.XXXXXX) && tar --extract --no-same-owner --directory=$new"
            f" && rm -rf {FOLDER} && mv $new/{FOLDER} {FOLDER}; status=$?; rm -rf $new; exit $status"
        )
        tar = subprocess.Popen(["tar", "--create", "--directory", folder.parent, FOLDER], stdout=subprocess.PIPE)
        done = subprocess.run([*command, take], stdin=tar.stdout)
        if tar.wait() or done.returncode:
            sys.exit("error: lock and wheels could not be copied; the words of tar and ssh are above")


def main() -> None:
    if platform.system() == "Windows":
        sys.exit("error: run this on Linux, macOS or in WSL: it needs tar and ssh")
    folder = collect(Path(os.environ["LOCK"]), os.environ["PYTHON"], os.environ["SOURCE"])
    send(folder, json.loads(os.environ["CONNECTION"]))
    uv = next(folder.glob("uv-*.whl"))
    print(json.dumps({"uv": uv.name, "uvSha256": hashlib.sha256(uv.read_bytes()).hexdigest()}))


if __name__ == "__main__":
    main()
