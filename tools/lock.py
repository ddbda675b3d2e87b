"""Renews lock files of Python packages: python3 -m tools.lock [project | FILE.in] [--python VERSION]

Without an argument: the locks of the cluster's environment, from environment.in. With FILE.in: the lock beside it. With
`project`: the locks of this project's own tools. Versions stay as they are unless an input excludes them, or UPGRADE=1
is set.

Needs only Python's standard library; see tools/own_wheels.py.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from daskstack.engine import PROJECT
from tools import own_wheels
from tools.python_packages import PYTHON, uv
from tools.running import InstallError, one_at_a_time, phase, run

UNIVERSAL = ("--universal", "--python-version", PYTHON, "--generate-hashes", "--no-emit-index-url")
# uv's arguments for each lock; paths from the top of the project. A lock that constrains others precedes them.
ENVIRONMENT: dict[str, tuple[str, ...]] = {
    "environment.lock": (*UNIVERSAL, "environment.in"),
    "charts/jupyter.lock": (*UNIVERSAL, "charts/jupyter.in", "-c", "environment.lock"),
    "environments/ml.lock": (*UNIVERSAL, "environments/ml.in", "-c", "environment.lock", "-c", "charts/jupyter.lock"),
    # No other lock constrains it, because Dask-CUDA requires an older Dask.
    "environments/gpu.lock": (*UNIVERSAL, "environments/gpu.in"),
}
PROJECTS: dict[str, tuple[str, ...]] = {
    "tools/uv.txt": (*UNIVERSAL, "tools/uv.in"),  # first, so that the new uv writes the other files
    # Constrained, so that .venv has the versions of these files; see tools/python_packages.py.
    "requirements.txt": (*UNIVERSAL, "--group", "program", "-c", "environment.lock"),
    "tests/requirements.txt": (*UNIVERSAL, "--group", "test", "-c", "requirements.txt", "-c", "environment.lock"),
    "bench/requirements.txt": (*UNIVERSAL, "--group", "bench"),
    "docs/requirements.txt": (*UNIVERSAL, "--group", "pictures", "-c", "requirements.txt", "-c", "environment.lock"),
    "rehearsal/plugins/requirements.txt": (*UNIVERSAL, "rehearsal/plugins/requirements.in"),
    # For a test of packages that need a system library.
    # The Python of the official chart's image.
    "charts/official.lock": ("--python-version", "3.10", *UNIVERSAL[3:], "charts/official.in"),
}


def main(locks: dict[str, tuple[str, ...]]) -> None:
    os.environ.setdefault("UV_SYSTEM_CERTS", "1")  # uv's own certificates do not include a private network's
    with one_at_a_time():
        for lock, arguments in locks.items():
            compile_lock(lock, arguments)


def chosen(words: list[str], new: bool = False) -> dict[str, tuple[str, ...]]:
    """uv's arguments for each lock that the command line selects; with `new`, its input file need not exist."""
    parser = argparse.ArgumentParser(prog="daskstack lock")
    parser.add_argument("what", nargs="?")
    parser.add_argument("--python")
    options = parser.parse_args(words)
    if options.what == "project":
        return PROJECTS
    locks = ENVIRONMENT
    if options.what:
        file = Path(os.path.abspath(PROJECT / options.what))
        exists = file.parent.is_dir() if new else file.is_file()
        if file.suffix != ".in" or not exists or not file.is_relative_to(PROJECT):
            raise InstallError(
                f"{options.what} is not an input file in {PROJECT}: write the names of packages into a file such as"
                " environments/mine.in, one per line, and give its path relative to that folder"
            )
        name = file.relative_to(PROJECT)
        # Notebooks on the cluster install both locks.
        own = (*UNIVERSAL, str(name), "-c", "charts/jupyter.lock")
        lock = str(name.with_suffix(".lock"))
        locks = {lock: ENVIRONMENT.get(lock, own)}
    return {lock: with_python(arguments, options.python or python_of(lock)) for lock, arguments in locks.items()}


def python_of(lock: str) -> str:
    """The Python version for which a lock was made."""
    path = PROJECT / lock
    found = re.search(r"^#.* --python-version (\S+)", path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1] if found else PYTHON


def version_of(arguments: tuple[str, ...]) -> str:
    return arguments[arguments.index("--python-version") + 1]


def with_python(arguments: tuple[str, ...], python: str) -> tuple[str, ...]:
    at = arguments.index("--python-version") + 1
    return (*arguments[:at], python, *arguments[at + 1 :])


def compile_lock(lock: str, arguments: tuple[str, ...]) -> None:
    program = uv()
    command = (program, "pip", "compile", *(["--upgrade"] if os.environ.get("UPGRADE") else []))
    path, source = PROJECT / lock, next((each for each in arguments if each.endswith(".in")), "")
    folder = path.with_suffix(".wheels")
    named = own_wheels.lines(PROJECT / source) if source else []
    if not any(isinstance(each, own_wheels.Source) for each in named):
        with phase(f"Resolving {lock}"):
            run(*command, *arguments, "-o", lock, log="lock", cwd=PROJECT)
        shutil.rmtree(folder, ignore_errors=True)
        return

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".lock-") as temporary:
        new, wheels, entries = Path(temporary), [], []
        for number, each in enumerate(named):
            if isinstance(each, own_wheels.Source):
                wheels.append(own_wheels.build(each, new / str(number)))
                each = own_wheels.requirement(each, wheels[-1])
            entries.append(each)
        # uv reads the built wheels' dependencies. It would write these files' paths into the lock.
        written, output = new / "input.in", new / "output.lock"
        written.write_text("\n".join(entries) + "\n")
        if path.exists():
            shutil.copy(path, output)
        with phase(f"Resolving {lock}"):
            replaced = [str(written) if word == source else word for word in arguments]
            run(*command, *replaced, "-o", output, log="lock", cwd=PROJECT)
        text = output.read_text()
        for file, name in {written: source, output: lock}.items():
            text = text.replace(str(file), name).replace(str(file.relative_to(PROJECT)), name)
        text = own_wheels.pinned(text, wheels, folder.name)
        kept = new / folder.name
        kept.mkdir()
        for wheel in wheels:
            shutil.copy(wheel, kept)
        path.write_text(text)
        shutil.rmtree(folder, ignore_errors=True)
        kept.rename(folder)


if __name__ == "__main__":
    try:
        main(chosen(sys.argv[1:]))
    except InstallError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
