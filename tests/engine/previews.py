"""Previews of the program with changed settings."""

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from daskstack.engine import PROJECT
from tools.rehearse import KEY, Rehearsal


def planned(preview: str) -> dict[str, dict[str, Any]]:
    """The resources that `up` would create, by name. `preview` is the output of `pulumi preview --json`."""
    states = [step["newState"] for step in json.loads(preview)["steps"]]
    found = {state["urn"].rpartition("::")[2]: state for state in states}
    assert len(found) == len(states), "two resources have the same name"
    return found


def inputs(states: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: state.get("inputs", {}) for name, state in states.items()}


class Previews(Rehearsal):
    """A stack that was never up, with the settings that are shipped for it and the stand-in for Google Cloud."""

    def __init__(self, stack: str, folder: Path) -> None:
        super().__init__(stack, folder)
        self.pulumi("stack", "select", "--create", capture_output=True)
        self.shipped: dict[str, Any] = yaml.safe_load((PROJECT / f"Pulumi.{stack}.yaml").read_text())["config"][KEY]

    def preview(self, **changed: Any) -> subprocess.CompletedProcess[str]:
        """Previews the shipped settings with these replacements; the preview may fail."""
        self.start({"config": {KEY: copy.deepcopy(self.shipped | changed)}})
        try:
            return self.pulumi("preview", "--json", capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            return subprocess.CompletedProcess(error.cmd, error.returncode, error.stdout, error.stderr)

    def resources(self, **changed: Any) -> dict[str, dict[str, Any]]:
        """The resources that `up` would create with these replacements, by name."""
        done = self.preview(**changed)
        assert done.returncode == 0, done.stdout + done.stderr
        return planned(done.stdout)
