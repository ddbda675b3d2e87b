"""Jobs on stack dev: scripts that run next to the scheduler and go on without this computer."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from rehearsal.machines import Machine, until
from tests.checkout import Checkout

SUMS = """
import getpass, os, sys
import mine
from distributed import Client

if __name__ == "__main__":
    with Client() as client:
        print(getpass.getuser(), sum(client.gather(client.map(mine.square, range(10), pure=False))))
        print(open(f"{os.environ['DASKSTACK_DATA']}/of-a-job", "w").write("kept"))
    sys.exit(int(sys.argv[1]))
"""

# Each step writes its result to the shared directory, and is not repeated if the file is there.
STEPS = """
import os, pathlib, time
from distributed import Client

FOLDER = pathlib.Path(os.environ["DASKSTACK_DATA"], "steps")

def slow(number):
    time.sleep(1.5)
    return number ** 2

def step(client, number):
    file = FOLDER / str(number)
    if not file.exists():
        with (FOLDER / "begun").open("a") as begun:
            begun.write(f"{number}\\n")
        result = client.submit(slow, number, pure=False).result()
        (FOLDER / "new").write_text(str(result))
        (FOLDER / "new").rename(file)
    return int(file.read_text())

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    with Client() as client:
        print(sum(step(client, number) for number in range(6)))
"""


class Jobs:
    """The commands for jobs, in the checkout of stack dev."""

    def __init__(self, checkout: Checkout, folder: Path) -> None:
        self.checkout, self.folder = checkout, folder

    def command(self, *words: str) -> CompletedProcess[str]:
        command = [self.checkout.folder / ".venv/bin/daskstack", *words]
        return subprocess.run(command, cwd=self.folder, env=self.checkout.environ, capture_output=True, text=True)

    def start(self, script: str, *arguments: str) -> str:
        """The job's number."""
        done = self.command("run", "--detach", script, *arguments)
        assert done.returncode == 0, done.stderr
        return re.fullmatch(r"job (\d+) has started\n", done.stderr)[1]

    def status(self, number: str) -> str:
        return re.search(rf"^ *{number}  (\w+)", self.command("jobs").stdout, re.MULTILINE)[1]


@pytest.fixture
def jobs(checkout: Checkout, tmp_path: Path) -> Jobs:
    for name, text in {"sums.py": SUMS, "steps.py": STEPS}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "mine.py").write_text("def square(number): return number ** 2\n")
    (tmp_path / "waits.py").write_text("import time\nprint('waiting', flush=True)\ntime.sleep(600)\n")
    return Jobs(checkout, tmp_path)


def test_a_job_has_its_own_user_the_folders_modules_and_the_shared_directory(
    jobs: Jobs, machines: Mapping[str, Machine]
) -> None:
    done = jobs.command("run", "sums.py", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "dask-jobs 285\n4\n"
    assert machines["worker-1"].ssh("sudo cat /srv/daskdata/of-a-job; sudo rm /srv/daskdata/of-a-job").stdout == "kept"
    failed = jobs.command("run", "sums.py", "7")
    assert failed.returncode == 7
    assert failed.stderr.endswith("has failed\n")
    machines["worker-1"].ssh("sudo rm /srv/daskdata/of-a-job")


def test_a_job_goes_on_after_its_command_until_it_is_stopped(jobs: Jobs, machines: Mapping[str, Machine]) -> None:
    number = jobs.start("waits.py")
    assert jobs.status(number) == "running"
    log = subprocess.Popen(
        [jobs.checkout.folder / ".venv/bin/daskstack", "jobs", "logs", number],
        env=jobs.checkout.environ,
        cwd=jobs.folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert log.stdout.readline() == "waiting\n", "the output of a job that is still running"
    shown = machines["scheduler"].ssh(f"systemctl show dask-job@{number} -p User -p NoNewPrivileges").stdout.split()
    assert set(shown) == {"User=dask-jobs", "NoNewPrivileges=yes"}
    for file in ("job.json", "output", "code/waits.py"):
        refused = machines["scheduler"].ssh(f"sudo -u dask cat /var/lib/daskstack/jobs/{number}/{file}", check=False)
        assert refused.returncode != 0, "tasks cannot read a job's files"
    assert jobs.command("jobs", "stop", number).returncode == 0
    assert log.wait(60) == 143
    log.stdout.close()
    assert jobs.status(number) == "stopped"
    assert jobs.command("jobs", "wait", number).returncode == 143


def test_a_job_survives_restarts_of_the_scheduler_and_repeats_no_finished_step(
    jobs: Jobs, machines: Mapping[str, Machine]
) -> None:
    scheduler, kills = machines["scheduler"], 3
    number = jobs.start("steps.py")
    begun = "sudo cat /srv/daskdata/steps/begun || true"
    for _ in range(kills):
        before = scheduler.ssh(begun).stdout
        until(lambda before=before: scheduler.ssh(begun).stdout != before, 120)
        scheduler.ssh("sudo systemctl kill --signal=KILL dask-scheduler")
    done = jobs.command("jobs", "logs", number)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "55"
    steps = scheduler.ssh(f"{begun}; sudo rm -r /srv/daskdata/steps").stdout.split()
    assert sorted(set(steps)) == list("012345")
    assert len(steps) <= 6 + kills, "at most one step was repeated for each restart"


def test_wrong_commands_say_what_is_wrong(jobs: Jobs) -> None:
    for words, text in {
        ("run", "none.py"): "error: none.py is not a Python script on this computer\n",
        ("jobs", "logs", "4711"): "there is no job 4711\n",
        ("jobs", "stop", "4711"): "there is no job 4711\n",
    }.items():
        done = jobs.command(*words)
        assert done.returncode == 1
        assert text in done.stderr
