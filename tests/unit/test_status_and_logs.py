"""What a cluster says is text, whatever it says."""

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

WORKER = {"name": "worker-1-1", "status": "running", "threads": 2, "used": 1e9, "limit": 2**31, "cpu": 3.5}


def report(**changes: object) -> str:
    return json.dumps({"workers": [WORKER | changes]})


def test_the_report_is_found_behind_what_else_was_said() -> None:
    [worker] = parse_status(f"a warning\n{report()}\n").workers
    assert (worker.name, worker.threads, worker.limit) == ("worker-1-1", 2, 2**31)


@pytest.mark.parametrize(
    "said",
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
def test_an_answer_that_is_no_report_is_refused(said: str) -> None:
    with pytest.raises(RemoteError, match="not with a status report"):
        parse_status(said)


def test_a_terminal_gets_nothing_to_obey() -> None:
    said = "a\x1b]0;title\x07\r\x08\x9b2J\u202eb\n\tc é 漢"
    assert printable(said).replace("\ufffd", "?") == "a?]0;title????2J?b\n\tc é 漢"


def test_a_command_that_never_ends_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = ["sh", "-c", f"echo before; sleep 600 & echo $! >{pid}; wait"]
    with pytest.raises(RemoteError, match=r"did not answer completely within 1 s; it printed: before"):
        ask(command, wait=1)
    process = Path("/proc") / pid.read_text().strip()
    deadline = time.monotonic() + 30
    while process.exists() and ") Z " not in process.joinpath("stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_answer_without_end_is_cut() -> None:
    with pytest.raises(RemoteError, match="more than 1000 bytes"):
        ask(["yes"], size=1000)


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(RemoteError, match=r"`sh` ended with status 3: why"):
        ask(["sh", "-c", "echo why >&2; exit 3"])


def test_the_program_that_asks_a_scheduler_prints_what_is_parsed_here() -> None:
    with LocalCluster(n_workers=1, processes=False, protocol="tcp://", dashboard_address=":0") as cluster:
        command = [sys.executable, "-I", "-", cluster.scheduler_address]
        [worker] = parse_status(ask(command, status_and_logs.REPORT_STATUS.read_text())).workers
    assert (worker.name, worker.status) == ("0", "running")


def test_a_scheduler_that_is_not_there_is_named() -> None:
    command = [sys.executable, "-I", "-", "tcp://127.0.0.1:1"]
    program = status_and_logs.REPORT_STATUS.read_text().replace("timeout=20", "timeout=1")
    with pytest.raises(RemoteError, match=r"the scheduler at tcp://127\.0\.0\.1:1 does not answer"):
        ask(command, program)


def test_nothing_that_make_runs_on_a_stack_loads_dask() -> None:
    """Dask is what would unpickle an answer; only `connect` loads it."""
    program = "import daskstack.cli, sys; print({'dask', 'distributed', 'cloudpickle'} & sys.modules.keys())"
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, cwd=engine.PROJECT, capture_output=True, text=True).stdout == "set()\n"
