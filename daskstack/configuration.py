"""A stack's settings as the engine reads them: YAML of any style, `pulumi config set`, environments, secrets."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daskstack import engine
from daskstack.engine import EngineError

KEY = "dask:cluster"
SHOW = ("config", "--json", "--show-secrets")  # without --show-secrets the engine does not open environments


def file(stack: str) -> Path:
    """The stack's file. `stack` can contain an organization: `me/dask/vms`. Raises EngineError if there is no file."""
    path = engine.checked_project() / f"Pulumi.{Path(stack).name}.yaml"
    if not path.is_file():
        others = ", ".join(sorted(each.name for each in engine.PROJECT.glob("Pulumi.*.yaml")))
        raise EngineError(f"there is no {path.name} in {path.parent}: copy one of {others}, and edit the copy")
    return path


def read(stack: str) -> dict[str, Any]:
    """The stack's settings under KEY. The engine reads only stacks that exist, so a missing one exists meanwhile."""
    shown = engine.pulumi(stack, *SHOW, capture_output=True, text=True)
    if "no stack named" in shown.stderr:
        made = engine.pulumi(stack, "stack", "init", "--no-select", capture_output=True, text=True)
        shown = made if made.returncode else engine.pulumi(stack, *SHOW, capture_output=True, text=True)
        if made.returncode == 0:
            engine.pulumi(stack, "stack", "rm", "--yes", "--preserve-config", "--remove-backups", capture_output=True)
    if shown.returncode:
        raise EngineError(f"Pulumi cannot read Pulumi.{Path(stack).name}.yaml: {shown.stderr.strip()}")
    return settings(shown.stdout, stack)


def settings(shown: str, stack: str) -> dict[str, Any]:
    """The settings in the output of `pulumi config --json`; empty if there are none."""
    entry = json.loads(shown).get(KEY, {})
    found = entry.get("objectValue", entry.get("value") or {})
    if not isinstance(found, dict):
        raise EngineError(f"Pulumi.{Path(stack).name}.yaml: {KEY} under config must be a set of keys, not {found!r}")
    return found


@dataclass(frozen=True)
class StackKind:
    """The kind of a stack, for the commands that build it. Accepts wrong settings, which the program reports later."""

    target: str
    source: str
    project: str
    """The project in Google Cloud; empty for other sources."""
    at_least: bool = False
    """Whether `up` may leave out machines that cannot join."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "StackKind":
        target = settings.get("target")
        section = settings.get("cluster" if target == "kubernetes" else "machines")
        section = section if isinstance(section, dict) else {}
        workers = settings.get("workers")
        at_least = target == "machines" and isinstance(workers, dict) and workers.get("atLeast") is not None
        return cls(str(target), str(section.get("source")), str(section.get("project") or ""), at_least)

    @property
    def compute(self) -> bool:
        return self.source == "compute"

    @property
    def google(self) -> bool:
        return self.source in ("compute", "gke")

    @property
    def local(self) -> bool:
        return self.source == "local"

    @property
    def users_machines(self) -> bool:
        return self.target == "machines" and self.source == "existing"

    @property
    def parts(self) -> list[str]:
        """The arguments for tools.install in addition to `program`."""
        cloud = self.target == "kubernetes" or self.compute
        return [*(["machines"] if self.local else []), *(["cloud"] if cloud else [])]
