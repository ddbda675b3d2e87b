"""Keys on disk are there only as long as somebody needs them."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from daskstack import ssh

CONNECTION = {"host": "192.0.2.1", "user": "admin", "host_key": "ssh-ed25519 AAAA", "private_key": "a key"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_key_is_for_its_user_alone_and_gone_afterwards(folder: Path) -> None:
    with ssh.command(CONNECTION):
        [key] = folder.glob("*/*.key")
        assert key.stat().st_mode & 0o077 == 0
        assert key.parent.stat().st_mode & 0o077 == 0
    assert list(folder.iterdir()) == []


def test_the_key_of_a_killed_process_is_removed_by_the_next_and_a_living_ones_stays(folder: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, used = folder / f"{ssh.PREFIX}{ended.pid}-x", folder / f"{ssh.PREFIX}{os.getpid()}-x"
    left.mkdir()
    used.mkdir()
    with ssh.command(CONNECTION):
        assert not left.exists()
        assert used.exists()
