"""Installs the packages of a stack's lock into the environment of a Python: python -m tools.sync LOCK PYTHON

PYTHON is the path of its interpreter. Other packages of the environment stay.
"""

import subprocess
import sys
from pathlib import Path

from daskstack.engine import PROJECT
from tools.python_packages import uv
from tools.running import InstallError


def sync(lock: Path, python: str) -> None:
    if lock.read_text().startswith("{"):
        archive = lock.with_suffix("")
        raise InstallError(f"the stack's environment is the archive {archive}: unpack it, and work in it")
    wheels = lock.with_suffix(".wheels")  # packages that no index has
    places = ["--find-links", wheels] if wheels.exists() else []
    install = [uv(), "pip", "install", "--require-hashes", "--no-deps", "--python", python]
    if subprocess.run([*install, "--requirement", lock, *places]).returncode:
        raise InstallError(f"uv could not install {lock.name} into the environment of {python}; its error is above")


if __name__ == "__main__":
    try:
        sync(PROJECT / sys.argv[1], sys.argv[2])
    except InstallError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
