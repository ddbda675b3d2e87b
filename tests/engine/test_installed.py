"""What `make` does on a computer that has all that it needs."""

import subprocess
import sys
from pathlib import Path

from daskstack import engine


def test_what_is_there_is_neither_installed_again_nor_talked_about() -> None:
    made = [engine.PROJECT / ".venv/locks", Path(engine.engine() or ""), engine.standins(engine.engine()) / "complete"]
    before = [path.stat() if path.exists() else None for path in made]
    command = [sys.executable, "-m", "tools.install", "program", "machines", "test"]
    done = subprocess.run(command, cwd=engine.PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    # Another make may be at work beside this one.
    assert done.stderr in ("", "Another make is installing: waiting for it\n")
    after = [path.stat() if path.exists() else None for path in made]
    assert [each and (each.st_ino, each.st_mtime_ns) for each in after] == [
        each and (each.st_ino, each.st_mtime_ns) for each in before
    ]
