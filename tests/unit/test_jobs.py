"""The program that starts jobs on the scheduler's machine, without systemd."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import daskstack.jobs
from daskstack import status_and_logs
from daskstack.status_and_logs import RemoteError
from on_the_cluster import jobs

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
    def started(*words: str) -> int:
        with io.BytesIO() as buffer:
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr(words[0], "print('begun')")
                archive.writestr("package/module.py", "")
            jobs.start(io.BytesIO(json.dumps(words).encode() + b"\n" + buffer.getvalue()))
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
        jobs.main("stop", number)


@pytest.mark.parametrize("said", ["", "no JSON", '[{"number": 1}]', '[{"number": "1"}]'])
def test_an_answer_that_is_no_list_of_jobs_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(status_and_logs, "ask", lambda _: said)
    with pytest.raises(RemoteError, match="not with jobs"):
        daskstack.jobs.MachineJobs({"host": "h", "user": "u", "host_key": "ssh-ed25519 AAAA"}).all()


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
    metadata["annotations"] = {"dask/words": '["train.py"]'} | ({"dask/stopped": "yes"} if stopped else {})
    conditions = [{"type": condition, "status": "True", "lastTransitionTime": time}] if condition else []
    spec = {"suspend": suspended}
    codes = {} if code is None else {"dask-job-3": code}
    job = daskstack.jobs.described({"metadata": metadata, "spec": spec, "status": {"conditions": conditions}}, codes)
    assert (job.number, job.words, job.status, job.code) == (3, ["train.py"], status, code)
    assert (job.ended is None) == (code is None)
    if condition:
        assert job.ended - job.started == 5
