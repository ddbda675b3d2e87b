"""What the owner's computer writes and refuses in `daskstack access`; machines are replaced by a function."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from daskstack import access_file, engine, people, status_and_logs
from daskstack.access_file import AccessError
from daskstack.client_output import Tls
from daskstack.status_and_logs import RemoteError
from tests.client_outputs import machines_client

BASTION = {
    "host": "b",
    "user": "jane",
    "host_key": "ssh-ed25519 BBBB",
    "private_key": "owner's",
    "certificate": "owner's",
}
DOOR = {"host": "10.1.0.1", "user": "dask-tunnel", "host_key": "ssh-ed25519 AAAA", "port": 2222}
OWNED = {"private_key": "owner's", "certificate": "owner's"}
SIGNED = {
    "ssh": "ssh-ed25519-cert-v01@openssh.com AAAA", "tls": "-----BEGIN CERTIFICATE-----\nx\n", "expires": "2027-01-01",
}  # fmt: skip


class Machine:
    """The scheduler's machine: what it was asked, and its answers by command."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answers: dict[str, Any] = {"add": SIGNED, "renew": SIGNED, "confirm": {}, "revoke": {"ended": 2}}

    def ask(self, login: dict[str, str], command: str, given: str) -> str:
        assert login == {"login": "of the owner"}
        assert command.startswith("/usr/bin/python3 -I /opt/daskstack/access.py ")
        words = command.split()[3:]
        self.asked.append((" ".join(words), given))
        return f"a note\n\n{json.dumps(self.answers[words[0]])}\n"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    found = Machine()
    tls = Tls(authority="the authority", certificate="owner's", key="owner's")
    client = machines_client(tunnel=DOOR | OWNED | {"proxy": BASTION}, tls=tls)
    outputs = {"client": client, "admin": {"machines": {"head": {"login": "of the owner"}}}}
    monkeypatch.setattr(engine, "cluster", lambda stack: outputs)
    monkeypatch.setattr(status_and_logs, "ask_machine", found.ask)
    monkeypatch.chdir(tmp_path)
    return found


def commands(machine: Machine) -> list[str]:
    return [command for command, _ in machine.asked]


def test_a_new_access_file_has_keys_of_its_own_and_none_of_the_owners(machine: Machine, tmp_path: Path) -> None:
    people.add("vms", "alice", None)
    file = tmp_path / "alice.json"
    assert "owner's" not in file.read_text()
    found = access_file.read(file)
    assert (found.person, found.stack) == ("alice", "vms")
    assert found.client.tunnel == DOOR | {
        "private_key": found.client.tunnel["private_key"],
        "certificate": SIGNED["ssh"],
        "proxy": {key: BASTION[key] for key in ("host", "user", "host_key")},
    }
    assert (found.client.tls.authority, found.client.tls.certificate) == ("the authority", SIGNED["tls"])
    load_ssh_private_key(found.client.tunnel["private_key"].encode(), None)
    assert commands(machine) == ["add alice", "confirm alice"]
    sent = json.loads(machine.asked[0][1])
    assert sent.keys() == {"request", "sshPublic"} and "PRIVATE" not in machine.asked[0][1]


def test_only_kubernetes_knows_google_users(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="--google is only for stacks in Kubernetes"):
        people.add("vms", "alice", None, google="alice@example.com")
    assert machine.asked == [] and os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "a;b", "ä", "a.b", "person:a", "a\n", "a" * 41, "../a"])
def test_a_wrong_name_is_refused_before_anything_changes(machine: Machine, tmp_path: Path, name: str) -> None:
    for command in (people.add, people.renew):
        with pytest.raises(AccessError, match="is not a name for a person"):
            command("vms", name, "x.json")
    with pytest.raises(AccessError, match="is not a name for a person"):
        people.revoke("vms", name)
    assert machine.asked == [] and os.listdir(tmp_path) == []


def test_an_existing_file_is_not_overwritten(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "alice.json"
    file.write_text("mine")
    with pytest.raises(AccessError, match=r"alice\.json exists already: .*--output"):
        people.add("vms", "alice", None)
    with pytest.raises(AccessError):
        people.renew("vms", "alice", None)
    assert file.read_text() == "mine" and machine.asked == []


def test_a_renewal_replaces_only_the_same_persons_file(machine: Machine, tmp_path: Path) -> None:
    people.add("vms", "alice", None)
    before = (tmp_path / "alice.json").read_text()
    for stack, name in (("vms", "bob"), ("gpu", "alice")):
        with pytest.raises(AccessError, match="is the access of alice to stack vms"):
            people.renew(stack, name, "alice.json")
    assert (tmp_path / "alice.json").read_text() == before
    people.renew("vms", "alice", None)
    assert (tmp_path / "alice.json").read_text() != before
    assert commands(machine)[2:] == ["renew alice", "confirm alice"]


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ({"refused": "alice already has access"}, AccessError, "a note\nalice already has access"),
        ({"ssh": "x"}, RemoteError, "did not answer as expected"),
        (SIGNED | {"ssh": "ssh-ed25519-cert-v01@openssh.com A\nProxyCommand x"}, RemoteError, "did not answer"),
    ],
)
def test_no_file_is_left_if_the_machine_does_not_sign(
    machine: Machine, tmp_path: Path, answer: dict[str, str], error: type[Exception], said: str
) -> None:
    machine.answers["add"] = answer
    with pytest.raises(error, match=said):
        people.add("vms", "alice", None)
    assert os.listdir(tmp_path) == []
    assert commands(machine) == ["add alice"]


def test_a_stack_that_an_older_version_built_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> str:
        raise RemoteError("`ssh` ended with status 2: python3: can't open file '/opt/daskstack/access.py'")

    monkeypatch.setattr(status_and_logs, "ask_machine", ask)
    with pytest.raises(AccessError, match="an older version of daskstack built the stack: run `make up` first"):
        people.show("vms")


def test_the_list_says_what_to_do(machine: Machine, capsys: pytest.CaptureFixture) -> None:
    entry = {"expires": "2027-01-01", "tunnels": 2}
    names = {"alice": "valid", "bob": "incomplete", "carol": "outdated"}
    machine.answers["list"] = {"people": [entry | {"name": name, "state": state} for name, state in names.items()]}
    people.show("vms")
    assert capsys.readouterr().out.splitlines() == [
        "alice        until 2027-01-01, SSH connections: 2",
        "bob          incomplete: run `daskstack access add bob` again",
        "carol        has keys from before a renewal: run `daskstack access renew carol`",
    ]
