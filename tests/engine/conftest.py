"""Fixtures around the real engine."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.support import Keys, Project, Sshd


@pytest.fixture
def project(tmp_path: Path, pulumi_environment: dict[str, str]) -> Project:
    made = Project(tmp_path / "program", pulumi_environment | {"PULUMI_STACK": "test"})
    made.folder.mkdir()
    made.write("")
    made.run("stack", "init", "test", "--no-select")
    return made


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
    """Makes SSH servers by name, not yet started, and stops those that were."""
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
