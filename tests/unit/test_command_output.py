"""A test that takes too long shows what its command had said, and no limit of a helper is above that of a test."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from daskstack.engine import PROJECT

LIMIT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["timeout"]
SLOW = """
import subprocess, sys, pytest

COMMAND = ["sh", "-c", "echo as far; echo as here >&2; exec sleep 600"]

def test_the_helpers_limit():
    subprocess.run(COMMAND, capture_output=True, text=True, timeout=1)

def test_the_helpers_limit_with_another_error():
    try:
        subprocess.run(COMMAND, capture_output=True, text=True, timeout=1)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError("no answer") from error

@pytest.mark.timeout(1)
def test_the_tests_limit():
    subprocess.run(COMMAND, capture_output=True, text=True, timeout=300)

def test_a_failure():
    subprocess.run(["sh", "-c", "echo as far; echo as here >&2; exit 3"], capture_output=True, text=True, check=True)
"""


@pytest.mark.parametrize(
    "name",
    ["the_helpers_limit", "the_helpers_limit_with_another_error", "the_tests_limit", "a_failure"],
)
def test_a_command_that_times_out_shows_its_output(name: str, tmp_path: Path) -> None:
    tmp_path.joinpath("test_slow.py").write_text(SLOW)
    tmp_path.joinpath("conftest.py").write_text("from tests.conftest import pytest_runtest_makereport\n")
    tmp_path.joinpath("pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "pytest_timeout", f"test_slow.py::test_{name}"]
    environ = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    shown = done.stdout.partition("output of the command")[2]
    assert "\nas far\n" in shown and "\nas here\n" in shown, done.stdout


def test_helpers_time_out_before_the_test_does() -> None:
    limits = {
        f"{path.relative_to(PROJECT)}:{keyword.value.lineno}": keyword.value.value
        for path in (PROJECT / "tests").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "timeout" and isinstance(keyword.value, ast.Constant) and keyword.value.value
    }
    assert len(limits) > 20
    assert {place: seconds for place, seconds in limits.items() if seconds > LIMIT - 60} == {}
