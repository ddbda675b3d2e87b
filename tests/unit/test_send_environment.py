"""What is kept of lock, uv and wheels on the user's computer."""

import hashlib
from pathlib import Path

import pytest

from on_this_computer import send_environment

UV = "uv-1-py3-none-any.whl"


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock, with a cache of its own that is filled from a folder in place of an index."""
    pinned = tmp_path / "uv.txt"
    pinned.write_text(f"uv==1 \\\n    --hash=sha256:{hashlib.sha256(b'honest').hexdigest()}\n")
    monkeypatch.setattr(send_environment, "UV", pinned)
    monkeypatch.setattr(send_environment, "cache_folder", lambda: tmp_path / "cache")

    def download(what: list[str], python: str, folder: Path) -> None:
        (folder / UV).write_bytes(b"honest")

    monkeypatch.setattr(send_environment, "download", download)
    (tmp_path / "environment.lock").write_text("dask==1\n")
    return tmp_path / "environment.lock"


@pytest.mark.parametrize("name", [UV, "environment.lock"])
def test_modified_files_in_the_cache_are_replaced(lock: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    kept = send_environment.collect(lock, "3.11", "index")
    honest = (kept / name).read_bytes()
    flipped = bytes([honest[0] ^ 1]) + honest[1:]
    (kept / name).write_bytes(flipped)
    assert (send_environment.collect(lock, "3.11", "index") / name).read_bytes() == honest
    said = capsys.readouterr().err
    assert str(kept / name) in said and "again" in said


def test_unmodified_files_are_downloaded_only_once(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = send_environment.collect(lock, "3.11", "index")
    monkeypatch.setattr(send_environment, "download", lambda *_: pytest.fail("it was downloaded again"))
    assert send_environment.collect(lock, "3.11", "index") == kept
