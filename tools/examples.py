"""Runs the examples on the stack STACK (default: dev): python -m tools.examples [NAME...]

Runs them in an environment with the packages of the stack's lock, of Jupyter for notebooks, and of daskstack. The files
that examples write on this computer are deleted. Says which examples the stack cannot run, and why.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from daskstack import engine
from daskstack.engine import PROJECT, digest
from tools.python_packages import uv
from tools.running import CACHE, InstallError, made_whole, one_at_a_time, phase, run, say

EXAMPLES = PROJECT / "examples"
OTHERS = [PROJECT / "charts" / "jupyter.lock", PROJECT / "requirements.txt"]
NOTEBOOK = """
import nbclient, nbformat, sys

client = nbclient.NotebookClient(nbformat.read(sys.argv[1], 4), kernel_name="python3", timeout=600)
client.create_kernel_manager().transport = "ipc"  # other users could read TCP
client.execute()
"""
LIMIT = 900  # seconds for one example


def examples(names: list[str]) -> list[Path]:
    found = sorted([*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")])
    if unknown := set(names) - {path.stem for path in found}:
        known = ", ".join(path.stem for path in found)
        raise InstallError(f"there is no example {', '.join(sorted(unknown))}; the examples are {known}")
    return [path for path in found if not names or path.stem in names]


def environment(lock: Path, python: str) -> Path:
    """The folder of an environment with the packages of the lock, of Jupyter and of daskstack."""
    folder = CACHE / "examples" / digest(lock, *OTHERS, python)
    if not folder.exists():
        with (
            one_at_a_time(),
            phase(f"Installing {lock.relative_to(PROJECT)} for the examples"),
            made_whole(folder) as new,
        ):
            run(uv(), "venv", "--python", python, "--relocatable", new / "venv", log="examples")
            install = (uv(), "pip", "install", "--require-hashes", "--no-deps", "--python", new / "venv/bin/python")
            others = [word for path in OTHERS for word in ("-r", path)]
            # A package can be in several locks, in different versions. The version of the stack wins.
            run(*install, "-r", lock, *others, "--override", lock, log="examples", cwd=PROJECT)
    return folder / "venv"


def run_example(path: Path, venv: Path, stack: str) -> bool:
    """Runs the example in an empty folder and prints its output and duration. Returns whether it succeeded."""
    command = [venv / "bin/python", path]
    if path.suffix == ".ipynb":
        command = [venv / "bin/python", "-c", NOTEBOOK, path]
    variables = {"STACK": stack, "PYTHONPATH": str(PROJECT), "DASKSTACK_PROJECT": str(PROJECT)}
    say(f"== {path.relative_to(PROJECT)}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            status = subprocess.run(command, cwd=folder, env={**os.environ, **variables}, timeout=LIMIT).returncode
        except subprocess.TimeoutExpired:
            status = f"timed out after {LIMIT} s"
    say(f"   {'done' if status == 0 else f'failed ({status})'} in {time.monotonic() - start:.0f} s")
    return status == 0


def needs(path: Path, what: str) -> bool:
    """Whether an example says so, on one line or two."""
    return f"Needs {what}" in " ".join(path.read_text().split())


def main(names: list[str]) -> None:
    stack = os.environ.get("STACK") or "dev"
    chosen = examples(names)
    outputs = engine.cluster(stack)
    client = outputs["client"]
    left = {}
    for path in chosen:
        if needs(path, "environments/ml.lock") and "lightgbm" not in client.packages:
            left[path] = (
                f"needs more packages than {client.lock} has: set environment.lock to environments/ml.lock in"
                f" Pulumi.{stack}.yaml, and run `make up STACK={stack}`"
            )
        if needs(path, "the shared directory") and not outputs.get("data"):
            left[path] = f"needs the shared directory: write data.size, and run `make up STACK={stack}`"
    venv = environment(PROJECT / client.lock, client.python)
    possible = [path for path in chosen if path not in left]
    failed = [path for path in possible if not run_example(path, venv, stack)]
    for path, reason in left.items():
        say(f"not run: {path.name} {reason}")
    say(f"{len(possible) - len(failed)} of {len(chosen)} examples succeeded on stack {stack}")
    if failed:
        sys.exit(f"error: {', '.join(path.name for path in failed)} failed; the reasons are above")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InstallError, engine.EngineError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
