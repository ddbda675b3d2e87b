"""A retired worker stays stopped until it is listed again."""

import json
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
        self.elastic = folder / "elastic.json"
        self.mark = self.home / "retired-worker-1-1"
        self.home.mkdir()
        ssh = folder / "ssh"
        ssh.write_text(f'#!/bin/sh\necho "$1" >>{self.log}\nshift\nexec sh -c "$@"\n')
        ssh.chmod(0o755)
        fast = f"import runpy; module = runpy.run_path('{PROGRAM}'); main = module['main']; "
        fast += "main.__globals__.update(INTERVAL=0.1, PAUSE=0.1, ROUNDS=3); import sys; main(*sys.argv[1:])"
        self.command = [sys.executable, "-c", fast, "worker-1-1", str(self.list)]
        self.ssh = [str(ssh), "10.0.0.1"]
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, elastic: Path | str = "") -> subprocess.Popen[bytes]:
        command = [*self.command, str(elastic), *self.ssh]
        self.started.append(subprocess.Popen(command, env={"HOME": str(self.home), "PATH": "/usr/bin:/bin"}))
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


def test_a_worker_of_an_elastic_cluster_starts_once_the_cluster_and_the_stack_list_it(machine: Machine) -> None:
    process = machine.start(machine.elastic)
    machine.asked(2)
    assert machine.mark.exists(), "steps would wait for this worker"
    machine.elastic.write_text(json.dumps({"workers": ["worker-1-1"]}, indent=0))
    machine.asked(len(machine.log.read_text().splitlines()) + 2)
    machine.list.write_text("worker-1-1\n")
    machine.elastic.write_text(json.dumps({"workers": ["worker-1-10", "worker-11-1"]}, indent=0))
    machine.asked(len(machine.log.read_text().splitlines()) + 2)
    assert process.poll() is None
    machine.elastic.write_text(json.dumps({"workers": ["worker-1-1", "worker-1-2"]}, indent=0))
    assert process.wait(60) == 0
    assert not machine.mark.exists()


def test_an_unreachable_scheduler_keeps_a_worker_of_an_elastic_cluster_stopped(machine: Machine) -> None:
    for file in (machine.list, machine.elastic):
        file.write_text('"worker-1-1"\nworker-1-1\n')
    reaches, machine.ssh = machine.ssh, ["false"]
    process = machine.start(machine.elastic)
    time.sleep(1)
    assert process.poll() is None
    machine.mark.unlink()
    machine.mark.mkdir()  # a task made it
    machine.ssh = reaches
    assert machine.start(machine.elastic).wait(60) == 0
