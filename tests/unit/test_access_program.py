"""How root on the scheduler's machine finds the tunnels of a person; test_access.py of the machines has the rest."""

import json
import subprocess
from typing import Any

import pytest

from on_the_cluster import access

ACCEPTED = (
    "Accepted publickey for dask-tunnel from 10.98.88.1 port 51442 ssh2: ED25519-CERT SHA256:uU/A8+w ID {id}"
    " (serial 1795734000123456789) CA ED25519 SHA256:3S7f"
)


def found(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, Any]) -> dict[int, str | None]:
    """What the journal's entries, each with the number of its process, say of the tunnels 11 and 21."""
    lines = [json.dumps({"_PID": pid, "MESSAGE": message}) for pid, message in entries]
    done = subprocess.CompletedProcess([], 0, "\n".join(lines).encode())
    monkeypatch.setattr(access, "tunnel_processes", lambda: {11: 10, 21: 20})
    monkeypatch.setattr(access.subprocess, "run", lambda *_, **__: done)
    return access.tunnels()


def test_the_last_login_of_a_process_says_whose_tunnel_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob = (ACCEPTED.format(id=f"person:{name}") for name in ("alice", "bob"))
    assert found(
        monkeypatch, ("10", bob), ("20", bob), ("10", alice), ("10", "pam_unix(sshd:session): session opened")
    ) == {
        11: "person:alice",
        21: "person:bob",
    }


@pytest.mark.parametrize(
    "forged",
    [
        f"Invalid user {ACCEPTED.format(id='person:alice')}",
        ACCEPTED.format(id="person:alice").replace("dask-tunnel", "admin"),
        [65, 66],  # a message that is no text
        None,
    ],
)
def test_a_tunnel_that_the_log_does_not_explain_is_nobodys(forged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, ("10", forged)) == {11: None, 21: None}


@pytest.mark.parametrize("name", ["", "-a", "a/b", "../a", "a b", "a.b", "a:b", "a" * 41])
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(access.Refused, match="is not a name"):
        access.main("revoke", name)
