"""What the environment's lock pins, for one Python on Linux x86_64."""

import hashlib
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

    `sha256` is that of the file, in hex; `packages` maps normalised names to versions, without those that
    the lock's environment markers leave out; `requirements` are the lines of the same ones, with hashes and
    without markers, as pip reads them.
    """

    path: Path
    sha256: str
    packages: dict[str, str]
    requirements: tuple[str, ...]


class LockError(ValueError):
    """`problems`: pairs of the setting at fault, `lock` or `python`, and a sentence about it."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("\n".join(text for _, text in problems))
        self.problems = problems


def read(path: Path, python: str, dask: bool = True) -> Lock:
    """The lock at `path` for the minor version `python`, such as "3.11"; LockError lists all that is wrong.

    Markers are judged for that minor version's first release. Without `dask` the lock need not pin Dask.
    """
    # The command must not write over the list that it reads.
    output = path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path.name
    output = "environment.lock" if path.suffix == ".in" else output
    make = (
        f"make it with `uv pip compile environment.in -o {output} --generate-hashes"
        f" --no-emit-index-url --universal --python-version {python}`"
    )
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LockError([("lock", f"{path} is not a text file; {make}")]) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", error)
        raise LockError([("lock", f"{path} cannot be read ({reason}); {make}")]) from error

    return _judged(path, content, text, python, dask, make)


@lru_cache(maxsize=16)  # every check of the settings reads the lock
def _judged(path: Path, content: bytes, text: str, python: str, dask: bool, make: str) -> Lock:
    requirements, lines, used, bare, odd = [], {}, {}, [], []
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if not line:
            continue
        entry, *hashes = re.split(r"\s--hash=", line)
        try:
            requirement = Requirement(entry)
            applies = not requirement.marker or requirement.marker.evaluate(_machine(python))
        except (InvalidRequirement, UndefinedComparison, UndefinedEnvironmentName):
            odd.append(entry)
            continue
        requirements.append(requirement)
        used[requirement] = applies
        lines[requirement] = " ".join([entry.split(";")[0].strip(), *(f"--hash={each.strip()}" for each in hashes)])
        if not hashes or not all(re.fullmatch(r"sha(256|384|512):[0-9a-f]+\s*", value) for value in hashes):
            bare.append(requirement.name)

    problems = []
    if odd:
        found = ", ".join(line if len(line) < 80 else line[:76] + " ..." for line in odd[:3])
        more = f" and {len(odd) - 3} more" if odd[3:] else ""
        problems.append(("lock", f"{path.name} has lines that pin no package: {found}{more}; {make}"))
    if not requirements:
        raise LockError(problems or [("lock", f"{path.name} is empty; {make}")])
    if bare:
        problems.append(("lock", f"{path.name} has no hashes for {', '.join(bare)}; {make}"))

    pinned, loose, packages, kept = set(), [], {}, []
    for requirement in requirements:
        name, version = canonicalize_name(requirement.name), _pin(requirement)
        if version is None:
            loose.append(name)
            continue
        pinned.add(name)
        if not used[requirement]:
            continue
        kept.append(lines[requirement])
        if (other := packages.setdefault(name, version)) != version:
            problems.append(("lock", f"{path.name} pins {name} to both {other} and {version}; {make}"))
    needed = ("dask", "distributed") if dask else ()
    loose += [name for name in needed if name not in pinned and name not in loose]
    if loose:
        problems.append(("lock", f"{path.name} does not pin {', '.join(loose)} with ==; {make}"))
    if absent := [name for name in ("dask", "distributed") if name in pinned and name not in packages]:
        problems.append(("python", f"{path.name} leaves out {', '.join(absent)} for Python {python}; {make}"))
    versions = [packages[name] for name in ("dask", "distributed") if name in packages]
    if len(set(versions)) > 1:
        found = "dask {} and distributed {}".format(*versions)
        problems.append(("lock", f"{path.name} pins {found}, which must agree; {make}"))

    if excluded := _exclusion(text, python):
        problems.append(("python", f"{path.name} is for {excluded}, not {python}; write that or {make}"))
    if problems:
        raise LockError(problems)
    return Lock(path, hashlib.sha256(content).hexdigest(), packages, tuple(kept))


def _pin(requirement: Requirement) -> str | None:
    """The one version that a requirement allows, or None."""
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


def _exclusion(text: str, python: str) -> str | None:
    """The Pythons that the command in the lock's header made it for, where `python` is not among them."""
    command = re.search(r"^#\s+uv pip compile .*--python-version[ =](\d+\.\d+).*$", text, re.MULTILINE)
    if command is None:
        return None
    wanted, made = (tuple(map(int, version.split("."))) for version in (python, command[1]))
    if "--universal" in command[0]:
        return f"Python {command[1]} and newer" if wanted < made else None
    return f"Python {command[1]} alone" if wanted != made else None
