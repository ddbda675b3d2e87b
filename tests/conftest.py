"""Shared by all tests: the engine that `make test` installed, without access to the user's own stacks."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from daskstack import engine
from tests import command_output


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.excinfo and not report.passed and (printed := command_output.output(call.excinfo)):
        report.sections.append(("output of the command", printed))
    return report


# As in the Makefile: programs that tests start can reuse compiled packages.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session", autouse=True)
def engine_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Puts `pulumi` and its plugins into the environment, with state in a folder of this run.

    Tests in tests/unit also run without an engine.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        for name, value in engine.variables("dev").items() if engine.engine() else ():
            patch.setenv(name, value)
        yield


@pytest.fixture
def pulumi_environment(tmp_path: Path) -> dict[str, str]:
    """The environment for the `pulumi` of one test: its own backend and an empty passphrase."""
    environ = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data")}
    return {**environ, **engine.variables("dev", environ)}
