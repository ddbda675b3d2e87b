"""A port-forward that Kubernetes refuses; a script replaces kubectl."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from daskstack import kubectl
from daskstack.tunnel import TunnelError

REFUSES = "echo 'error: You must be logged in to the server (Unauthorized)' >&2; exit 1"
OPENS = "echo 'Forwarding from 127.0.0.1:5555 -> 8786'; exit 1"


def forwarder(folder: Path, *runs: str) -> kubectl.Forwarder:
    """Its kubectl does what `runs` say, one after the other, and then the last again and again."""
    cases = "".join(f"{number}) {run};;\n" for number, run in enumerate(runs, 1))
    script = f"""
        echo x >>{folder}/runs
        n=$(wc -l <{folder}/runs)
        [ $n -lt {len(runs)} ] || n={len(runs)}
        case $n in
        {cases}
        esac
    """
    return kubectl.Forwarder(["sh", "-c", script], "8786")


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_refused_port_forward_fails_at_once_and_says_that_access_may_have_ended(tmp_path: Path) -> None:
    found = forwarder(tmp_path, REFUSES)
    start = time.monotonic()
    try:
        with pytest.raises(TunnelError, match=r"an access file may have been revoked: error: .*\(Unauthorized\)"):
            found.wait()
    finally:
        found.close()
    assert time.monotonic() - start < kubectl.WAIT / 2


def test_an_api_server_that_refuses_only_while_it_starts_ends_no_port_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubectl, "PAUSE", 0.01)
    monkeypatch.setattr(kubectl, "REFUSALS", 3)
    runs, opened = tmp_path / "runs", tmp_path / "opened"
    lasts = OPENS.replace("exit", f"until [ -e {opened} ]; do sleep 0.01; done; exit")
    starting = forwarder(tmp_path, lasts, REFUSES, REFUSES, OPENS, REFUSES, REFUSES, OPENS)
    try:
        assert starting.wait() == 5555
        opened.touch()
        until(lambda: len(runs.read_text().splitlines()) > 10)
        assert starting.fault == ""
    finally:
        starting.close()
    runs.unlink()
    opened.unlink()
    revoked = forwarder(tmp_path, lasts, REFUSES)
    try:
        assert revoked.wait() == 5555
        opened.touch()
        until(lambda: "access file may have been revoked" in revoked.fault)
        assert len(runs.read_text().splitlines()) == 4
    finally:
        revoked.close()
