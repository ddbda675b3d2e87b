"""Access files: which one a name means, and which are refused."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from daskstack import access_file, cli, connection, engine, sftp
from daskstack.access_file import Access, AccessError
from daskstack.client_output import KubernetesClient, MachinesClient
from tests.client_outputs import kubernetes_client, machines_client

ALICE = Access(person="alice", stack="vms", client=machines_client(packages={"dask": "1.2.3"}, python="3.11"))


IN_KUBERNETES = kubernetes_client(kubernetes={"kubeconfig": '{\n"kind": "Config"\n}'})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "alice.json"
    access_file.write(path, ALICE)
    return path


@pytest.mark.parametrize("client", [ALICE.client, IN_KUBERNETES])
def test_a_file_is_read_as_it_was_written_and_only_its_user_can_read_it(
    file: Path, client: MachinesClient | KubernetesClient
) -> None:
    access_file.write(file, replace(ALICE, client=client))
    assert file.stat().st_mode & 0o777 == 0o600
    assert access_file.read(file) == replace(ALICE, client=client)
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_use_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(AccessError, match=rf"other users can access {file}.*run chmod 600 {file}"):
        access_file.read(file)


def without_tls() -> dict[str, Any]:
    found = asdict(ALICE)
    del found["client"]["tls"]
    return found


@pytest.mark.parametrize(
    "contents",
    [
        "",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        json.dumps(without_tls()),
        json.dumps(asdict(ALICE) | {"person": 1}),
        json.dumps(asdict(ALICE) | {"more": ""}),
        json.dumps(asdict(ALICE) | {"client": asdict(machines_client(scheduler=1))}),
        json.dumps(asdict(ALICE) | {"client": asdict(kubernetes_client())}),
        json.dumps(asdict(ALICE) | {"client": asdict(kubernetes_client(kubernetes={"kubeconfig": ["\n"]}))}),
        json.dumps(asdict(ALICE) | {"client": asdict(kubernetes_client(kubernetes={}))}),
        "\xff",
    ],
)
def test_a_file_with_other_contents_is_refused(file: Path, contents: str) -> None:
    file.write_text(contents, "latin1")
    with pytest.raises(AccessError, match=r"is not an access file of this version .* ask the stack's owner"):
        access_file.read(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match=r"x\.json cannot be read: No such file"):
        access_file.read(tmp_path / "x.json")


def test_a_name_means_the_projects_stack_before_a_file_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "daskstack"
    folder.mkdir()
    for name in ("dev", "team"):
        access_file.write(folder / f"{name}.json", ALICE)
    assert access_file.find("dev") is None
    assert access_file.find("team") == folder / "team.json"
    assert access_file.find("other") is access_file.find("me/dask/team") is None
    assert access_file.find("./dev.json") == Path("dev.json")
    monkeypatch.setattr(engine, "PROJECT", tmp_path)
    assert access_file.find("dev") == folder / "dev.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert access_file.find("dev") is None
    (tmp_path / "home/.config").mkdir(parents=True)
    folder.rename(tmp_path / "home/.config/daskstack")
    assert access_file.find("dev") == tmp_path / "home/.config/daskstack/dev.json"


def commands(group: click.Group, *above: str) -> dict[tuple[str, ...], click.Command]:
    """All commands that take a stack, by their words."""
    found: dict[tuple[str, ...], click.Command] = {}
    for name, each in group.commands.items():
        if isinstance(each, click.Group):
            found |= commands(each, *above, name)
        elif any(option.name == "stack" for option in each.params):
            found[*above, name] = each
    return found


FOR_PEOPLE = {("status",), ("dashboard",), ("jupyter",), ("run",)}
FOR_PEOPLE |= {("jobs", each) for each in ("logs", "wait", "stop")}


@pytest.mark.parametrize("words", commands(cli.main).keys() - FOR_PEOPLE, ids=" ".join)
def test_a_command_that_needs_the_owner_refuses_an_access_file(words: tuple[str, ...], file: Path) -> None:
    command = commands(cli.main)[words]
    arguments = [each.name for each in command.params if isinstance(each, click.Argument) and each.required]
    done = CliRunner().invoke(cli.main, [*words, "--stack", str(file), *map(str, arguments)])
    assert done.output == (
        f"error: {file} is an access file, which does not permit this: ask the stack's owner, or run it with the"
        " project and the stack's name\n"
    )
    assert done.exit_code == 1


def test_the_notebook_servers_password_is_the_owners(file: Path) -> None:
    access_file.write(file, replace(ALICE, client=replace(ALICE.client, jupyter="127.0.0.1:8888")))
    done = CliRunner().invoke(cli.main, ["jupyter", "--password", "--stack", str(file)])
    assert "is an access file, which does not permit this" in done.output


def test_files_of_the_shared_directory_are_the_owners(file: Path) -> None:
    with pytest.raises(AccessError, match="is an access file, which does not permit this"):
        sftp.files(str(file))


def test_another_python_is_rejected_with_the_clusters_versions(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "pulumi", None)  # the state is not asked
    with pytest.raises(
        connection.VersionError,
        match=r"dask \(\S+, there 1\.2\.3\).*with Python 3\.11: .*-m pip install dask==1\.2\.3$",
    ):
        connection.facts_of(str(file))


def test_connecting_imports_neither_pulumi_nor_the_project(file: Path, tmp_path: Path) -> None:
    program = (
        "import sys, daskstack\n"
        "try: daskstack.connect(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print({'pulumi', 'settings', 'tools', 'components'} & {name.split('.')[0] for name in sys.modules})"
    )
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, file], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "VersionError\nset()\n", done.stderr
