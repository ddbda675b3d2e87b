"""Replaces an input file and renews its lock: python3 -m tools.lock_from [FILE] [--python VERSION] [--yes]

The new input lists the packages of this Python's environment, or those of FILE if that is a conda file such as
environment.yml. FILE.in is environment.in by default, with which Jupyter's lock is renewed too. The differences of the
locks are printed first, and nothing is written without a yes.
"""

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

from daskstack.connection import MATTERS
from daskstack.engine import PROJECT
from settings import lock as locked
from settings.common import JUPYTER_LOCK
from tools import conda_file, lock, packages_here
from tools.running import InstallError

INPUT = "environment.in"
WHEELS = "--no-build"  # packages without wheels are an error now, and not when machines install them
ASIDE = ".new-"  # before the names of files that wait for the yes


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="daskstack lock")
    parser.add_argument("file", nargs="?", default=INPUT)
    parser.add_argument("--python")
    parser.add_argument("--yes", action="store_true")
    options = parser.parse_args(words)
    path = Path(os.path.abspath(PROJECT / options.file))
    if path.is_relative_to(PROJECT):
        options.file = str(path.relative_to(PROJECT))
    try:
        (from_conda if options.file.endswith((".yml", ".yaml")) else from_here)(options)
    except InstallError as error:
        raise InstallError(f"{error}\nNothing was written".replace(ASIDE, "")) from None


def from_here(options: argparse.Namespace) -> None:
    here = packages_here.read()
    locks = chosen(options.file, options.python, here.python)
    fixed: dict[str, str] = {}
    if options.file != INPUT:  # notebooks on the cluster install both locks
        fixed = locked.read(PROJECT / JUPYTER_LOCK, here.python, dask=False).packages
    others = {name: version for name, version in sorted(here.pinned.items()) if fixed.get(name, version) != version}
    if matters := [f"{name} {version}" for name, version in others.items() if name in MATTERS]:
        raise InstallError(
            f"this environment has {', '.join(matters)}, but {JUPYTER_LOCK} pins other versions, which {options.file}"
            f" must have, too. Leave the file name out: then {INPUT} and {JUPYTER_LOCK} get these versions"
        )
    for name in others:
        print(f"{name} is {fixed[name]} in {JUPYTER_LOCK} and in the new lock, but {others[name]} here")
    text = here.input(fixed.keys(), (PROJECT / options.file).parent)
    replace(locks, options.file, text, options.yes, here.preferred())


def from_conda(options: argparse.Namespace) -> None:
    file = PROJECT / options.file
    wanted = conda_file.read(file)
    source = str(Path(options.file).with_suffix(".in"))
    locks = chosen(source, options.python, wanted.python)
    lost = conda_file.missing(wanted, lock.version_of(next(iter(locks.values()))))
    for words, why in {**dict.fromkeys(wanted.others, "no Python package"), **lost}.items():
        print(f"left out: {words} ({why})")
    if lost or wanted.others:
        print(
            "Add system libraries and programs that your packages need to environment.system in the stack's file: their"
            " names in Debian or Red Hat. Python packages bring most libraries with them, those of CUDA included."
        )
    if wanted.python:
        print(
            f'For the Python of {file.name}, write `environment: {{python: "{wanted.python}"}}` into the stack\'s file.'
        )
    try:
        replace(locks, source, wanted.input(lost, file.name), options.yes)
    except InstallError as error:
        if source == INPUT or "No solution found" not in str(error):
            raise
        remedy = f"if {JUPYTER_LOCK} pins another version, move {file.name} to {PROJECT / 'environment.yml'}"
        raise InstallError(f"{error}\n{remedy}: then that lock follows") from None


def chosen(source: str, python: str | None, here: str) -> dict[str, tuple[str, ...]]:
    """The locks to renew: with the default input also Jupyter's, which must have the same versions.

    .venv needs them, so they support its Python.
    """
    if source == INPUT:
        locks = lock.chosen(["--python", python] if python else [])
        return {name: locks[name] for name in ("environment.lock", JUPYTER_LOCK)}
    oldest = python or here
    return lock.chosen([source, *(["--python", oldest] if oldest else [])], new=True)


def replace(locks: dict[str, tuple[str, ...]], source: str, text: str, yes: bool, preferred: str | None = None) -> None:
    """Renews locks with a new text of the first one's input file. Shows the differences first, and asks unless `yes`.

    The first lock gets the versions of `preferred`, which are lines of a lock, where its input allows them; by default
    it keeps its own versions. Raises InstallError if the answer is no.
    """
    sources = [each for arguments in locks.values() for each in arguments if each.endswith(".in")]
    aside = {name: PROJECT / Path(name).with_name(ASIDE + Path(name).name) for name in (*sources, *locks)}

    def renamed(words: str) -> str:
        for name in map(Path, aside):
            words = re.sub(rf"(?<![\w.-]){re.escape(name.name)}\b", ASIDE + name.name, words)
        return words

    try:
        for name, file in aside.items():
            if (PROJECT / name).exists():
                file.write_text(renamed((PROJECT / name).read_text()))
        aside[source].write_text(text)
        if preferred is not None:
            aside[next(iter(locks))].write_text(preferred)
        lock.main({renamed(name): (WHEELS, *map(renamed, arguments)) for name, arguments in locks.items()})
        for name in locks:
            print(difference(name, (PROJECT / name, aside[name])))
        if not yes and not confirmed(f"Write {', '.join((source, *locks))}?"):
            raise InstallError("you did not confirm it: answer y, or add --yes")
        for name, file in aside.items():
            wheels = file.with_suffix(".wheels")
            file.write_text(file.read_text().replace(ASIDE, "").replace(f"{WHEELS} ", ""))
            file.rename(PROJECT / name)
            if name in locks:
                shutil.rmtree((PROJECT / name).with_suffix(".wheels"), ignore_errors=True)
                if wheels.exists():
                    wheels.rename((PROJECT / name).with_suffix(".wheels"))
    finally:
        for file in aside.values():
            file.unlink(missing_ok=True)
            shutil.rmtree(file.with_suffix(".wheels"), ignore_errors=True)


def difference(name: str, files: tuple[Path, Path]) -> str:
    """The packages that a new lock adds, removes and changes."""
    before, after = (pins(file.read_text()) if file.exists() else {} for file in files)
    lines = []
    for package in sorted(before.keys() | after.keys()):
        old, new = (" or ".join(versions.get(package, ())) for versions in (before, after))
        if old != new:
            sign = "~" if old and new else "+" if new else "-"
            lines.append(f"  {sign} {package} {' → '.join(filter(None, (old, new)))}")
    return "\n".join([f"{name}:", *lines] if lines else [f"{name}: the same packages"])


def pins(text: str) -> dict[str, list[str]]:
    """The versions of each package in a lock, of which markers can select one."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE):
        found.setdefault(name, []).append(version)
    return found


def confirmed(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InstallError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
