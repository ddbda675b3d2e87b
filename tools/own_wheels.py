"""Builds wheels of the packages that an input file names by folder, git repository or URL, which no index has.

Needs only Python's standard library, and pip in .venv.
"""

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from daskstack.engine import PROJECT
from tools.running import InstallError, phase, run

LIMIT = 900  # seconds for one build
# Results of former builds would add deleted modules to the wheel.
IGNORED = shutil.ignore_patterns(".git", ".venv", "venv", "build", "dist", "*.egg-info", "__pycache__", "node_modules")
NAMED = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)\s*(?P<extras>\[[^]]*\])?\s*@\s*(?P<place>\S+)")
PLACE = re.compile(
    r"(?P<place>(?:\.{1,2}(?:/|$|\[)|/|~/|\w+\+\w+:|https?:|file:)[^\s[]*|[^\s[]+\.whl)(?P<extras>\[[^]]*\])?"
)
INCLUDE = re.compile(r"(?:-r|--requirement)[\s=]+(\S+)")
EDITABLE = re.compile(r"(?:-e|--editable)[\s=]+")


@dataclass(frozen=True)
class Source:
    """A line of an input file that names a package by its place."""

    file: Path
    line: str
    name: str
    place: str
    extras: str
    marker: str


def lines(file: Path) -> list[str | Source]:
    """The lines of an input file, with those of the files that it includes."""
    found: list[str | Source] = []
    for text in file.read_text().splitlines():
        line = re.sub(r"(^|\s)#.*", "", text).strip()
        if include := INCLUDE.fullmatch(line):
            found += lines(file.parent / include[1])
            continue
        entry, _, marker = EDITABLE.sub("", line).partition(" ;")
        match = NAMED.fullmatch(entry.strip()) or PLACE.fullmatch(entry.strip())
        if match is None:
            found.append(line)
            continue
        parts = {"name": "", **match.groupdict(default="")}
        found.append(Source(file, line, parts["name"], parts["place"], parts["extras"], marker.strip()))
    return found


def build(source: Source, folder: Path) -> Path:
    """The path of the source's wheel in `folder`. Raises InstallError if it cannot be built."""
    folder.mkdir(parents=True)
    place = f"{source.file.relative_to(PROJECT)} names {source.line}"
    what, local = source.place, None
    if not re.match(r"\w+\+\w+:|https?:", source.place):
        local = source.file.parent / Path(source.place.removeprefix("file://")).expanduser()
        what = str(local)
        if not local.exists():
            raise InstallError(f"{place}, but {local} does not exist; correct the path, which is relative to that file")
    if local and local.is_dir():
        if not (local / "pyproject.toml").exists() and not (local / "setup.py").exists():
            raise InstallError(
                f"{place}, but {local} has neither pyproject.toml nor setup.py; add one of them, or remove the line and"
                ' send the folder\'s modules with daskstack.connect(code="...")'
            )
        copy = folder / "source" / local.resolve().name
        shutil.copytree(local, copy, symlinks=True, ignore=IGNORED)
        if (local / ".git").exists():  # some packages take their version from it
            (copy / ".git").symlink_to((local / ".git").resolve())
        what = str(copy)
    elif local and local.suffix == ".whl":
        return usable(place, Path(shutil.copy(local, folder)))

    python = PROJECT / ".venv/bin/python"
    if not python.exists():
        raise InstallError(f"{place}, and .venv is needed to build it; run `python3 -m tools.install program` first")
    command = [python, "-m", "pip", "wheel", "--no-deps", "--disable-pip-version-check", "--no-input", "-w", folder]
    # With a fixed date in the archive, an unchanged source has the same hash again.
    environ = {"SOURCE_DATE_EPOCH": "315532800", "GIT_TERMINAL_PROMPT": "0", **os.environ}
    try:
        with phase(f"Building a wheel of {source.place}"):
            run(*command, f"{source.name} @ {what}" if source.name and not local else what, log="wheel", timeout=LIMIT,
                env=environ)  # fmt: skip
    except InstallError as error:
        raise InstallError(
            f"{place}, but pip cannot build a wheel of it. Check that this computer reaches the address and may read it"
            f" without a password prompt, and that the package builds. {error}"
        ) from None
    return usable(place, next(folder.glob("*.whl")))


def usable(place: str, wheel: Path) -> Path:
    if not re.search(r"[-.](any|\w*linux\w*_x86_64)\.whl$", wheel.name):
        raise InstallError(
            f"{place}, whose wheel {wheel.name} does not run on Linux x86_64 like the cluster; write a wheel for it,"
            " or run this command on such a computer"
        )
    return wheel


def name_and_version(wheel: Path) -> tuple[str, str]:
    name, version, *_ = wheel.name.split("-")
    return re.sub(r"[-_.]+", "-", name).lower(), version


def requirement(source: Source, wheel: Path) -> str:
    marker = f" ; {source.marker}" if source.marker else ""
    return f"{name_and_version(wheel)[0]}{source.extras} @ {wheel.as_uri()}{marker}"


def pinned(text: str, wheels: list[Path], folder: str) -> str:
    """A lock's text with these wheels pinned by version like other packages, each with a comment that names its file.

    Without our comment, nobody could tell a missing wheel from a package of the index.
    """
    for wheel in wheels:
        name, version = name_and_version(wheel)
        # uv keeps the hash of the former lock if the version is the same.
        hashed = hashlib.sha256(wheel.read_bytes()).hexdigest()
        entry = rf"^{re.escape(name)} @ file:\S+([^\n]*\n)(?: +--hash=[^\n]*\n)+"
        pin = rf"{name}=={version}\1    --hash=sha256:{hashed}\n    # from {folder}/{wheel.name}\n"
        text, count = re.subn(entry, pin, text, flags=re.MULTILINE)
        if not count:
            raise InstallError(f"uv did not lock {wheel.name}; its marker excludes every supported Python")
    return text
