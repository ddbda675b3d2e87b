"""`make lock`, and the installation of locks into .venv, with packages from a folder of wheels."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from on_this_computer.send_environment import sha256
from tests.checkout import Checkout
from tools import lock, python_packages, running

# The project's own package, whose build needs no other package.
PACKAGE = """[project]
name = "package"
version = "1.0"
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[tool.uv.build-backend]
"""
BACKEND = """import os, shutil
def build_editable(folder, config_settings=None, metadata_directory=None):
    return os.path.basename(shutil.copy("package-1.0-py3-none-any.whl", folder))
"""


def wheel(folder: Path, name: str, version: str, requires: str = "") -> str:
    """Writes an empty package into the folder and returns its line for a lock."""
    info, file = f"{name}-{version}.dist-info", folder / f"{name}-{version}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    texts = {
        f"{info}/METADATA": metadata + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    texts[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*texts, f"{info}/RECORD"])
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in texts.items():
            archive.writestr(path, text)
    return f"{name}=={version} --hash=sha256:{sha256(file)}\n"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder from which uv installs packages."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    config = tmp_path / "uv.toml"
    config.write_text(f'no-index = true\nfind-links = ["{folder}"]\n')
    monkeypatch.setenv("UV_CONFIG_FILE", str(config))
    return folder


def test_make_lock_without_uv_on_path_updates_only_locks_whose_inputs_changed(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = os.environ["PATH"].split(os.pathsep)
    monkeypatch.setenv("PATH", os.pathsep.join(each for each in folders if not Path(each, "uv").exists()))
    assert shutil.which("uv") is None
    wheel(wheels, "tiny", "1.0")
    wheel(wheels, "notebook", "1.0", "tiny")
    wheel(wheels, "notebook", "2.0", "tiny>1")
    project = Checkout(tmp_path).folder
    files = [*project.rglob("*.lock"), *project.rglob("*requirements*.txt"), project / "tools/uv.txt"]
    before = {file: file.read_text() for file in files}
    for name, text in {"environment.in": "tiny\n", "charts/jupyter.in": "notebook\n"}.items():
        project.joinpath(name).write_text(text)
        project.joinpath(name).with_suffix(".lock").unlink()

    def make(*variables: str) -> dict[str, str]:
        """The pins of each lock that has changed."""
        subprocess.run(["make", "lock", *variables], cwd=project, check=True, timeout=300)
        changed = {file: text for file in files if (text := file.read_text()) != before[file]}
        assert not [file for file, text in changed.items() if "://" in text or str(wheels) in text]
        return {file.name: re.findall(r"^[\w.-]+==[\w.]+", text, re.MULTILINE) for file, text in changed.items()}

    # environment.lock constrains jupyter.lock.
    made = {"environment.lock": ["tiny==1.0"], "jupyter.lock": ["notebook==1.0", "tiny==1.0"]}
    assert make() == made
    wheel(wheels, "tiny", "2.0")
    assert make() == made, "versions stay unless UPGRADE is set"
    assert make("UPGRADE=1") == {"environment.lock": ["tiny==2.0"], "jupyter.lock": ["notebook==2.0", "tiny==2.0"]}


def test_the_program_runs_with_the_clusters_version_of_a_package(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.joinpath("tools").mkdir()
    shutil.copy(python_packages.PROJECT / "tools/uv.txt", tmp_path / "tools")  # pins our version of uv
    wheel(tmp_path, "package", "1.0")
    tmp_path.joinpath("pyproject.toml").write_text(PACKAGE)
    tmp_path.joinpath("backend.py").write_text(BACKEND)
    monkeypatch.setattr(python_packages, "PROJECT", tmp_path)
    monkeypatch.setattr(python_packages, "PYTHON", sys.executable)
    tmp_path.joinpath("requirements.txt").write_text(
        wheel(wheels, "program", "1.0", "tiny<3") + wheel(wheels, "tiny", "1.0")
    )
    environment = tmp_path / "environment.lock"

    def installed() -> set[str]:
        return {path.name.removesuffix(".dist-info") for path in tmp_path.glob(".venv/lib/*/site-packages/*.dist-info")}

    environment.write_text(wheel(wheels, "tiny", "2.0") + wheel(wheels, "users", "1.0"))
    python_packages.install_venv("requirements.txt")
    assert installed() == {"package-1.0", "program-1.0", "tiny-2.0", "users-1.0"}
    environment.write_text(wheel(wheels, "tiny", "2.0"))
    python_packages.install_venv("requirements.txt")
    assert installed() == {"package-1.0", "program-1.0", "tiny-2.0"}

    environment.write_text(wheel(wheels, "tiny", "3.0"))
    for _ in range(2):  # a second `make up` must not continue with an environment that the first one rejected
        with pytest.raises(running.InstallError, match=r"`program` requires `tiny<3`.*\n.*environment\.in.*make lock"):
            python_packages.install_venv("requirements.txt")

    wrong = re.sub("sha256:.{8}", "sha256:00000000", wheel(wheels, "tiny", "2.0"))
    environment.write_text(wrong)
    with pytest.raises(running.InstallError, match="ash mismatch"):
        python_packages.install_venv("requirements.txt")


@pytest.mark.parametrize("name", lock.ENVIRONMENT | lock.PROJECTS)
def test_a_lock_names_its_inputs_and_contains_no_url(name: str) -> None:
    arguments = (lock.ENVIRONMENT | lock.PROJECTS)[name]
    text = running.engine.PROJECT.joinpath(name).read_text()
    assert text.splitlines()[1] == f"#    uv pip compile {' '.join(arguments)} -o {name}"
    assert "://" not in text
