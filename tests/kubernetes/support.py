"""A Kubernetes of one node, for tests."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from daskstack.engine import PROJECT, kubernetes_programs


@dataclass(frozen=True)
class Cluster:
    """A cluster in a folder of its own; `kubeconfig`, `context` and `node` (address) are there once it is up."""

    directory: Path
    programs: Path = field(default_factory=kubernetes_programs)

    def up(self) -> dict[str, str]:
        """What `up` printed."""
        return json.loads(self.call("up"))

    def down(self) -> None:
        self.call("down")

    def call(self, word: str) -> str:
        command = [sys.executable, "-m", "rehearsal.kubernetes", word, str(self.directory), "--lock", "jupyter.lock"]
        done = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, timeout=500)
        assert done.returncode == 0, f"{word} ended with status {done.returncode}"
        return done.stdout

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"

    def kubectl(self, *arguments: str, **kwargs) -> str:
        """What it printed; raises CalledProcessError where it failed, with its complaint in `stderr`."""
        command = [self.programs / "kubectl", f"--kubeconfig={self.kubeconfig}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, **kwargs).stdout

    def apply(self, *objects: dict, namespace: str = "default") -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl("apply", f"--namespace={namespace}", "--filename=-", input=text)
