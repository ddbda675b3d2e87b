"""`daskstack sync` installs the packages of a stack's lock."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from daskstack import engine, stack_commands
from tests.client_outputs import machines_client
from tests.wheels import wheel
from tools import sync
from tools.python_packages import uv
from tools.running import InstallError


def stack(monkeypatch: pytest.MonkeyPatch, **facts: str) -> None:
    monkeypatch.setattr(engine, "cluster", lambda name: {"client": machines_client(**facts)})


@pytest.fixture
def python(tmp_path: Path) -> str:
    subprocess.run([uv(), "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    return str(tmp_path / "venv/bin/python")


def test_packages_of_the_lock_are_installed_and_others_stay(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_sync(text: str) -> set[str]:
        (tmp_path / "own.lock").write_text(text)
        sync.sync(tmp_path / "own.lock", python)
        return {path.name for path in tmp_path.glob("venv/lib/*/site-packages/*.dist-info")}

    monkeypatch.setenv("UV_NO_INDEX", "1")
    (tmp_path / "own.wheels").mkdir()
    first, second, third = (wheel(tmp_path / "own.wheels", name, "1.0") for name in ("first", "second", "third"))
    assert run_sync(first) == {"first-1.0.dist-info"}
    assert run_sync(second) == {"first-1.0.dist-info", "second-1.0.dist-info"}
    with pytest.raises(InstallError, match=r"uv could not install own\.lock"):
        run_sync(re.sub("sha256:.{4}", "sha256:0000", third))


def test_another_minor_version_of_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stack(monkeypatch, python="3.99")
    with pytest.raises(engine.EngineError, match=r"this environment has Python 3.\d+, and stack dev has 3.99: create"):
        stack_commands.sync("dev")


def test_a_python_outside_of_virtual_environments_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stack(monkeypatch)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    with pytest.raises(engine.EngineError, match="is not in a virtual environment"):
        stack_commands.sync("dev")
