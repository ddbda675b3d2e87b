"""Answers of a cluster are never more than text: they are parsed strictly and printed without control characters."""

import contextlib
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributed import LocalCluster

from daskstack import engine, status_and_logs
from daskstack.printable import printable
from daskstack.status_and_logs import RemoteError, ask, parse_status
from daskstack.tunnel import Way
from tests.client_outputs import machines_client

WORKER = {"name": "worker-1-1", "status": "running", "threads": 2, "used": 1e9, "limit": 2**31, "cpu": 3.5}


def report(**changes: object) -> str:
    return json.dumps({"workers": [WORKER | changes]})


def test_the_report_is_found_after_other_output() -> None:
    [worker] = parse_status(f"a warning\n{report()}\n").workers
    assert (worker.name, worker.threads, worker.limit) == ("worker-1-1", 2, 2**31)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no JSON",
        "[]",
        "{}",
        "null",
        "[" * 100_000,
        pickle.dumps(1).decode("latin1"),
        report(threads="2"),
        report(threads=-1),
        report(used=None),
        report(used=float("nan")),
        report(limit=float("inf")),
        report(limit=10**400),
        report(name=["a"]),
        report(name="a" * 201),
        report(more=1),
        json.dumps({"workers": 10_001 * [WORKER]}),
    ],
)
def test_an_answer_that_is_not_a_report_is_rejected(answer: str) -> None:
    with pytest.raises(RemoteError, match="not with a status report"):
        parse_status(answer)


SCALING = {"number": 3, "min": 1, "max": 8, "adaptive": None}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[]",
        pickle.dumps(1).decode("latin1"),
        json.dumps(SCALING | {"number": "3"}),
        json.dumps(SCALING | {"number": -1}),
        json.dumps(SCALING | {"adaptive": [1, 2, 3]}),
        json.dumps(SCALING | {"more": 1}),
        json.dumps({"error": 1001 * "a"}),
    ],
)
def test_an_answer_that_does_not_tell_the_scaling_is_rejected(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_and_logs, "_ask_scheduler", lambda *_: answer)
    with pytest.raises(RemoteError, match="not with a status report"):
        status_and_logs.scale({}, "workers_scaling")


def test_the_schedulers_refusal_to_scale_is_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_and_logs, "_ask_scheduler", lambda *_: json.dumps(SCALING))
    assert status_and_logs.scale({}, "workers_scale", number=3).model_dump(exclude={"error"}) == SCALING
    monkeypatch.setattr(status_and_logs, "_ask_scheduler", lambda *_: json.dumps({"error": "9 workers are outside"}))
    with pytest.raises(RemoteError, match=r"^9 workers are outside$"):
        status_and_logs.scale({}, "workers_scale", number=9)


def test_no_control_character_reaches_the_terminal() -> None:
    text = "a\x1b]0;title\x07\r\x08\x9b2J\u202eb\n\tc é 漢"
    assert printable(text).replace("\ufffd", "?") == "a?]0;title????2J?b\n\tc é 漢"


def test_a_hanging_command_is_killed_with_its_child_processes(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = ["sh", "-c", f"echo before; sleep 600 & echo $! >{pid}; wait"]
    with pytest.raises(RemoteError, match=r"did not answer completely within 1 s; it printed: before"):
        ask(command, wait=1)
    process = Path("/proc") / pid.read_text().strip()
    deadline = time.monotonic() + 30
    while process.exists() and ") Z " not in process.joinpath("stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_endless_answer_is_rejected() -> None:
    with pytest.raises(RemoteError, match="more than 1000 bytes"):
        ask(["yes"], size=1000)


def test_the_error_of_a_failed_command_is_reported() -> None:
    with pytest.raises(RemoteError, match=r"`sh` ended with status 3: why"):
        ask(["sh", "-c", "echo why >&2; exit 3"])


def test_the_report_of_a_real_scheduler_is_valid() -> None:
    with LocalCluster(n_workers=1, processes=False, protocol="tcp://", dashboard_address=":0") as cluster:
        command = [sys.executable, "-I", "-", cluster.scheduler_address]
        [worker] = parse_status(ask(command, status_and_logs.REPORT_STATUS.read_text())).workers
    assert (worker.name, worker.status) == ("0", "running")


@pytest.mark.parametrize(
    "answer", ["", "[]", "{}", '{"workers": {"a": 1}, "people": {}}', "[" * 100_000, "null", "no JSON"]
)
def test_a_dashboard_that_answers_something_else_is_an_error(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_and_logs, "way_to", lambda *_: contextlib.nullcontext(Way([1], lambda: "")))
    monkeypatch.setattr(status_and_logs, "ask", lambda *_: answer)
    with pytest.raises(RemoteError, match="the dashboard did not answer as expected"):
        status_and_logs.status_through(machines_client())


def test_an_unreachable_scheduler_is_named() -> None:
    command = [sys.executable, "-I", "-", "tcp://127.0.0.1:1"]
    program = status_and_logs.REPORT_STATUS.read_text().replace("timeout=20", "timeout=1")
    with pytest.raises(RemoteError, match=r"the scheduler at tcp://127\.0\.0\.1:1 does not answer"):
        ask(command, program)


def test_the_command_line_does_not_load_dask() -> None:
    """Dask would unpickle a cluster's answers. Only `connect` loads it."""
    program = "import daskstack.cli, sys; print({'dask', 'distributed', 'cloudpickle'} & sys.modules.keys())"
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, cwd=engine.PROJECT, capture_output=True, text=True).stdout == "set()\n"
