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
    own = hashlib.sha256(b"own").hexdigest()
    (tmp_path / "environment.lock").write_text(
        f"dask==1 --hash=sha256:{'0' * 64}\ndistributed==1 --hash=sha256:{'0' * 64}\n"
        f"own==1 --hash=sha256:{own}\n    # from environment.wheels/own-1-py3-none-any.whl\n"
    )
    (tmp_path / "environment.wheels").mkdir()
    (tmp_path / "environment.wheels/own-1-py3-none-any.whl").write_bytes(b"own")
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


def test_the_lock_is_relative_to_the_project_wherever_this_runs(
    lock: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent: list[Path] = []
    monkeypatch.setattr(send_environment, "PROJECT", lock.parent)
    monkeypatch.setattr(send_environment, "send", lambda folder, connection: sent.append(folder))
    variables = {"LOCK": lock.name, "PYTHON": "3.11", "SOURCE": "index", "JUPYTER": "", "CONNECTION": "{}"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    send_environment.main(undo=False)
    assert (sent[0] / "environment.lock").read_bytes() == lock.read_bytes()


@pytest.mark.parametrize("source", ["index", "wheelhouse"])
def test_wheels_that_no_index_has_are_sent_with_the_lock(lock: Path, source: str) -> None:
    kept = send_environment.collect(lock, "3.11", source)
    assert (kept / "wheels/own-1-py3-none-any.whl").read_bytes() == b"own"
