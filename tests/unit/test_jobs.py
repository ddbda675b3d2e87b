"""The program that starts jobs on the scheduler's machine, without systemd."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import daskstack.jobs
from daskstack import status_and_logs
from daskstack.engine import PROJECT
from daskstack.jobs import Plan
from daskstack.status_and_logs import RemoteError
from on_the_cluster import jobs, run_job
from rehearsal.machines import until
from tests.client_outputs import CONNECTION

Start = Callable[..., int]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What the program asked of systemd. Its machine is running, not stopping."""
    words: list[str] = []

    def systemctl(*said: str, check: bool = True) -> SimpleNamespace:
        words.append(" ".join(said))
        return SimpleNamespace(stdout="running\n")

    monkeypatch.setattr(jobs, "JOBS", tmp_path)
    monkeypatch.setattr(jobs, "systemctl", systemctl)
    monkeypatch.setattr("shutil.chown", lambda *_: None)
    return words


@pytest.fixture
def start(asked: list[str], capsys: pytest.CaptureFixture[str]) -> Start:
    def started(*words: str, person: str = "", at: float | None = None) -> int:
        with io.BytesIO() as buffer:
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr(words[0], "print('begun')")
                archive.writestr("package/module.py", "")
            plan = json.dumps(asdict(Plan(words, at)))
            jobs.start(person, io.BytesIO(plan.encode() + b"\n" + buffer.getvalue()))
        return int(capsys.readouterr().out)

    return started


def test_a_job_has_its_files_and_a_unit_that_starts_at_boot(start: Start, asked: list[str], tmp_path: Path) -> None:
    assert [start("train.py", "--fast"), start("train.py")] == [1, 2]
    assert asked[:2] == ["--quiet enable dask-job@1.service", "start --no-block dask-job@1.service"]
    assert (tmp_path / "1/code/package/module.py").exists()
    assert (tmp_path / "1").stat().st_mode & 0o777 == 0o711
    for secret in ("job.json", "output", "code/train.py"):
        assert (tmp_path / "1" / secret).stat().st_mode & 0o077 == 0
    [first, _] = [jobs.record(number) for number in jobs.numbers()]
    assert daskstack.jobs.Job(**first).words == ["train.py", "--fast"]
    assert (first["status"], first["ended"], first["code"]) == ("running", None, None)


@pytest.mark.parametrize(
    ("exited", "status", "code"),
    [("0", "succeeded", 0), ("7", "failed", 7), ("KILL", "failed", 1), (None, "failed", 1)],
)
def test_a_unit_that_ends_records_the_result_and_starts_no_more(
    start: Start, asked: list[str], monkeypatch: pytest.MonkeyPatch, exited: str | None, status: str, code: int
) -> None:
    start("train.py")
    if exited is not None:
        monkeypatch.setenv("EXIT_STATUS", exited)
    jobs.ended(1)
    job = jobs.record(1)
    assert (job["status"], job["code"]) == (status, code)
    assert job["ended"] >= job["started"]
    assert asked[-1] == "--quiet disable dask-job@1.service"


def test_a_stopped_job_is_not_a_failed_one(start: Start, asked: list[str]) -> None:
    start("train.py")
    jobs.stop(1)
    assert "stop dask-job@1.service" in asked
    assert jobs.record(1)["status"] == "stopped"


