"""Jobs on stack dev: scripts that run next to the scheduler and go on without this computer."""

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from rehearsal.machines import Machine, until
from tests import access
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


@dataclass
class Jobs:
    """The commands for jobs, in the checkout of stack dev."""

    checkout: Checkout
    folder: Path
    stack: str = "dev"

    def command(self, *words: str) -> CompletedProcess[str]:
        command = [self.checkout.folder / ".venv/bin/daskstack", *words]
        environ = self.checkout.environ | {"STACK": self.stack}
        return subprocess.run(command, cwd=self.folder, env=environ, capture_output=True, text=True)

    def start(self, *words: str) -> str:
        """The job's number."""
        done = self.command("run", "--detach", *words)
        assert done.returncode == 0, done.stderr
        return re.fullmatch(r"job (\d+) (has started|starts at .*)\n", done.stderr)[1]

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


def test_a_person_manages_their_own_jobs_until_access_is_revoked(
    jobs: Jobs, checkout: Checkout, machines: Mapping[str, Machine], tmp_path: Path
) -> None:
    alice, bob = (replace(jobs, stack=str(file)) for file in access.give(checkout, tmp_path, "alice", "bob"))
    try:
        done = alice.command("run", "sums.py", "0")
        assert (done.returncode, done.stdout) == (0, "dask-jobs 285\n4\n"), done.stderr
        number = alice.start("waits.py")
        for words in (("jobs", "logs", number), ("jobs", "stop", number)):
            refused = bob.command(*words)
            assert refused.returncode == 1
            assert f"job {number} is not yours" in refused.stderr
        assert bob.status(number) == jobs.status(number) == "running"
        [listed] = [each for each in json.loads(bob.command("jobs", "--json").stdout) if each["number"] == int(number)]
        assert (listed["person"], listed["words"]) == ("alice", ["waits.py"])
        until(lambda: re.search(rf"^job {number} +connections: [1-9]", jobs.command("status").stdout, re.MULTILINE))
        his = bob.start("waits.py")
        connect = "import socket as s; s.socket(s.AF_UNIX, s.SOCK_SEQPACKET).connect('/run/dask-jobs.sock')"
        task = machines["scheduler"].ssh(f'sudo -u dask python3 -c "{connect}"', check=False)
        assert "PermissionError" in task.stderr, "tasks manage no jobs"

        access.command(checkout, "revoke", "alice")
        assert jobs.status(number) == "stopped"
        assert bob.status(his) == "running"
        assert "Permission denied" in alice.command("run", "sums.py", "0").stderr
        assert bob.command("jobs", "stop", his).returncode == 0
    finally:
        for person in ("alice", "bob"):
            access.command(checkout, "revoke", person)
        machines["worker-1"].ssh("sudo rm -f /srv/daskdata/of-a-job")


def test_a_job_that_waits_for_its_time_is_listed_and_keeps_the_report_of_its_last_run(
    jobs: Jobs, machines: Mapping[str, Machine]
) -> None:
    number = jobs.start("--every", "1d", "--report", "sums.py", "0")
    later = jobs.start("--at", "2099-01-01 03:00", "waits.py")
    scheduler = machines["scheduler"]
    output = f"sudo cat /var/lib/daskstack/jobs/{number}/output"
    until(lambda: "the next one is due at" in scheduler.ssh(output).stdout, 120)
    ended = f"the report is daskdata://reports/job-{number}.html\nthe run has ended with status 0;"
    assert ended in scheduler.ssh(output).stdout
    page = scheduler.ssh(f"sudo cat /srv/daskdata/reports/job-{number}.html; sudo rm -r /srv/daskdata/reports").stdout
    assert "<title>Dask Performance Report</title>" in page
    listed = jobs.command("jobs").stdout
    assert re.search(rf"^ *{number}  running .* sums\.py 0 \(next run: 20..-..-.. ..:..\)$", listed, re.MULTILINE)
    assert re.search(rf"^ *{later}  running .* waits\.py \(next run: 2099-01-01 03:00\)$", listed, re.MULTILINE)
    busy = "sudo python3 -I /opt/daskstack/jobs/jobs.py busy"
    assert not {number, later} & set(scheduler.ssh(busy).stdout.split()), (
        "they do not keep `up` from replacing packages"
    )
    running = jobs.start("waits.py")
    assert running in scheduler.ssh(busy).stdout.split()
    for each in (number, later, running):
        assert jobs.command("jobs", "stop", each).returncode == 0
        assert jobs.status(each) == "stopped"
    machines["worker-1"].ssh("sudo rm /srv/daskdata/of-a-job")


def test_wrong_commands_say_what_is_wrong(jobs: Jobs) -> None:
    for words, text in {
        ("run", "--at", "2020-01-01", "sums.py"): "error: 2020-01-01 00:00 has passed; write a later time\n",
        ("run", "--at", "noon", "sums.py"): "noon is not a time; write e.g. 03:00 or '2027-01-31 03:00'\n",
        (
            "run",
            "--every",
            "day",
            "sums.py",
        ): "day is not a period; write minutes, hours or days, e.g. 30m, 12h or 7d\n",
        ("run", "none.py"): "error: none.py is not a Python script on this computer\n",
        ("jobs", "logs", "4711"): "there is no job 4711\n",
        ("jobs", "stop", "4711"): "there is no job 4711\n",
    }.items():
        done = jobs.command(*words)
        assert done.returncode in (1, 2)
        assert text in done.stderr
