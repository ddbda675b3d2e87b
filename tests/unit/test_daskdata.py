"""`daskdata://` on the cluster, and what needs no cluster of the commands for files. test_stack.py tests both ends."""

import gc
import os
import pickle
import shutil
import sys
import threading
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import _registry, known_implementations

from daskstack import engine, sftp, shared_directory
from daskstack.shared_directory import DataError, inside
from rehearsal.machines import until
from tests.client_outputs import CONNECTION, kubernetes_client, machines_client


def test_on_the_cluster_a_url_is_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASKSTACK_DATA", str(tmp_path))
    with fsspec.open("daskdata://text", "w", stack="ignored here") as file:
        file.write("hello")
    assert (tmp_path / "text").read_text() == "hello"


def test_a_pickled_file_system_needs_nothing_but_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASKSTACK_DATA", str(tmp_path))
    pickled = pickle.dumps(fsspec.filesystem("daskdata"))
    assert b"daskstack" not in pickled and b"daskdata" not in pickled.replace(str(tmp_path).encode(), b"")
    (tmp_path / "text").write_text("hello")
    assert pickle.loads(pickled).cat("text") == b"hello"


def test_a_url_without_a_stack_fails_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASKSTACK_DATA", raising=False)
    monkeypatch.setattr(shared_directory, "stack_in_use", None)
    with pytest.raises(DataError, match="connect first"):
        fsspec.open("daskdata://text").open()


def test_a_url_means_the_stack_of_the_last_connection_or_the_named_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def host(stack: str) -> None:
        asked.append(stack)
        raise DataError("asked")

    monkeypatch.setattr(shared_directory, "host", host)
    monkeypatch.setattr(shared_directory, "stack_in_use", "last")
    for options in ({}, {"stack": "named"}):
        with pytest.raises(DataError, match="asked"):
            fsspec.filesystem("daskdata", **options)
    assert asked == ["last", "named"]


def test_a_missing_package_fails_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASKSTACK_DATA", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "paramiko"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "daskstack.sftp")
    monkeypatch.delattr("daskstack.sftp")
    monkeypatch.setitem(sys.modules, "paramiko", None)
    with pytest.raises(ModuleNotFoundError, match="`pip install paramiko`"):
        fsspec.filesystem("daskdata")


def test_connect_makes_the_url_known_without_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(known_implementations, "daskdata")
    monkeypatch.delitem(_registry, "daskdata", raising=False)
    monkeypatch.setattr(shared_directory, "stack_in_use", None)
    with pytest.raises(ValueError, match="Protocol not known"):
        fsspec.get_filesystem_class("daskdata")
    shared_directory.use("dev")
    assert fsspec.get_filesystem_class("daskdata").protocol == "daskdata"


def test_a_machine_that_cannot_be_reached_fails_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = {**CONNECTION, "host": "127.0.0.1", "port": 1}
    outputs = {"client": machines_client(head="head"), "admin": {"machines": {"head": machine}}, "data": "/srv/data"}
    monkeypatch.setattr(engine, "cluster", lambda stack: outputs)
    with pytest.raises(DataError, match=r"no SFTP connection to 127.0.0.1: .*refused"):
        sftp.files("dev")


@pytest.mark.parametrize(
    ("path", "full"),
    [
        ("", "/srv/data/"),
        (".", "/srv/data"),
        ("a/b", "/srv/data/a/b"),
        ("a/b/", "/srv/data/a/b/"),
        ("daskdata://a/b", "/srv/data/a/b"),
        ("/srv/data/a", "/srv/data/a"),
    ],
)
def test_commands_accept_a_url_a_full_path_and_a_path_in_the_directory(path: str, full: str) -> None:
    assert inside("/srv/data", path) == full


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "/srv/database"])
def test_commands_stay_in_the_shared_directory(path: str) -> None:
    with pytest.raises(DataError, match="outside of the shared directory"):
        inside("/srv/data", path)


def test_a_stack_without_a_shared_directory_is_rejected_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "cluster", lambda stack: {"client": kubernetes_client()})
    with pytest.raises(DataError, match=r"gke has no shared directory: write data\.size"):
        shared_directory.ls("gke", "")


def test_missing_files_and_programs_are_reported_before_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"this computer has no .*/missing"):
        shared_directory.put("dev", [str(tmp_path / "missing")], "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="install it"):
        shared_directory.mount("dev", str(tmp_path / "folder"))


def test_the_configuration_of_ssh_has_each_machine_and_its_keys_are_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    gate = {**CONNECTION, "private_key": "the gate's key"}
    machines = {"head": {**CONNECTION, "private_key": "a key", "proxy": gate}, "worker-1": CONNECTION}
    outputs = {"client": machines_client(), "admin": {"machines": machines}}
    monkeypatch.setattr(engine, "cluster", lambda stack: outputs)
    for _ in range(2):
        text = shared_directory.ssh_config("dev")
    assert [line for line in text.splitlines() if line.startswith("Host ")] == [
        "Host dev-head-bastion", "Host dev-head", "Host dev-worker-1",
    ]  # fmt: skip
    assert "key" not in {line.strip() for line in text.splitlines()}
    folder = shared_directory.config_folder("dev")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {key.stat().st_mode & 0o777 for key in folder.glob("*.key")} == {0o600}
    assert len(list(folder.glob("*.key"))) == 2


def test_files_that_nobody_closed_do_not_block_the_requests_of_other_threads(tmp_path: Path) -> None:
    """The garbage collector closes them, at any moment and in any thread: here it runs all the time."""
    server = shutil.which("sftp-server", path="/usr/lib/openssh:/usr/libexec/openssh:/usr/lib/ssh")
    assert server
    (tmp_path / "read").write_bytes(content := os.urandom(400_000))
    files = sftp.Sftp(shared_directory.Host("here", str(tmp_path), [], [server], None, [], []))

    right = []

    def work(thread: int) -> None:
        for number in range(40):
            for mode, path in (("rb", "read"), ("wb", f"{thread}-{number}")):
                forgotten = files.open(f"{tmp_path}/{path}", mode)
                forgotten.cycle = forgotten
                if mode == "wb":
                    forgotten.write(b"all")
            right.append(files.cat_file(f"{tmp_path}/read") == content)
        files.get_file(f"{tmp_path}/read", f"{tmp_path}/copy-{thread}")

    threads = [threading.Thread(target=work, args=[number], daemon=True) for number in range(4)]
    former = gc.get_threshold()
    gc.set_threshold(5)
    try:
        for thread in threads:
            thread.start()
        until(lambda: not any(thread.is_alive() for thread in threads), 60)
    finally:
        gc.set_threshold(*former)
    assert right == 160 * [True]
    gc.collect()
    files.cat_file(f"{tmp_path}/read")
    assert {path.read_bytes() for path in tmp_path.glob("?-*")} == {b"all"}
    assert {path.read_bytes() for path in tmp_path.glob("copy-*")} == {content}
    files.process.kill()
