"""`make lock`, and the installation of locks into .venv, with packages from a folder of wheels."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import settings
from on_this_computer.send_environment import sha256
from tests.checkout import Checkout
from tests.wheels import wheel
from tools import lock, own_wheels, python_packages, running

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
    inputs = {"environment.in": "tiny\n", "charts/jupyter.in": "notebook\n"}
    inputs["environments/ml.in"] = "-r ../environment.in\nnotebook\n"
    inputs["environments/gpu.in"] = "tiny<2\n"
    for name, text in inputs.items():
        project.joinpath(name).write_text(text)
        project.joinpath(name).with_suffix(".lock").unlink()

    def make(*variables: str) -> dict[str, str]:
        """The pins of each lock that has changed."""
        subprocess.run(["make", "lock", *variables], cwd=project, check=True, timeout=300)
        changed = {file: text for file in files if (text := file.read_text()) != before[file]}
        assert not [file for file, text in changed.items() if "://" in text or str(wheels) in text]
        return {file.name: re.findall(r"^[\w.-]+==[\w.]+", text, re.MULTILINE) for file, text in changed.items()}

    # environment.lock constrains the others, except for that of GPUs.
    both = ["notebook==1.0", "tiny==1.0"]
    one = ["tiny==1.0"]
    made = {"environment.lock": one, "jupyter.lock": both, "ml.lock": both, "gpu.lock": one}
    assert make() == made
    wheel(wheels, "tiny", "2.0")
    assert make() == made, "versions stay unless UPGRADE is set"
    both = ["notebook==2.0", "tiny==2.0"]
    new = {"environment.lock": ["tiny==2.0"], "jupyter.lock": both, "ml.lock": both, "gpu.lock": one}
    assert make("UPGRADE=1") == new


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


# A package that builds itself with the standard library alone.
OWN = """[project]
name = "own"
version = "1.0"
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
OWN_BACKEND = """import pathlib, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name, info = "own-1.0-py3-none-any.whl", "own-1.0.dist-info"
    texts = {"own.py": pathlib.Path("own.py").read_text(), f"{info}/RECORD": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\\nName: own\\nVersion: 1.0\\nRequires-Dist: tiny\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"}
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as archive:
        for path, text in texts.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return name
"""


def test_own_packages_are_built_and_pinned_by_hash_like_packages_of_the_index(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wheels / "third").mkdir()  # not found in the index
    wheel(wheels, "tiny", "1.0")
    wheel(wheels, "tiny", "2.0")
    wheel(wheels / "third", "third", "3.0")
    project = Checkout(tmp_path).folder
    monkeypatch.setattr(lock, "PROJECT", project)
    monkeypatch.setattr(own_wheels, "PROJECT", project)
    package = project / "environments" / "own"
    package.mkdir()
    for name, text in {"pyproject.toml": OWN, "backend.py": OWN_BACKEND, "own.py": "1\n"}.items():
        package.joinpath(name).write_text(text)
    repository = tmp_path / "repository"
    shutil.copytree(package, repository)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "t"]):
        subprocess.run(["git", *words], cwd=repository, check=True)
    file = project / "environments" / "mine.in"
    locked = file.with_suffix(".lock")

    def resolve(*lines: str) -> tuple[list[str], str]:
        """The pins, and the hash of the package `own`."""
        file.write_text("\n".join(lines))
        words = lock.chosen(["environments/mine.in"])
        arguments = {name: value[: value.index("-c")] for name, value in words.items()}
        lock.main(arguments)
        text = locked.read_text()
        assert "://" not in text and str(tmp_path) not in text and "-r environments/mine.in" in text
        kept = {sha256(each): each.name for each in file.with_suffix(".wheels").iterdir()}
        assert set(kept) <= set(re.findall(r"sha256:(\w+)", text))
        hashes = {name: each for each, name in kept.items()}
        return re.findall(r"^[\w.-]+==[\w.]+", text, re.MULTILINE), hashes["own-1.0-py3-none-any.whl"]

    pins, first = resolve("-e ./own", f"third @ {(wheels / 'third/third-3.0-py3-none-any.whl').as_uri()}", "tiny<2")
    assert pins == ["own==1.0", "third==3.0", "tiny==1.0"]
    file.with_name("more.in").write_text("./own  # comment\n")
    package.joinpath("own.py").write_text("2\n")
    pins, changed = resolve("-r more.in")
    assert pins == ["own==1.0", "tiny==1.0"] and changed != first
    assert resolve(f"own @ git+{repository.as_uri()}") == (pins, first), "an unchanged source has the same hash"

    before = locked.read_text()
    for line, message in {
        "git+file:///nowhere/x": "Check that this computer reaches the address",
        "./missing": "does not exist; correct the path",
        "./": "neither pyproject.toml nor setup.py",
    }.items():
        with pytest.raises(running.InstallError, match=re.escape(f"environments/mine.in names {line}, but")) as caught:
            resolve(line)
        assert message in str(caught.value)
    assert locked.read_text() == before
    file.write_text("tiny\n")
    lock.main({"environments/mine.lock": (*lock.UNIVERSAL, "environments/mine.in")})
    assert not file.with_suffix(".wheels").exists()


@pytest.mark.parametrize("name", lock.ENVIRONMENT | lock.PROJECTS)
def test_a_lock_names_its_inputs_and_contains_no_url(name: str) -> None:
    arguments = (lock.ENVIRONMENT | lock.PROJECTS)[name]
    text = running.engine.PROJECT.joinpath(name).read_text()
    assert text.splitlines()[1] == f"#    uv pip compile {' '.join(arguments)} -o {name}"
    assert "://" not in text


def named(file: Path) -> Iterator[Requirement]:
    """The packages that an input file names."""
    for line in file.read_text().splitlines():
        if line.startswith("-r "):
            yield from named(file.parent / line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            yield Requirement(line)


@pytest.mark.parametrize("name", lock.ENVIRONMENT)
@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_a_lock_is_readable_and_has_what_its_input_asks_for(name: str, python: str) -> None:
    file = running.engine.PROJECT / name
    found = settings.lock.read(file, python, dask="jupyter" not in name)
    wanted = {canonicalize_name(each.name): each for each in named(file.with_suffix(".in"))}
    assert set(found.inputs) == set(wanted)
    assert [each for each in wanted if found.packages[each] not in wanted[each].specifier] == []
