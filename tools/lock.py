"""Renews lock files of Python packages: python3 -m tools.lock [project]

Without an argument: the locks of the cluster's environment, from environment.in. With `project`: the locks of this
project's own tools. Versions stay as they are unless an input excludes them, or UPGRADE=1 is set.

Needs only Python's standard library.
"""

import os
import sys

from daskstack.engine import PROJECT
from tools.python_packages import PYTHON, uv
from tools.running import InstallError, one_at_a_time, phase, run

UNIVERSAL = ("--universal", "--python-version", PYTHON, "--generate-hashes", "--no-emit-index-url")
# uv's arguments for each lock; paths from the top of the project. A lock that constrains others precedes them.
ENVIRONMENT: dict[str, tuple[str, ...]] = {
    "environment.lock": (*UNIVERSAL, "environment.in"),
    "charts/jupyter.lock": (*UNIVERSAL, "charts/jupyter.in", "-c", "environment.lock"),
}
PROJECTS: dict[str, tuple[str, ...]] = {
    "tools/uv.txt": (*UNIVERSAL, "tools/uv.in"),  # first, so that the new uv writes the other files
    # Constrained, so that .venv has the versions of these files; see tools/python_packages.py.
    "requirements.txt": (*UNIVERSAL, "--group", "program", "-c", "environment.lock"),
    "tests/requirements.txt": (*UNIVERSAL, "--group", "test", "-c", "requirements.txt", "-c", "environment.lock"),
    "bench/requirements.txt": (*UNIVERSAL, "--group", "bench"),
    "docs/requirements.txt": (*UNIVERSAL, "--group", "pictures", "-c", "requirements.txt", "-c", "environment.lock"),
    "rehearsal/plugins/requirements.txt": (*UNIVERSAL, "rehearsal/plugins/requirements.in"),
    # The Python of the official chart's image.
    "charts/official.lock": ("--python-version", "3.10", *UNIVERSAL[3:], "charts/official.in"),
}


def main(locks: dict[str, tuple[str, ...]]) -> None:
    os.environ.setdefault("UV_SYSTEM_CERTS", "1")  # uv's own certificates do not include a private network's
    upgrade = ["--upgrade"] if os.environ.get("UPGRADE") else []
    with one_at_a_time():
        for lock, arguments in locks.items():
            program = uv()
            with phase(f"Resolving {lock}"):
                run(program, "pip", "compile", *upgrade, *arguments, "-o", lock, log="lock", cwd=PROJECT)


if __name__ == "__main__":
    try:
        main(PROJECTS if sys.argv[1:] == ["project"] else ENVIRONMENT)
    except InstallError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
