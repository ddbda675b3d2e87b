"""The packages of this Python's environment, as an input file of a lock."""

import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from daskstack.connection import MATTERS
from daskstack.engine import PROJECT
from settings import lock
from tools.running import InstallError

TOOLS = {"daskstack", "pip", "setuptools", "uv", "wheel"}
PYTHON = ".".join(platform.python_version_tuple()[:2])
# The cluster's dashboard and check import them.
NEEDED = ("bokeh", "dask", "distributed", "pandas", "pyarrow")


@dataclass(frozen=True)
class Here:
    """`installed` maps names to versions, and `pinned` has those of them that the input file lists.

    `places` maps names of packages that come from no index to their folder, file or URL.
    """

    python: str
    installed: dict[str, str]
    pinned: dict[str, str]
    places: dict[str, str]

    def input(self, unpinned: Set[str], folder: Path) -> str:
        """An input file for this folder."""

        def line(name: str) -> str:
            if place := self.places.get(name):
                inside = Path(place).is_absolute() and Path(place).is_relative_to(PROJECT)
                return f"{name} @ {os.path.relpath(place, folder) if inside else place}"
            return f"{name}=={self.pinned[name]}" if name in self.pinned.keys() - unpinned else name

        return "\n".join(["# by daskstack lock --from-here", *map(line, sorted({*self.pinned, *NEEDED}))]) + "\n"

    def preferred(self) -> str:
        return "".join(f"{name}=={version}\n" for name, version in self.installed.items() if name not in self.places)


def read() -> Here:
    # An environment's first folder has precedence.
    all = reversed(list(importlib.metadata.distributions()))
    found: dict[str, importlib.metadata.Distribution] = {
        canonicalize_name(each.name): each for each in all if each.name
    }
    needs = {name: requirements(each) & found.keys() for name, each in found.items()}
    required = {name for names in needs.values() for name in names}
    listed: set[str] = set()
    reached: set[str] = set()
    # Packages that require each other in a circle follow the packages that no other one requires.
    for name in sorted(found, key=lambda each: (each in required, each)):
        if name not in reached:
            listed.add(name)
            new = {name}
            while new:
                reached |= new
                new = {each for user in new for each in needs[user]} - reached
    listed -= TOOLS | (of_the_program() if Path(sys.prefix) == PROJECT / ".venv" else set())
    listed |= found.keys() & {*MATTERS, *NEEDED}
    # The index may not have this build of a version.
    versions = {name: Version(each.version).public for name, each in found.items()}
    places = {name: place for name in listed if (place := place_of(found[name]))}
    return Here(PYTHON, versions, {name: versions[name] for name in listed}, places)


def requirements(package: importlib.metadata.Distribution) -> set[str]:
    """The names of the packages that it needs without extras."""
    parsed = [Requirement(each) for each in package.requires or ()]
    return {canonicalize_name(each.name) for each in parsed if not each.marker or each.marker.evaluate({"extra": ""})}


def of_the_program() -> set[str]:
    """Packages that .venv has for the program or its tests, and not for the cluster."""
    locks = [name for name in (PROJECT / ".venv/locks").read_text().split() if name.endswith(".txt")]
    found = {name for each in locks for name in lock.read(PROJECT / each, PYTHON, dask=False).packages}
    return found - lock.read(PROJECT / "environment.lock", PYTHON).packages.keys()


def place_of(package: importlib.metadata.Distribution) -> str:
    """The folder, file or URL from which a package was installed; empty if that was an index.

    Packages of conda name the folders of the computer that built them.
    """
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    url = urlsplit(origin.get("url", ""))
    if "vcs_info" in origin:
        folder = f"#subdirectory={origin['subdirectory']}" if "subdirectory" in origin else ""
        return f"{origin['vcs_info']['vcs']}+{origin['url']}@{origin['vcs_info']['commit_id']}{folder}"
    if url.scheme == "file":
        path = unquote(url.path)
        if re.search(r"\s", path):
            raise InstallError(f"{package.name} is installed from {path}, whose path has a space: move the folder")
        return path if Path(path).exists() else ""
    return origin.get("url", "")
