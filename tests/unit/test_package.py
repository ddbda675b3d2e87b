"""The package `daskstack`: its wheel, its requirements, and how it finds the project."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from daskstack import project
from daskstack.engine import PROJECT
from tools.python_packages import uv

FREE = {"PATH": "/usr/bin:/bin"}  # no PYTHONPATH, no DASKSTACK_PROJECT


def run(*words: str | Path, folder: Path, environ: dict[str, str] = FREE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True, timeout=120)


def checkout(folder: Path) -> Path:
    (folder / "daskstack").mkdir(parents=True)
    for name in ("Pulumi.yaml", "daskstack/engine.py"):
        (folder / name).touch()
    return folder


def test_the_package_can_be_imported_in_any_folder(tmp_path: Path) -> None:
    code = "import daskstack; print(daskstack.connect.__name__, daskstack.__file__)"
    assert run(sys.executable, "-c", code, folder=tmp_path).stdout.startswith("connect /")


def test_dask_stack_runs_the_same_command(tmp_path: Path) -> None:
    for words in (("daskstack",), ("dask", "stack")):
        done = run(Path(sys.prefix, "bin", words[0]), *words[1:], "up", "--help", folder=tmp_path)
        assert "Create or change the cluster." in done.stdout, done.stderr


def test_a_wheel_contains_only_the_package_and_asks_for_a_project(tmp_path: Path) -> None:
    build = run(
        uv(),
        "build",
        "--wheel",
        "--offline",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--out-dir",
        tmp_path,
        PROJECT,
        folder=tmp_path,
    )
    assert build.returncode == 0, build.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    info = {name for name in files if name.startswith("daskstack-")}
    modules = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "daskstack").rglob("*.py")}
    assert {name for name in files - info if not name.endswith("/")} == modules
    environ = FREE | {"PYTHONPATH": str(tmp_path / "installed")}
    done = run(sys.executable, "-m", "daskstack", "status", folder=tmp_path, environ=environ)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {tmp_path} and the folders above it are not a checkout of daskstack: change to one, or set"
        " DASKSTACK_PROJECT to its path\n"
    )


def test_the_requirements_are_exactly_the_imported_packages() -> None:
    """A wheel works in another environment, and does not install packages that only the program needs."""
    required = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    code = [path.read_text() for path in (PROJECT / "daskstack").rglob("*.py")]
    found = {name.split(".")[0] for text in code for name in imported(text)}
    needed = {{"pyyaml": "yaml"}.get(name, name) for name in (each.split(">")[0] for each in required)}
    assert found - sys.stdlib_module_names - {"daskstack"} == needed
    loaded = (
        "import sys, daskstack.cli, daskstack.connection\n"
        "print({'pulumi', 'yaml', 'settings', 'tools', 'components'} & {name.split('.')[0] for name in sys.modules})"
    )
    # Dask loads yaml.
    assert run(sys.executable, "-c", loaded, folder=PROJECT).stdout in ("set()\n", "{'yaml'}\n")


def imported(code: str) -> Iterator[str]:
    """The modules that this code imports by absolute name."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_the_project_is_found_by_package_then_current_folder_then_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (checkout(tmp_path / name) for name in ("first", "second", "third"))
    installed = tmp_path / "elsewhere" / "daskstack"
    installed.mkdir(parents=True)
    below = second / "docs"
    below.mkdir()
    variable = {project.VARIABLE: str(third)}
    monkeypatch.chdir(below)
    assert project.find(first / "daskstack", variable) == first
    assert project.find(installed, variable) == second
    monkeypatch.chdir(tmp_path)
    assert project.find(installed, variable) == third
    assert project.find(installed, {}) is None


def test_no_module_is_longer_than_300_lines() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in (PROJECT / "daskstack").glob("*.py")}
    assert [name for name, length in lengths.items() if length > 300] == []
