"""Installs uv, and Python packages into virtual environments with it."""

import importlib.util
import json
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

from daskstack.engine import PROJECT, digest
from tools.debian import install_packages
from tools.running import CACHE, InstallError, phase, run, say, which

PYTHON = "3.11"  # of environment.lock: notebooks and workers must have the same minor version
ENVIRONMENT = "environment.lock"
BENCH = PROJECT / "bench" / "requirements.txt"


def uv() -> str:
    """The path of uv: the one on PATH, or else our own, which this installs."""
    lock = PROJECT / "tools" / "uv.txt"
    folder = CACHE / "uv" / digest(lock)
    ours = folder / "bin" / "uv"
    if not which("uv") and not ours.exists():
        if not importlib.util.find_spec("ensurepip"):
            install_packages({"ensurepip": "python3-venv"}, "to install Python packages")
        with phase("Installing uv, which installs Python packages"):
            run(sys.executable, "-m", "venv", "--clear", folder, log="uv")
            run(folder / "bin" / "pip", "install", "--require-hashes", "-r", lock, log="uv")
    return which("uv") or str(ours)


def install_venv(*locks: str) -> None:
    """Installs these locks and the cluster's environment into .venv, unless they are installed already."""
    python = PROJECT / ".venv" / "bin" / "python"
    state = PROJECT / ".venv" / "locks"
    locks = (*locks, ENVIRONMENT)
    wanted = {f"{lock} {digest(PROJECT / lock)}" for lock in locks} | {f"daskstack {package()}"}
    usable = python.exists() and state.exists()
    if usable and wanted <= set(state.read_text().splitlines()):
        return
    if (PROJECT / ".venv").is_symlink():
        say(".venv is a link: its packages stay as they are, because another folder installs into it")
        return
    uv()
    with phase(f"Installing {', '.join(locks)} into .venv"):
        if not usable:
            make_venv(PROJECT / ".venv")
        state.unlink(missing_ok=True)
        requirements = [word for lock in locks for word in ("-r", lock)]
        # A package can be in both locks, with two versions. The cluster's version wins: notebooks that run in .venv
        # must have the same packages as the workers. `uv pip check` checks that the program can use that version.
        command = [uv(), "pip", "install", "--require-hashes", "--python", python, "--exact", "--no-deps"]
        built = (PROJECT / ENVIRONMENT).with_suffix(".wheels")
        wheels = ["--find-links", built] if built.exists() else []
        run(*command, *requirements, "--override", ENVIRONMENT, *wheels, log="venv", cwd=PROJECT)
        # Nothing is downloaded: the locks contain the package's build backend and dependencies.
        own = ("--no-index", "--no-deps", "--no-build-isolation", "--editable", PROJECT)
        run(uv(), "pip", "install", *own, "--python", python, log="venv", cwd=PROJECT)
        check = subprocess.run([uv(), "pip", "check", "--python", python], capture_output=True, text=True)
        if check.returncode:
            raise InstallError(
                f"the program cannot use the versions that {ENVIRONMENT} pins:\n{check.stderr.strip()}\n"
                "Allow other versions of these packages in environment.in, and run make lock"
            )
        state.write_text("\n".join(wanted))


def package() -> str:
    """A digest of the parts of pyproject.toml that define the package daskstack, which .venv contains too."""
    said = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    return digest(json.dumps([said["build-system"], said["project"], said["tool"]["uv"]]))


def make_venv(folder: Path) -> None:
    """Creates a virtual environment with the cluster's Python version, or else with the version that runs this."""
    try:
        run(uv(), "venv", "--clear", "--python", PYTHON, folder, log="python")
    except InstallError:
        say(f"Python {PYTHON} is not available: using {platform.python_version()}; `connect` requires {PYTHON}")
        run(uv(), "venv", "--clear", "--python", sys.executable, folder, log="python")


def bench_venv() -> Path:
    """The virtual environment of Ansible and dask-kubernetes, which share no packages with the program."""
    return CACHE / "bench" / digest(BENCH)


def install_bench_venv() -> None:
    folder = bench_venv()
    if (folder / "complete").exists():
        return
    uv()
    with phase(f"Installing {BENCH.relative_to(PROJECT)}"):
        run(uv(), "venv", "--clear", "--python", sys.executable, folder, log="bench")
        run(uv(), "pip", "sync", "--require-hashes", "--python", folder / "bin" / "python", BENCH, log="bench")
        (folder / "complete").touch()
