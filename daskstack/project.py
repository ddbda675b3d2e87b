"""The project's folder: it holds the Pulumi program, the stack files and the tools.

Needs only Python's standard library.
"""

import os
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "DASKSTACK_PROJECT"
PACKAGE = Path(__file__).resolve().parent


def find(package: Path = PACKAGE, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The checkout that contains this package, else the current directory or one of its parents, else VARIABLE's."""
    here = Path.cwd()
    named = [Path(environ[VARIABLE]).resolve()] if environ.get(VARIABLE) else []
    return next((folder for folder in [package.parent, here, *here.parents, *named] if is_project(folder)), None)


def is_project(folder: Path) -> bool:
    return (folder / "Pulumi.yaml").is_file() and (folder / "daskstack" / "engine.py").is_file()
