"""How `make test` runs files of tests beside each other."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from daskstack.engine import PROJECT
from tools import test as runner

RUN = "import sys, pathlib; from tools.test import *; sys.exit(run(queue(pathlib.Path('tests')), pathlib.Path()))"
UNIT = """
import os, pathlib, pytest, tempfile, time

def test_passes(tmp_path):
    assert tmp_path.is_relative_to(os.environ["TMPDIR"]) and tempfile.gettempdir() == os.environ["TMPDIR"]
    assert not pathlib.Path("temporary").exists() or pathlib.Path("temporary").read_text() != os.environ["TMPDIR"]
    time.sleep(1.25)

def test_is_skipped():
    pytest.skip("no such disk")
"""
FAILS = """
import os, pathlib

def test_passes():
    assert os.listdir(os.environ["TMPDIR"]) == []
    pathlib.Path("temporary").write_text(os.environ["TMPDIR"])

def test_fails():
    assert "found" == "expected"
"""
DIES = "import os\n\ndef test_dies():\n    os._exit(3)\n"
# Cleaning up takes a while, in which a second Ctrl-C would end it.
HANGS = """
import pathlib, pytest, subprocess, time

@pytest.fixture(scope="session")
def machine():
    yield
    time.sleep(1)
    pathlib.Path("cleaned-NAME").touch()

def test_hangs(machine):
    with subprocess.Popen(["sleep", "600"]) as process:
        pathlib.Path("up-NAME").write_text(str(process.pid))
        time.sleep(600)
"""
DEAF = "import signal, time\n\ndef test_deaf():\n    signal.signal(2, signal.SIG_IGN)\n    time.sleep(600)\n"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A project with folders of tests, and of temporary files."""
    for folder in ("tests/machines", "tests/engine", "tests/unit", "tmp"):
        tmp_path.joinpath(folder).mkdir(parents=True)
    tmp_path.joinpath("pytest.ini").write_text("[pytest]\n")
    return tmp_path


def started(top: Path, run: str = RUN, **variables: str) -> subprocess.Popen[str]:
    # Without plugins that these tests do not need, each pytest starts in half the time.
    environ = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "TMPDIR": str(top / "tmp"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    environ |= variables
    command = [sys.executable, "-c", run]
    return subprocess.Popen(
        command, cwd=top, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def test_a_run_sums_up_all_files_and_shows_failures(top: Path) -> None:
    top.joinpath("tests/unit/test_some.py").write_text(UNIT)
    top.joinpath("tests/engine/test_fails.py").write_text(FAILS)
    top.joinpath("tests/machines/test_dies.py").write_text(DIES)
    with started(top, JOBS="2", SEED="7") as process:
        said = process.communicate(timeout=120)[0]
    assert process.returncode == 1, said
    assert said.startswith("3 files of tests, 2 pytests in parallel; SEED=7 repeats this order\n")
    assert re.search(r"^\d\d:\d\d tests/engine/test_fails\.py 1 failed, 1 passed in \d+ s$", said, re.MULTILINE)
    assert re.search(r"^\d\d:\d\d tests/unit 1/2 1 passed, 1 skipped in \d+ s$", said, re.MULTILINE)
    assert re.search(r"^\d\d:\d\d tests/machines/test_dies\.py 1 error in \d+ s$", said, re.MULTILINE)
    assert "assert 'found' == 'expected'" in said
    assert re.search(
        r"^slowest tests:\n +[1-9]\d*\.\d s  tests/unit/test_some\.py::test_passes$", said, re.MULTILINE
    ), said
    assert "\nnot proven here: tests/unit/test_some.py::test_is_skipped: no such disk\n" in said
    *_, died, failed, last = said.splitlines()
    assert re.fullmatch(r"error: tests/machines/test_dies\.py ended with status -?\d+", died)
    assert re.fullmatch(r"failed: tests/engine/test_fails\.py::\w+", failed)
    assert re.fullmatch(r"=+ 1 failed, 2 passed, 1 skipped, 1 error in [\d.]+s( \(0:\d\d:\d\d\))? =+", last)
    assert os.listdir(top / "tmp") == []


def test_a_run_without_failures_succeeds(top: Path) -> None:
    top.joinpath("tests/unit/test_some.py").write_text("def test_passes(): pass\n")
    with started(top) as process:
        said = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    assert re.fullmatch(r"=+ 1 passed in .*s =+", said.splitlines()[-1])


@pytest.mark.parametrize("of_a_terminal", [True, False], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_waits_for_the_cleanup(top: Path, of_a_terminal: bool) -> None:
    for name in "ab":
        top.joinpath(f"tests/machines/test_{name}.py").write_text(HANGS.replace("NAME", name))
    top.joinpath("tests/engine/test_never.py").write_text("def test_never(): open('never', 'w')\n")
    with started(top, JOBS="2") as process:
        deadline = time.monotonic() + 120
        while not all(top.joinpath(f"up-{name}").exists() for name in "ab"):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        if of_a_terminal:  # which tells all that is in the foreground; some press it twice
            os.killpg(process.pid, signal.SIGINT)
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.terminate()
        said = process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    assert {path.name for path in top.iterdir()} >= {"cleaned-a", "cleaned-b"}, said
    assert not top.joinpath("never").exists()
    assert said.count(" was interrupted after ") == 2 and "KeyboardInterrupt" in said
    assert re.fullmatch(r"=+ interrupted, no tests ran in .*s =+", said.splitlines()[-1])
    assert os.listdir(top / "tmp") == []


def test_a_pytest_that_does_not_end_is_ended_and_counts_as_an_error(top: Path) -> None:
    top.joinpath("tests/machines/test_a.py").write_text(HANGS.replace("NAME", "a"))
    top.joinpath("tests/machines/test_deaf.py").write_text(DEAF)
    top.joinpath("tests/engine/test_fine.py").write_text("def test_fine(): pass\n")
    with started(top, f"import tools.test; tools.test.LIMIT = tools.test.CLEANUP = 4; {RUN}", JOBS="2") as process:
        said = process.communicate(timeout=120)[0]
    assert process.returncode == 1, said
    assert top.joinpath("cleaned-a").exists()
    assert "error: tests/machines/test_a.py ended with status 2\n" in said
    assert "error: tests/machines/test_deaf.py ended with status -9\n" in said
    assert re.fullmatch(r"=+ .*\b2 errors in .*s.* =+", said.splitlines()[-1])


def test_files_with_shared_expensive_fixtures_run_in_one_pytest() -> None:
    found = runner.queue(PROJECT / "tests")
    for name, files in runner.TOGETHER.items():
        assert sorted(found[f"tests/{name}"]) == sorted(f"tests/{file}" for file in files)


def test_the_longest_files_run_first_and_none_is_missing() -> None:
    found = runner.queue(PROJECT / "tests")
    assert not {f"tests/{name}" for name in runner.LONGEST} - found.keys(), "take them out of LONGEST in tools/test.py"
    assert list(found)[: len(runner.LONGEST)] == [f"tests/{name}" for name in runner.LONGEST]
    files = sorted(path.relative_to(PROJECT).as_posix() for path in (PROJECT / "tests").rglob("test_*.py"))
    assert sorted(file for each in found.values() for file in each) == files
    alone = [file for each in runner.unit(PROJECT / "tests").values() for file in each]
    assert sorted(alone) == [file for file in files if file.startswith("tests/unit/")]
