"""`make up` offers to open SSH to your address if no network can reach the stack."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from daskstack import configuration, engine
from daskstack.configuration import KEY
from tools import allow_my_address
from tools.allow_my_address import address, is_closed


def shipped(stack: str) -> dict[str, Any]:
    return yaml.safe_load((engine.PROJECT / f"Pulumi.{stack}.yaml").read_text())["config"][KEY]


def closed() -> dict[str, Any]:
    return {key: value for key, value in shipped("vms").items() if key != "firewall"}


def test_only_a_stack_that_no_network_can_reach_is_closed() -> None:
    assert is_closed(closed())
    assert not is_closed(closed() | {"machines": closed()["machines"] | {"iapPort": 2222}})
    assert not [stack for stack in ("vms", "dev", "gke") if is_closed(shipped(stack))]
    assert not is_closed({"machines": "words"})


@pytest.mark.parametrize(("answer", "found"), [(b"198.51.100.4\n", "198.51.100.4"), (b"<html>", None)])
def test_only_an_ip_address_is_a_valid_answer(answer: bytes, found: str | None) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert address(f"http://127.0.0.1:{server.server_port}/") == found


def test_without_internet_access_there_is_no_address() -> None:
    assert address("http://127.0.0.1:1/") is None


@pytest.mark.parametrize(("terminal", "answer", "written"), [(True, "y", True), (True, "", False), (False, "y", False)])
def test_the_address_is_written_only_after_a_yes_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, answer: str, written: bool
) -> None:
    asked: list[str] = []
    done: list[tuple[str, ...]] = []
    monkeypatch.setattr(allow_my_address, "address", lambda: "198.51.100.4")
    monkeypatch.setattr(configuration, "read", lambda stack: closed())
    monkeypatch.setattr(engine, "pulumi", lambda *words: done.append(words) or SimpleNamespace(returncode=0))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or answer)
    allow_my_address.main("vms")
    assert len(asked) == (1 if terminal else 0)
    write = ("vms", "config", "set", "--path", "--plaintext", "dask:cluster.firewall.ssh[0]", "198.51.100.4/32")
    assert done == ([write] if written else [])
