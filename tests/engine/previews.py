"""Previews of the shipped stack files with changed settings and the stand-in for Google Cloud."""

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from daskstack.engine import PROJECT
from tools.rehearse import KEY, Rehearsal


class Previews(Rehearsal):
    def __init__(self, stack: str, folder: Path) -> None:
        super().__init__(stack, folder)
        self.pulumi("stack", "select", "--create", capture_output=True)
        self.shipped: dict[str, Any] = yaml.safe_load((PROJECT / f"Pulumi.{stack}.yaml").read_text())["config"][KEY]

    def preview(self, **changed: Any) -> subprocess.CompletedProcess[str]:
        """Previews the shipped settings with these replacements; the preview may fail."""
        self.start({"config": {KEY: self.shipped | changed}})
        try:
            return self.pulumi("preview", "--json", capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            return subprocess.CompletedProcess(error.cmd, error.returncode, error.stdout, error.stderr)

    def states(self, **changed: Any) -> list[dict[str, Any]]:
        """The resources that `up` would create."""
        done = self.preview(**changed)
        assert done.returncode == 0, done.stdout + done.stderr
        return [step["newState"] for step in json.loads(done.stdout)["steps"]]