def test_a_shutdown_does_not_end_a_job(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    start("train.py")
    monkeypatch.setattr(jobs, "systemctl", lambda *_, check: SimpleNamespace(stdout="stopping\n"))
    jobs.ended(1)
    assert jobs.record(1)["status"] == "running"


def test_only_the_oldest_jobs_that_have_ended_are_deleted(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "KEPT", 2)
    for number in range(1, 5):
        start("train.py")
        if number != 1:
            jobs.ended(number)
    assert start("train.py") == 5
    assert jobs.numbers() == [1, 3, 4, 5], "job 1 is still running"


@pytest.mark.parametrize("number", ["0", "../1", "x", "2"])
def test_an_unknown_job_is_named(start: Start, number: str) -> None:
    start("train.py")
    with pytest.raises(SystemExit, match=f"there is no job {number}"):
        jobs.answer("", ["stop", number], None)


@pytest.mark.parametrize("words", [[], ["id"], ["start", "1"], ["ended", "1"], ["output"], ["revoked", "alice"]])
def test_a_login_for_tunnels_makes_no_other_requests(start: Start, words: list[str]) -> None:
    start("train.py")
    with pytest.raises(SystemExit, match="only daskstack uses this login"):
        jobs.answer("", words, None)


@pytest.mark.parametrize("wanted", ["output", "stop"])
def test_a_job_obeys_the_person_who_started_it_and_the_owner(
    start: Start, capsys: pytest.CaptureFixture[str], wanted: str
) -> None:
    number = start("train.py", person="alice")
    jobs.answer("bob", ["list"], None)
    assert [job["person"] for job in json.loads(capsys.readouterr().out)] == ["alice"]
    with pytest.raises(SystemExit, match=f"job {number} is not yours"):
        jobs.answer("bob", [wanted, str(number)], None)
    assert jobs.record(number)["ended"] is None
    for person in ("alice", ""):
        number = start("train.py", person="alice")
        jobs.answer(person, ["stop", str(number)], None)
        assert jobs.record(number)["status"] == "stopped"


def test_the_jobs_of_a_person_without_access_are_stopped(start: Start) -> None:
    people = ["alice", "bob", "alice", ""]
    numbers = [start("train.py", person=person) for person in people]
    jobs.main("revoked", "alice")
    stopped = [jobs.record(number)["status"] == "stopped" for number in numbers]
    assert stopped == [person == "alice" for person in people]


def test_a_job_that_only_waits_for_its_time_does_not_use_packages(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = {1: "sleep 60", 2: "sleep 60 & wait", 3: "sleep 60"}
    with contextlib.ExitStack() as stack:
        pids = {}
        for number, program in programs.items():
            assert start("train.py", at=None if number == 3 else 1.0) == number
            shell = subprocess.Popen(["bash", "-c", f"{program}; true" if number == 2 else f"exec {program}"])
            stack.callback(shell.wait)
            stack.callback(shell.kill)
            pids[jobs.unit(number)] = shell.pid
        until(lambda: psutil.Process(pids[jobs.unit(2)]).children())
        stack.callback(psutil.Process(pids[jobs.unit(2)]).children()[0].kill)
        monkeypatch.setattr(jobs, "systemctl", lambda *words: SimpleNamespace(stdout=f"{pids[words[-1]]}\n"))
        jobs.main("busy")
    assert capsys.readouterr().out.split() == ["2", "3"], "job 2 has a script, and job 3 runs at once"


def test_a_person_is_known_by_the_certificate_of_the_login(tmp_path: Path) -> None:
    def login(name: str) -> str:
        for file in tmp_path.iterdir():
            file.unlink()
        for key in ("authority", "own"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True)
        sign = ["ssh-keygen", "-q", "-s", tmp_path / "authority", "-n", "dask-tunnel", "-I", name, tmp_path / "own.pub"]
        subprocess.run(sign, check=True)
        return "publickey " + " ".join((tmp_path / "own-cert.pub").read_text().split()[:2]) + "\n"

    assert jobs.holder(login("person:alice")) == "alice"
    assert jobs.holder(login("client")) == ""
    with pytest.raises(SystemExit, match="worker-1 is not a person"):
        jobs.holder(login("worker-1"))
    with pytest.raises(ValueError, match="not enough values"):
        jobs.holder("publickey ssh-ed25519 AAAA")


@pytest.mark.parametrize("part", ["archive", "files"])
def test_a_folder_that_is_too_large_starts_no_job(asked: list[str], monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setattr(jobs, "SIZE", 10_000)
    kind = zipfile.ZIP_STORED if part == "archive" else zipfile.ZIP_DEFLATED
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w", kind) as archive:
            archive.writestr("train.py", "#" * 10_001)
        given = json.dumps(asdict(Plan(["train.py"]))).encode() + b"\n" + buffer.getvalue()
    assert (len(given) > 10_000) == (part == "archive")
    with pytest.raises(SystemExit, match="more than 0 MB"):
        jobs.start("", io.BytesIO(given))
    assert jobs.numbers() == []


DAY = 86400


@pytest.mark.parametrize(
    ("at", "every", "now", "due"),
    [
        (1000, None, 500, 1000),
        (1000, None, 5000, 1000),  # the machine was off
        (1000, DAY, 500, 1000),
        (1000, DAY, 1005, 1000),
        (1000, DAY, 1000 + 10 * DAY + 60, 1000 + 10 * DAY),  # missed during a reboot
        (1000, DAY, 1000 + 10 * DAY + 7200, 1000 + 11 * DAY),
    ],
)
def test_a_job_runs_at_its_time_and_soon_after_a_reboot(at: int, every: int | None, now: int, due: int) -> None:
    assert run_job.first(at, every, now) == due


def test_a_run_that_takes_too_long_does_not_delay_later_ones() -> None:
    assert run_job.following(1000, 60, 1000) == 1060
    assert run_job.following(1000, 60, 1130) == 1180


@pytest.mark.parametrize("wanted", [signal.SIGTERM, None])
def test_a_job_runs_again_and_again_until_it_is_stopped(wanted: signal.Signals | None) -> None:
    every = 0.3 if wanted else None
    program = f"""
import signal, sys, time
from on_the_cluster import run_job

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
sys.argv = ["-c", "print('ran', flush=True)"]
run_job.schedule({{"at": time.time(), "every": {every}}})
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(5 if wanted else 1)]
        assert lines[::2] == ["ran\n"] * len(lines[::2])
        assert all("the run has ended with status 0" in line for line in lines[1::2])
        if wanted:
            process.send_signal(wanted)
        assert process.wait(60) == (143 if wanted else 0)


class Cluster:
    """A cluster of two to six workers, and a client of it."""

    def __init__(self, number: int, adaptive: list[int] | None) -> None:
        self.scheduler, self.number, self.adaptive = self, number, adaptive

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def sync(self, handler: Callable, **arguments: int) -> Any:
        return handler(**arguments)

    def workers_scaling(self) -> dict[str, Any]:
        return {"number": self.number, "min": 2, "max": 6, "adaptive": self.adaptive}

    def workers_scale(self, number: int) -> None:
        if not 2 <= number <= 6:
            raise ValueError(f"{number} workers are outside of the stack's bounds")
        self.number, self.adaptive = number, None

    def workers_adapt(self, minimum: int, maximum: int) -> None:
        self.adaptive = [minimum, maximum]


@pytest.mark.parametrize(
    ("adaptive", "number", "sleeps", "others", "during", "after"),
    [
        (None, None, False, None, (3, None), (3, None)),
        (None, 5, False, None, (5, None), (3, None)),
        ([2, 4], 5, False, None, (5, None), (5, [2, 4])),
        (None, 5, False, 6, (5, None), (6, None)),  # someone has set another number meanwhile
        (None, 5, True, 6, (5, None), (2, None)),
        (None, None, True, None, (3, None), (2, None)),
    ],
)
def test_a_job_has_its_number_of_workers_and_leaves_the_former_or_the_smallest_one(
    adaptive: list[int] | None, number: int | None, sleeps: bool, others: int | None, during: object, after: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cluster = Cluster(3, adaptive)
    monkeypatch.setattr(run_job, "connect", lambda: cluster)
    with run_job.scaled(number, sleeps):
        assert (cluster.number, cluster.adaptive) == during
        if others:
            cluster.workers_scale(others)
    assert (cluster.number, cluster.adaptive) == after


def test_a_job_with_too_many_workers_ends_with_the_clusters_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_job, "connect", lambda: Cluster(3, None))
    with pytest.raises(SystemExit, match="7 workers are outside"), run_job.scaled(7, False):
        pass


@pytest.mark.parametrize(
    ("at", "every", "ended", "due"),
    [
        (None, None, None, None),
        (10**10, None, None, 10**10),
        (10**10, None, 5.0, None),
        (1000, None, None, None),  # it is running
        (10**10, 60, None, 10**10),
    ],
)
def test_the_next_run_is_shown(at: float | None, every: float | None, ended: float | None, due: float | None) -> None:
    job = daskstack.jobs.Job(
        number=1, words=["x"], started=1.0, status="running", at=at, every=every, ended=ended, code=None
    )
    assert job.next_run() == due


@pytest.mark.parametrize("said", ["", "no JSON", '[{"number": 1}]', '[{"number": "1"}]'])
def test_an_answer_that_is_no_list_of_jobs_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(status_and_logs, "ask", lambda _: said)
    with pytest.raises(RemoteError, match="not with jobs"):
        daskstack.jobs.MachineJobs(SimpleNamespace(tunnel=CONNECTION)).all()


@pytest.mark.parametrize(
    ("condition", "stopped", "suspended", "status", "code"),
    [
        (None, False, False, "running", None),
        ("Complete", False, False, "succeeded", 0),
        ("Failed", False, False, "failed", 7),
        ("Failed", True, False, "stopped", 7),
        (None, True, True, "stopped", 7),
        (None, True, False, "running", None),
    ],
)
def test_a_job_of_kubernetes_is_described(
    condition: str | None, stopped: bool, suspended: bool, status: str, code: int | None
) -> None:
    time = "2026-01-01T00:00:05Z"
    metadata = {"name": "dask-job-3", "creationTimestamp": "2026-01-01T00:00:00Z"}
    metadata["annotations"] = {"dask/plan": json.dumps(asdict(Plan(["train.py"])))} | (
        {"dask/stopped": "yes"} if stopped else {}
    )
    conditions = [{"type": condition, "status": "True", "lastTransitionTime": time}] if condition else []
    spec = {"suspend": suspended}
    codes = {} if code is None else {"dask-job-3": code}
    job = daskstack.jobs.described({"metadata": metadata, "spec": spec, "status": {"conditions": conditions}}, codes)
    assert (job.number, job.words, job.status, job.code) == (3, ["train.py"], status, code)
    assert (job.ended is None) == (code is None)
    if condition:
        assert job.ended - job.started == 5
