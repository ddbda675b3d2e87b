"""What is said of a machine in Google Cloud that does not get ready."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daskstack.engine import PROJECT
from on_this_computer import wait_for_boot


def wait(port: int, tunnel: str = "") -> str:
    told = {
        "NAME": "worker-1",
        "CONNECTION": json.dumps({"host": "127.0.0.1", "port": port, "user": "admin", "private_key": "none"}),
        "WAIT": "1",
        "CONSOLE": "gcloud compute instances get-serial-port-output dask-vms-worker-1",
        "HOST_KEYS": "gcloud compute instances get-guest-attributes dask-vms-worker-1 --query-path=hostkeys/",
        "TUNNEL": tunnel,
    }
    command = [sys.executable, "-m", "on_this_computer.wait_for_boot"]
    done = subprocess.run(command, cwd=PROJECT, env=os.environ | told, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    return done.stderr


@pytest.fixture
def closed() -> Iterator[int]:
    """A port that nothing listens on, and that nothing else can take."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_a_timeout_shows_the_last_observation_and_the_command_for_the_console(closed: int) -> None:
    said = wait(closed)
    assert "error: worker-1 was not ready within 1 s" in said
    assert "gcloud compute instances get-serial-port-output dask-vms-worker-1" in said


def test_a_required_tunnel_is_reported(closed: int) -> None:
    assert "keep it open: gcloud compute start-iap-tunnel" in wait(closed, "gcloud compute start-iap-tunnel x 22")


OURS, OTHER = (f"ssh-ed25519 {letter * 68}" for letter in "AB")


@pytest.mark.parametrize("shown", [OURS, OTHER])
def test_up_fails_if_googles_api_does_not_know_the_machines_host_key(
    shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = tmp_path / "answer"
    answer.write_text(json.dumps([{"namespace": "hostkeys", "key": "ssh-ed25519", "value": OURS.split()[1]}]))
    monkeypatch.setenv("NAME", "worker-1")
    monkeypatch.setenv("HOST_KEYS", f"sh -c 'cat {answer}'")
    if shown == OURS:
        wait_for_boot.compare(shown, first=True)
    else:
        with pytest.raises(SystemExit, match=r"worker-1 showed the host key SHA256:.*another machine or program"):
            wait_for_boot.compare(shown, first=True)


@pytest.mark.parametrize("name", [path.stem for path in (PROJECT / "on_this_computer").glob("*.py")])
def test_programs_that_run_for_each_machine_do_not_import_pulumi(name: str) -> None:
    program = f"import sys, on_this_computer.{name}; sys.exit('pulumi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=PROJECT).returncode == 0


def test_the_host_key_of_a_bastion_that_still_boots_is_read_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def scan(address: str, port: str, bastion: Any) -> tuple[str, str]:
        asked.append(f"{address} through {bastion['host_key'] if bastion else 'nothing'}")
        return (OURS, "") if bastion else (OTHER, "") if len(asked) > 1 else ("", "no answer")

    monkeypatch.setattr(wait_for_boot, "scan", scan)
    bastion = {"host": "198.18.0.1", "port": 22, "user": "admin"}
    machine: Any = {"host": "10.9.0.3", "port": 22, "user": "admin", "proxy": bastion}
    assert wait_for_boot.shown(machine) == ("", "no answer")
    assert wait_for_boot.shown(machine) == (OURS, "")
    assert asked == ["198.18.0.1 through nothing"] * 2 + [f"10.9.0.3 through {OTHER}"]
