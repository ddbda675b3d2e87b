"""Runs commands for the set-up and reports their progress."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path

from daskstack import engine

CACHE = engine.cache_folder()
WAIT = 3600  # seconds for a command, or another make, to end; building Kubernetes takes a quarter of an hour
# Erases the line of a phase that is running, which only a terminal shows.
CLEAR = "\r\033[K" if sys.stderr.isatty() else ""


class InstallError(Exception):
    """An installation failed. The message contains what was expected, what was found, and the remedy."""


def say(text: str) -> None:
    print(f"{CLEAR}{text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def phase(text: str) -> Generator[None]:
    """Prints the phase and its duration: updated each second on a terminal, else a line every 30 s."""
    start, over = time.monotonic(), threading.Event()
    before, end = (f"{CLEAR}{text}: ", "") if CLEAR else ("  ", "\n")

    def tell(word: str, end: str) -> None:
        print(f"{before}{word}{time.monotonic() - start:.0f} s", end=end, file=sys.stderr, flush=True)

    def tick() -> None:
        while not over.wait(1 if CLEAR else 30):
            tell("", end)

    print(text, end=end, file=sys.stderr, flush=True)
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    outcome = "failed after "
    try:
        yield
        outcome = "done in "
    finally:
        over.set()
        ticker.join()
        tell(outcome, "\n")


def run(*command: str | Path, log: str, **kwargs) -> None:
    """Runs a command with its output in a log; raises InstallError with the end of the log if the command fails."""
    path = CACHE / "logs" / f"{log}.log"
    path.parent.mkdir(exist_ok=True)
    try:
        with path.open("w") as output:
            kwargs.setdefault("timeout", WAIT)
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True, **kwargs)
    except subprocess.TimeoutExpired as error:
        outcome = f"did not end within {error.timeout:.0f} s"
    except subprocess.CalledProcessError as error:
        outcome = f"ended with status {error.returncode}"
    else:
        return
    end = "\n".join(path.read_text(errors="replace").splitlines()[-15:])
    raise InstallError(f"{Path(command[0]).name} {outcome}:\n{end}\nThe whole log: {path}")


def which(command: str) -> str | None:
    """Like shutil.which; also searches the folders of administrators' commands and of Go."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/go/bin"])
    return shutil.which(command, path=path)


@contextlib.contextmanager
def made_whole(folder: Path) -> Generator[Path]:
    """A folder to fill, which gets its name once it is complete: other processes never see it half filled."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as new:
        content = Path(new) / "content"
        content.mkdir()
        yield content
        shutil.rmtree(folder, ignore_errors=True)
        content.rename(folder)


@contextlib.contextmanager
def one_at_a_time() -> Generator[None]:
    """Holds the lock of the set-up; raises InstallError if another make holds it for WAIT seconds."""
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / "lock"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as lock:
        os.fchmod(lock.fileno(), 0o600)  # any user who can open the file can lock it
        deadline, told = time.monotonic() + WAIT, False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InstallError(
                        f"another make has been installing for {WAIT} s (it holds {path}): end it, then run this again"
                    ) from None
            if not told:
                say("Another make is installing; waiting for it to end")
                told = True
            time.sleep(0.2)
        yield
