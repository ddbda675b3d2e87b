"""Folders for keys. Only this user can open them, and they are removed even if their process is killed."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from daskstack import engine

# A folder gets this prefix after it is locked. Folders with the prefix whose lock is free are leftovers.
PREFIX = "keys-"


@contextmanager
def folder() -> Generator[Path]:
    """A new folder that is removed at the end of the context, or by a later command if this process is killed."""
    parent = place()
    _remove_left(parent)
    # Rename it only after locking it: another process would remove an unlocked folder as a leftover.
    new = Path(tempfile.mkdtemp(prefix="new-", dir=parent))
    with (new / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path = new.rename(parent / new.name.replace("new-", PREFIX, 1))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def place(environ: Mapping[str, str] = os.environ) -> Path:
    """The parent of these folders: in memory if the system has such a folder for this user, else in the cache."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime and _ours_alone(Path(runtime)):
        path = Path(runtime) / "daskstack"
    else:
        path = engine.cache_folder(environ) / f"run-{os.geteuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _ours_alone(path):
        raise engine.EngineError(
            f"{path} must be a folder that belongs to you and that nobody else can enter (mode 0700),"
            " because it stores keys: remove it, or set XDG_RUNTIME_DIR or XDG_CACHE_HOME to a folder of your own"
        )
    return path


def _ours_alone(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _remove_left(parent: Path) -> None:
    """Removes the folders of killed processes, which no longer hold their locks."""
    for path in parent.glob(f"{PREFIX}*"):
        try:
            with (path / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # in use, or another process has just removed it
            continue
