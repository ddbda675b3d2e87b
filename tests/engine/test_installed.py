"""`make` and `daskstack` with an installed engine."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import settings
from daskstack import engine
from on_this_computer import send_environment
from settings.common import JUPYTER_LOCK
from tests.engine.support import Project
from tools import install


def test_installed_parts_are_not_installed_again_or_mentioned() -> None:
    made = [engine.PROJECT / ".venv/locks", Path(engine.engine() or ""), engine.standins(engine.engine()) / "complete"]
    before = [path.stat() if path.exists() else None for path in made]
    command = [sys.executable, "-m", "tools.install", "program", "machines", "test"]
    done = subprocess.run(command, cwd=engine.PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    # Another make may run at the same time.
    assert done.stderr in ("", "Another make is installing; waiting for it to end\n")
    after = [path.stat() if path.exists() else None for path in made]
    assert [each and (each.st_ino, each.st_mtime_ns) for each in after] == [
        each and (each.st_ino, each.st_mtime_ns) for each in before
    ]


def test_the_wheels_that_the_first_make_up_downloads_are_those_of_stack_dev(monkeypatch: pytest.MonkeyPatch) -> None:
    install.prepare_dev()
    dev = yaml.safe_load((engine.PROJECT / "Pulumi.dev.yaml").read_text())
    environment = settings.parse(dev["config"]["dask:cluster"], engine.PROJECT).environment
    monkeypatch.setattr(send_environment, "download", lambda *_: pytest.fail("downloads something else"))
    lock = engine.PROJECT / environment.lock
    send_environment.collect(lock, environment.python, environment.source or "", engine.PROJECT / JUPYTER_LOCK)


def test_our_engine_keeps_no_log_of_all_values(project: Project) -> None:
    home = Path(project.environment.get("PULUMI_HOME", engine.pulumi_home()))
    if not home.is_relative_to(engine.cache_folder()):
        pytest.skip("Pulumi's own plugins are installed, with the home of the user, whose logs are the user's")
    project.write('pulumi.export("value", 1)')
    project.run("up", "--yes", "--skip-preview")
    assert not list(home.glob("logs/*"))


def test_reading_outputs_of_a_missing_stack_says_how_to_build_it(
    pulumi_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", pulumi_environment["XDG_DATA_HOME"])
    with pytest.raises(engine.EngineError, match="stack dev does not exist: build it with `make up STACK=dev`"):
        engine.outputs("dev")
