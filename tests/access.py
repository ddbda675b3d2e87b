"""Access files of stack dev, made with the command line as its owner does."""

from pathlib import Path

from rehearsal.machines import run
from tests.checkout import Checkout


def command(checkout: Checkout, *words: str, succeeds: bool = True) -> str:
    """What `daskstack access` prints."""
    words = (".venv/bin/daskstack", "access", *words)
    done = run(words, cwd=checkout.folder, env=checkout.environ, seconds=300, together=True, check=False)
    assert (done.returncode == 0) == succeeds, done.stdout
    return done.stdout


def give(checkout: Checkout, folder: Path, *names: str) -> list[Path]:
    """New access files of these people, in a folder."""
    files = [folder / f"{name}.json" for name in names]
    for name, file in zip(names, files, strict=True):
        command(checkout, "add", name, "--output", str(file))
    return files
