"""The package `daskstack`: what is installed, and how it finds the project."""

import subprocess
import sys
import tomllib
import zipfile
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


def test_the_environments_python_imports_it_in_any_folder(tmp_path: Path) -> None:
    code = "import daskstack; print(daskstack.connect.__name__, daskstack.__file__)"
    assert run(sys.executable, "-c", code, folder=tmp_path).stdout.startswith("connect /")


def test_the_command_is_also_one_of_dasks(tmp_path: Path) -> None:
    for words in (("daskstack",), ("dask", "stack")):
        done = run(Path(sys.prefix, "bin", words[0]), *words[1:], "up", "--help", folder=tmp_path)
        assert "Create or change the cluster." in done.stdout, done.stderr


def test_a_wheel_has_the_package_alone_and_says_without_a_project_what_it_needs(tmp_path: Path) -> None:
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


def test_what_the_package_imports_is_in_its_requirements() -> None:
    """A wheel in another environment brings what it needs, and nothing that only the program needs."""
    named = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {name.split(">")[0] for name in named} == {"click", "distributed", "pydantic"}
    code = (
        "import sys, daskstack.cli, daskstack.connection\n"
        "print({'pulumi', 'yaml', 'settings', 'tools', 'components'} & {name.split('.')[0] for name in sys.modules})"
    )
    assert run(sys.executable, "-c", code, folder=PROJECT).stdout in ("set()\n", "{'yaml'}\n")  # yaml is Dask's


def test_the_project_is_the_packages_own_else_the_current_ones_else_the_variables(
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
