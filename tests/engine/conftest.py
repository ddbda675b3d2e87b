"""Fixtures for tests with the real engine."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daskstack import engine
from tests.engine.support import Keys, Project, Sshd, is_stand_in, plugin


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a stack. Tests copy it, which is faster than creating one with the engine."""
    folder = tmp_path_factory.mktemp("empty")
    backend = folder / "backend"
    backend.mkdir()
    environ = {**os.environ, **engine.variables("dev"), "PULUMI_BACKEND_URL": backend.as_uri()}
    made = Project(folder / "program", environ | {"PULUMI_CONFIG_PASSPHRASE": ""})
    made.folder.mkdir()
    made.write("")
    made.run("stack", "init", "test", "--no-select")
    return made


@pytest.fixture
def project(tmp_path: Path, pulumi_environment: dict[str, str], empty: Project) -> Project:
    made = Project(tmp_path / "program", pulumi_environment | {"PULUMI_STACK": "test"})
    shutil.copytree(empty.folder, made.folder)
    shutil.copytree(empty.backend, made.backend, dirs_exist_ok=True)
    return made


@pytest.fixture
def stand_in(request: pytest.FixtureRequest, pulumi_environment: dict[str, str]) -> None:
    """Skips tests of a stand-in if the official plugin is installed; the module's PLUGIN is kind, name and version."""
    found = plugin(pulumi_environment, *request.module.PLUGIN)
    if not is_stand_in(found):
        pytest.skip(f"{found.name} is Pulumi's own here; this tests messages and limits of the stand-in")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    made = Keys(tmp_path_factory.mktemp("keys"))
    made.make("host")
    made.make("host-rsa", kind="rsa")
    made.make("other")
    made.make("user")
    return made


@pytest.fixture
def make_sshd(tmp_path: Path, keys: Keys) -> Iterator[Callable[[str], Sshd]]:
    """Creates SSH servers by name, without starting them, and stops all at the end."""
    made: list[Sshd] = []

    def make(name: str) -> Sshd:
        folder = tmp_path / name
        folder.mkdir()
        made.append(Sshd(folder, keys))
        return made[-1]

    yield make
    for sshd in made:
        sshd.stop()


@pytest.fixture
def sshd(make_sshd: Callable[[str], Sshd]) -> Sshd:
    return make_sshd("sshd").start()
