"""Keys on disk are there only as long as somebody needs them, where nobody else can reach them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daskstack import engine, kubectl, private_folder, ssh

CONNECTION = {"host": "192.0.2.1", "user": "admin", "host_key": "ssh-ed25519 AAAA", "private_key": "a key"}
HOLD = (
    "import time; from daskstack import private_folder\n"
    "with private_folder.folder() as f: print(f, flush=True); time.sleep(600)"
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where folders with keys are, during a test."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return private_folder.place()


@contextmanager
def holder() -> Iterator[tuple[subprocess.Popen, Path]]:
    """Another process with a folder for keys."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], cwd=engine.PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "fe80::1%h\n    ProxyCommand id >&2"},
        {"host": "fe80::1%h$(id>&2)"},
        {"host": 'a" -oProxyCommand="id'},
        {"host": "-oProxyCommand=id"},
        {"user": "admin\nProxyCommand id"},
        {"user": 'admin" x'},
        {"user": "admin\\"},
        {"host_key": "ssh-ed25519 AAAA\n* ssh-ed25519 BBBB"},
    ],
)
def test_parts_of_a_connection_cannot_become_options_or_commands(wrong: dict[str, str]) -> None:
    for connection in (CONNECTION | wrong, CONNECTION | {"proxy": CONNECTION | wrong}):
        with pytest.raises(ValueError, match=f"the connection's {next(iter(wrong))} is "), ssh.command(connection):
            pass


def test_ssh_gets_an_address_with_an_interface_unchanged() -> None:
    with ssh.command(CONNECTION | {"host": "fe80::1%eth0"}) as command:
        [*command, machine] = command
        said = subprocess.run([*command, "-G", machine], capture_output=True, text=True, check=True).stdout
    assert "\nhostname fe80::1%eth0\n" in said


@pytest.mark.parametrize("user", [r"CORP\jane doe", "jane@corp.example", "CORP+jane", "Jane.Doe", "4711"])
def test_ssh_gets_a_user_of_a_directory_unchanged(user: str) -> None:
    with ssh.command(CONNECTION | {"user": user}) as command:
        [*command, machine] = command
        said = subprocess.run([*command, "-G", machine], capture_output=True, text=True, check=True).stdout
    assert f"\nuser {user}\n" in f"\n{said}"


def test_a_key_is_readable_only_by_its_user_and_deleted_after_use(place: Path) -> None:
    with ssh.command(CONNECTION):
        [key] = place.glob("*/*.key")
        for path in (key, key.parent, place):
            assert path.stat().st_mode & 0o077 == 0
    assert list(place.iterdir()) == []


def test_a_kubeconfig_is_readable_only_by_its_user_and_deleted_after_use(place: Path) -> None:
    with kubectl.kubectl({"kubeconfig": "a:\n  kubeconfig\n"}) as command:
        file = Path(command[command.index("--kubeconfig") + 1])
        assert file.read_text() == "a:\n  kubeconfig\n"
        assert file.is_relative_to(place)
        assert file.stat().st_mode & 0o077 == 0
    assert list(place.iterdir()) == []


def test_keys_of_killed_processes_are_removed_and_those_of_running_ones_kept() -> None:
    with holder() as (_, used), holder() as (process, left):
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert left.is_dir()
        with ssh.command(CONNECTION):
            assert not left.exists()
            assert used.is_dir()


@pytest.mark.parametrize(
    "name", ["daskstack-ssh-x", "daskstack-ssh--1", f"daskstack-ssh-{10**20 - 1}-a", "keys-", "keys-x"]
)
def test_foreign_folders_do_not_stop_a_command(
    place: Path, name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path_factory.mktemp("tmp")
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    for folder in (shared, place):
        folder.joinpath(name).mkdir()
    with ssh.command(CONNECTION) as command:
        assert Path(command[2]).is_file()
    assert shared.joinpath(name).is_dir()


def test_targets_of_links_are_not_touched(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    theirs = tmp_path_factory.mktemp("theirs")
    theirs.joinpath("lock").touch()
    theirs.joinpath("precious").touch()
    place.joinpath("keys-link").symlink_to(theirs)
    left = place / "keys-left"
    left.mkdir()
    left.joinpath("lock").touch()
    left.joinpath("link").symlink_to(theirs)
    with ssh.command(CONNECTION):
        assert not left.exists()
    assert theirs.joinpath("precious").exists()


@pytest.mark.parametrize("fault", ["mode", "link", "owner"])
def test_keys_are_not_stored_in_a_runtime_folder_that_others_can_open(
    fault: str, place: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path_factory.mktemp("runtime")
    runtime.chmod(0o755 if fault == "mode" else 0o700)
    given = runtime
    if fault == "link":
        given = runtime.parent / f"{runtime.name}-link"
        given.symlink_to(runtime)
    elif fault == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(engine.EngineError, match="belongs to you"):
            private_folder.place({"XDG_RUNTIME_DIR": str(given), "XDG_CACHE_HOME": str(place.parent.parent)})
        return
    assert private_folder.place({"XDG_RUNTIME_DIR": str(given), "XDG_CACHE_HOME": str(place.parent.parent)}) == place


def test_a_private_runtime_folder_keeps_keys_off_the_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    runtime = tmp_path_factory.mktemp("runtime")
    runtime.chmod(0o700)
    found = private_folder.place({"XDG_RUNTIME_DIR": str(runtime)})
    assert found == runtime / "daskstack"
    assert found.stat().st_mode & 0o777 == 0o700


def test_only_a_lost_connection_is_worth_another_attempt() -> None:
    assert ssh.lost(255, "kex_exchange_identification: Connection closed by remote host")
    assert ssh.lost(255)
    assert not ssh.lost(1)
    for refusal in (
        "admin@h: Permission denied (publickey).",
        "Host key verification failed.",
        "Too many authentication failures",
    ):
        assert not ssh.lost(255, refusal)
