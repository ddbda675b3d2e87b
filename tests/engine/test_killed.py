"""After a killed `up`, the stack is usable, and the next destroy undoes commands that the `up` had started."""

import json
import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.engine.support import Project, descendants, wait_for
from tools import undo_unfinished, unlock


@pytest.fixture
def made(project: Project, tmp_path: Path) -> Path:
    """A file that a killed `up` had created."""
    made = tmp_path / "made"
    project.write(
        f"""
first = local.Command("first", create="true")
local.Command("second", create="touch {made}; sleep 30", delete="rm {made}",
              opts=pulumi.ResourceOptions(depends_on=[first]))
"""
    )
    with project.started("up", "--yes", "--skip-preview") as up:
        wait_for("the command has begun", made.exists)
        # The engine first: when its plugin ends, it writes to the state that the command has failed.
        for pid in (up.pid, *descendants(up.pid)):
            os.kill(pid, signal.SIGKILL)
    return made


def test_a_stack_killed_between_a_state_and_its_attributes_is_usable_again(project: Project, made: Path) -> None:
    state = Path(urlsplit(project.environment["PULUMI_BACKEND_URL"]).path)
    for attributes in state.rglob("*.attrs"):
        attributes.write_text("")
    assert "EOF" in project.run("cancel", "--yes", succeeds=False)

    unlock.clear(list(state.glob(".pulumi/locks/organization/*/test/*.json")))
    project.run("destroy", "--yes", "--skip-preview")


def test_a_command_that_a_killed_up_had_started_is_undone(project: Project, made: Path, tmp_path: Path) -> None:
    project.run("cancel", "--yes")

    state = json.loads(project.run("stack", "export"))
    assert undo_unfinished.adopt(state["deployment"]) == ["second"]
    (tmp_path / "state").write_text(json.dumps(state))
    project.run("stack", "import", "--file", str(tmp_path / "state"))
    project.run("destroy", "--yes", "--skip-preview")
    assert not made.exists()


def test_a_completed_run_leaves_nothing_to_undo(project: Project) -> None:
    project.up("local.Command('it', create='true')")
    state = json.loads(project.run("stack", "export"))
    before = json.dumps(state)
    assert undo_unfinished.adopt(state["deployment"]) == []
    assert json.dumps(state) == before
