"""A full disk on a machine ends every wait; tests/engine/test_stalls.py tests other stalls."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from on_this_computer import send_environment
from rehearsal.machines import Machine


@pytest.fixture(scope="module")
def machine(boot: Callable[..., list[Machine]]) -> Machine:
    return boot("stalls")[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """uv, and a lock with one package that does not exist."""
    folder = tmp_path / send_environment.FOLDER
    folder.mkdir()
    shutil.copy(next(send_environment.collect(Path("environment.lock"), "3.11", "wheelhouse").glob("uv-*.whl")), folder)
    (folder / "environment.lock").write_text(f"nowhere==1 --hash=sha256:{'0' * 64}\n")
    return folder


def send(folder: Path, machine: Machine) -> None:
    connection = {"host": machine.address, "user": "admin", "host_key": machine.host_key}
    send_environment.send(folder, connection | {"private_key": machine.key.read_text()})


def test_a_full_disk_stops_the_transfer_is_named_and_leaves_no_files(
    machine: Machine, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    machine.run("mount -t tmpfs -o size=4m none /opt")
    try:
        with pytest.raises(SystemExit, match=f"wheels to /opt/daskstack on {machine.address} failed"):
            send(folder, machine)
        assert "No space left on device" in capfd.readouterr().err
        assert machine.run("ls -A /opt").stdout == ""
    finally:
        machine.run("umount /opt")
