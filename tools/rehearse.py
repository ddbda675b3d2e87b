"""Rehearses a stack on this computer: python -m tools.rehearse STACK

A real Kubernetes of one node, the real program and engine, a real Dask job; then all of it goes again. The stack file
is not changed, and no account can be reached: see `engine.rehearsal`.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from daskstack import engine
from daskstack.engine import PROJECT
from tools.running import say

KEY = "dask:cluster"


class Rehearsal:
    """A stack's program on a Kubernetes of this computer, with state and settings in a folder apart."""

    def __init__(self, stack: str, folder: Path) -> None:
        self.stack, self.folder = stack, folder
        self.environ = engine.rehearsal(folder / "state")
        self.settings = folder / f"Pulumi.{stack}.yaml"

    def kubernetes(self, *words: str) -> str:
        command = [sys.executable, "-m", "rehearsal.kubernetes", *words, str(self.folder / "kubernetes")]
        done = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    def start(self, config: dict[str, Any]) -> None:
        """The Kubernetes, and the program's settings for it."""
        cluster = config["config"][KEY]
        locks = [cluster.get("environment", {}).get("lock", "environment.lock"), "jupyter.lock"]
        words = [word for lock in locks for word in ("--lock", str(PROJECT / lock))]
        found = json.loads(self.kubernetes("up", *words))
        self.set(config, found["kubeconfig"], found["context"])

    def set(self, config: dict[str, Any], kubeconfig: str, context: str) -> None:
        """A copy of the stack file, and of the project's name, for the engine writes beside it, too."""
        config["config"][KEY]["cluster"] |= {"kubeconfig": kubeconfig, "context": context}
        shutil.copy(PROJECT / "Pulumi.yaml", self.folder)
        self.settings.write_text(yaml.safe_dump(config))

    def pulumi(self, *words: str, **kwargs) -> subprocess.CompletedProcess:
        program = words[0] in ("up", "preview", "destroy", "refresh")
        command = [str(engine.engine()), "--cwd", str(PROJECT if program else self.folder), *words]
        command += ["--stack", self.stack, *(["--config-file", str(self.settings)] if program else [])]
        return subprocess.run(command, env=self.environ, check=True, **kwargs)

    def up(self) -> None:
        self.pulumi("stack", "select", "--create")
        self.pulumi("up", "--yes", "--skip-preview")

    def destroy(self) -> None:
        self.pulumi("destroy", "--yes", "--skip-preview")

    def stop(self) -> None:
        self.kubernetes("down")
        shutil.rmtree(self.folder)


@contextmanager
def timed(times: dict[str, float], phase: str) -> Iterator[None]:
    say(f"== {phase}")
    start = time.monotonic()
    try:
        yield
    finally:
        times[phase] = time.monotonic() - start


def main(stack: str) -> None:
    file = PROJECT / f"Pulumi.{stack}.yaml"
    config = yaml.safe_load(file.read_text()) if file.exists() else {}
    if config.get("config", {}).get(KEY, {}).get("target") != "gke":
        sys.exit(f"error: {file.name} is not a stack with `target: gke`, the one that can be rehearsed")
    rehearsal = Rehearsal(stack, engine.data_folder() / "rehearsal" / stack)
    times: dict[str, float] = {}
    try:
        with timed(times, "Kubernetes on this computer"):
            rehearsal.start(config)
        with timed(times, "pulumi up"):
            rehearsal.up()
        table = rehearsal.pulumi("stack", "output", "check", stdout=subprocess.PIPE, text=True).stdout
        with timed(times, "pulumi destroy"):
            rehearsal.destroy()
    finally:
        with timed(times, "Kubernetes goes"):
            rehearsal.stop()
    print(f"\n{table}")
    for phase, seconds in times.items():
        print(f"{phase:<28} {seconds:4.0f} s")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"error: {' '.join(map(str, error.cmd[:6]))} ... ended with {error.returncode}; its own words are above"
        )
