"""What `make up` offers where a stack lets nobody in."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from daskstack.engine import PROJECT
from settings.common import KEY
from tools import allow_my_address
from tools.allow_my_address import address, is_closed, opened

SHIPPED = (PROJECT / "Pulumi.vms.yaml").read_text()
CLOSED = SHIPPED.replace("    firewall:\n      ssh: [203.0.113.7/32]\n", "")


def test_a_stack_that_lets_nobody_in_is_closed_and_others_are_not() -> None:
    assert is_closed(CLOSED)
    assert not is_closed(SHIPPED)
    assert not is_closed(CLOSED.replace("      zone:", "      iapPort: 2222\n      zone:"))
    assert not is_closed((PROJECT / "Pulumi.dev.yaml").read_text())
    assert not is_closed((PROJECT / "Pulumi.gke.yaml").read_text())


def test_the_address_is_written_and_all_else_stays() -> None:
    text = opened(CLOSED, "198.51.100.4")
    assert set(CLOSED.splitlines()) < set(text.splitlines())
    assert yaml.safe_load(text)["config"][KEY].pop("firewall") == {"ssh": ["198.51.100.4/32"]}
    assert not is_closed(text), "it would be offered again"


@pytest.mark.parametrize(("answer", "found"), [(b"198.51.100.4\n", "198.51.100.4"), (b"<html>", None)])
def test_an_address_is_taken_from_an_answer_that_is_one(answer: bytes, found: str | None) -> None:
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


def test_without_the_internet_there_is_no_address() -> None:
    assert address("http://127.0.0.1:1/") is None


@pytest.mark.parametrize(("terminal", "answer", "written"), [(True, "y", True), (True, "", False), (False, "y", False)])
def test_the_address_is_written_only_for_who_says_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, answer: str, written: bool
) -> None:
    file = tmp_path / "Pulumi.vms.yaml"
    file.write_text(CLOSED)
    asked: list[str] = []
    monkeypatch.setattr(allow_my_address, "PROJECT", tmp_path)
    monkeypatch.setattr(allow_my_address, "address", lambda: "198.51.100.4")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or answer)
    allow_my_address.main("vms")
    allow_my_address.main("vms")
    assert ("198.51.100.4/32" in file.read_text()) == written
    assert len(asked) == (0 if not terminal else 1 if written else 2)
