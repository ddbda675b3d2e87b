"""Reads the lock file of the environment for one Python version on Linux x86_64."""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Lock:
    """A requirements file that pins every package with `==` and hashes.

    `sha256` is the file's hash in hex. `packages` maps normalised names to versions, without packages that environment
    markers exclude. `inputs` are those of them that the lock's input file names, as far as the lock's comments tell.
    `requirements` are the lines of the same packages in pip's format, with hashes and without markers. `wheels` are the
    files of packages that no index has, which `daskstack lock` built. `archive` contains a whole environment, which
    replaces all of these; `archive_sha256` is its hash in hex and `archive_size` its size in bytes.
    """

    path: Path
    sha256: str
    packages: dict[str, str]
    inputs: tuple[str, ...]
    requirements: tuple[str, ...]
    wheels: tuple[Path, ...] = ()
    archive: Path | None = None
    archive_sha256: str = ""
    archive_size: int = 0


class LockError(ValueError):
    """`problems` is a list of pairs: the setting at fault (`lock` or `python`), and a message."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("\n".join(text for _, text in problems))
        self.problems = problems


def read(path: Path, python: str, dask: bool = True) -> Lock:
    """Read the lock at `path` for the minor version `python`, such as "3.11". LockError lists all problems.

    Markers are evaluated for the first release of that minor version. With `dask=False`, the lock need not pin Dask.
    """
    source = path.with_suffix(".in")
    source = source.relative_to(PROJECT) if source.is_relative_to(PROJECT) else source.name
    make = f"list the packages in {source}, then run `.venv/bin/daskstack lock {source} --python {python}`"
    if path.suffix == ".in":
        make += f" and write {path.with_suffix('.lock').name}"
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LockError([("lock", f"{path} is not a text file; {make}")]) from error
    except (OSError, ValueError) as error:  # ValueError if the path contains a null byte
        reason = getattr(error, "strerror", error)
        raise LockError([("lock", f"{path} cannot be read ({reason}); {make}")]) from error

    if text.startswith("{"):
        return _read_archive(path, content, python)
    found = _parse(path, content, text, python, dask, make)
    if lost := [wheel for wheel in found.wheels if not _is_locked(wheel, text)]:
        names = ", ".join(f"{wheel.parent.name}/{wheel.name}" for wheel in lost)
        raise LockError([("lock", f"{path.name} needs {names} as it was when it was locked; restore it, or {make}")])
    return found


def _read_archive(path: Path, content: bytes, python: str) -> Lock:
    """Read what `daskstack lock ARCHIVE` wrote. The archive itself is checked when it is copied to the machines."""
    try:
        found = json.loads(content)
        archive, packages = path.parent / found["archive"], found["packages"]
        sha256, size, there = found["sha256"], found["size"], found["python"]
    except (ValueError, KeyError, TypeError) as error:
        text = f"{path.name} is not what `daskstack lock ARCHIVE` writes ({error!r}); run it again"
        raise LockError([("lock", text)]) from error
    if not archive.is_file():
        raise LockError([("lock", f"{path.name} needs the archive {archive}; put it there")])
    if there != python:
        raise LockError([("python", f'{archive.name} has Python {there}; write "{there}"')])
    return Lock(path, hashlib.sha256(content).hexdigest(), packages, (), (), (), archive, sha256, size)


def _is_locked(wheel: Path, text: str) -> bool:
    try:
        return f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}" in text
    except OSError:
        return False


@lru_cache(maxsize=16)  # several checks read the same lock
def _parse(path: Path, content: bytes, text: str, python: str, dask: bool, make: str) -> Lock:
    requirements, lines, used, unhashed, invalid = [], {}, {}, [], []
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if not line:
            continue
        entry, *hashes = re.split(r"\s--hash=", line)
        try:
            requirement = Requirement(entry)
            applies = not requirement.marker or requirement.marker.evaluate(_machine(python))
        except (InvalidRequirement, UndefinedComparison, UndefinedEnvironmentName):
            invalid.append(entry)
            continue
        requirements.append(requirement)
        used[requirement] = applies
        lines[requirement] = " ".join([entry.split(";")[0].strip(), *(f"--hash={each.strip()}" for each in hashes)])
        if not hashes or not all(re.fullmatch(r"sha(256|384|512):[0-9a-f]+\s*", value) for value in hashes):
            unhashed.append(requirement.name)

    problems = []
    if invalid:
        found = ", ".join(line if len(line) < 80 else line[:76] + " ..." for line in invalid[:3])
        more = f" and {len(invalid) - 3} more" if invalid[3:] else ""
        problems.append(("lock", f"{path.name} has lines that pin no package: {found}{more}; {make}"))
    if not requirements:
        raise LockError(problems or [("lock", f"{path.name} is empty; {make}")])
    if unhashed:
        problems.append(("lock", f"{path.name} has no hashes for {', '.join(unhashed)}; {make}"))

    pinned, unpinned, packages, selected = set(), [], {}, []
    for requirement in requirements:
        name, version = canonicalize_name(requirement.name), _pin(requirement)
        if version is None:
            unpinned.append(name)
            continue
        pinned.add(name)
        if not used[requirement]:
            continue
        selected.append(lines[requirement])
        if (other := packages.setdefault(name, version)) != version:
            problems.append(("lock", f"{path.name} pins {name} to both {other} and {version}; {make}"))
    needed = ("dask", "distributed") if dask else ()
    unpinned += [name for name in needed if name not in pinned and name not in unpinned]
    if unpinned:
        problems.append(("lock", f"{path.name} does not pin {', '.join(unpinned)} with ==; {make}"))
    if absent := [name for name in ("dask", "distributed") if name in pinned and name not in packages]:
        problems.append(("python", f"{path.name} excludes {', '.join(absent)} for Python {python}; {make}"))
    versions = [packages[name] for name in ("dask", "distributed") if name in packages]
    if len(set(versions)) > 1:
        found = "dask {} and distributed {}".format(*versions)
        problems.append(("lock", f"{path.name} pins {found}, which must be equal; {make}"))

    if supported := _supported_pythons(text, python):
        problems.append(("python", f"{path.name} supports {supported}, not {python}; change the version or {make}"))
    if problems:
        raise LockError(problems)
    inputs = tuple(name for name in _inputs(text) if name in packages)
    wheels = tuple(path.parent / each for each in re.findall(r"^\s+# from (\S+\.whl)\s*$", text, re.MULTILINE))
    return Lock(path, hashlib.sha256(content).hexdigest(), packages, inputs, tuple(selected), wheels)


def _inputs(text: str) -> list[str]:
    """The packages to which uv has added the comment "via -r FILE"."""
    name, found = "", {}
    for line in text.splitlines():
        if pinned := re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line):
            name = canonicalize_name(pinned[0])
        elif name and re.match(r"\s+#\s+(via )?-r ", line):
            found[name] = True
    return list(found)


def _pin(requirement: Requirement) -> str | None:
    """The version that a requirement pins, or None."""
    match list(requirement.specifier):
        case [pin] if pin.operator in ("==", "===") and not pin.version.endswith("*"):
            return pin.version
    return None


def _machine(python: str) -> dict[str, str]:
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def _supported_pythons(text: str, python: str) -> str | None:
    """The Python versions that the lock's header declares if `python` is not one of them, else None."""
    command = re.search(r"^#\s+uv pip compile .*--python-version[ =](\d+\.\d+).*$", text, re.MULTILINE)
    if command is None:
        return None
    wanted, compiled = (tuple(map(int, version.split("."))) for version in (python, command[1]))
    if "--universal" in command[0]:
        return f"Python {command[1]} and newer" if wanted < compiled else None
    return f"only Python {command[1]}" if wanted != compiled else None
