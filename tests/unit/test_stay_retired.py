"""A retired worker stays stopped until the step `members` lists it again."""

import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "on_the_cluster" / "stay_retired.py"


class Machine:
    """A machine whose worker is about to start, and a stand-in for SSH to the authority."""

    def __init__(self, folder: Path) -> None:
        self.home, self.list, self.log = folder / "home", folder / "members", folder / "log"
        self.mark = self.home / "retired-worker-1-1"
        self.home.mkdir()
        ssh = folder / "ssh"
        ssh.write_text(f'#!/bin/sh\necho "$1" >>{self.log}\nshift\nexec "$@"\n')
        ssh.chmod(0o755)
        fast = f"import runpy; module = runpy.run_path('{PROGRAM}'); main = module['main']; "
        fast += "main.__globals__['INTERVAL'] = 0.1; import sys; main(*sys.argv[1:])"
        self.command = [sys.executable, "-c", fast, "worker-1-1", str(self.list), str(ssh), "10.0.0.1"]
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        self.started.append(subprocess.Popen(self.command, env={"HOME": str(self.home), "PATH": "/usr/bin:/bin"}))
        return self.started[-1]

    def asked(self, times: int) -> None:
        """Waits until the authority has been asked so often."""
        deadline = time.monotonic() + 60
        while not self.log.exists() or len(self.log.read_text().splitlines()) < times:
            assert time.monotonic() < deadline, f"the authority was not asked {times} times within 60 s"
            time.sleep(0.01)


@pytest.fixture
def machine(tmp_path: Path) -> Generator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    for process in machine.started:
        process.kill()
        process.wait()


def test_a_worker_that_was_not_retired_starts_without_asking(machine: Machine) -> None:
    machine.mark.mkdir()  # a task made it
    assert machine.start().wait(60) == 0
    assert not machine.log.exists()


def test_a_retired_worker_starts_once_it_is_listed_again(machine: Machine) -> None:
    machine.mark.touch()
    process = machine.start()
    machine.asked(2)  # there is no list
    machine.list.write_text("worker-1-10\nworker-1x1\n")
    machine.asked(len(machine.log.read_text().splitlines()) + 3)
    assert process.poll() is None and machine.mark.exists()
    machine.list.write_text("worker-1-10\nworker-1-1\n")
    assert process.wait(60) == 0
    assert not machine.mark.exists()
    assert set(machine.log.read_text().splitlines()) == {"10.0.0.1"}
    assert machine.start().wait(60) == 0, "the next start asks nobody"
