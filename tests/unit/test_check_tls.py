"""What the check finds out about a scheduler's TLS; the servers here are real ones."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from distributed import Security

from on_the_cluster import check


@contextmanager
def server(folder: Path, demands: ssl.VerifyMode) -> Iterator[str]:
    """The address of a server that says a word to whoever gets in, and demands a certificate or not."""
    tls = Security.temporary().get_tls_config_for_role("scheduler")
    pair, authority = folder / "pair.pem", folder / "authority.pem"
    pair.write_text(tls["key"] + tls["cert"])
    authority.write_text(tls["ca_file"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    context.load_verify_locations(authority)
    context.verify_mode = demands

    def serve() -> None:
        try:
            connection, _ = listening.accept()
            with context.wrap_socket(connection, server_side=True) as stream:
                stream.sendall(b"hello")
        except OSError:
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"tls://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def test_a_scheduler_that_requires_no_certificate_fails_the_check(tmp_path: Path) -> None:
    with server(tmp_path, ssl.CERT_NONE) as address, pytest.raises(check.Failure) as raised:
        check.check_tls(address)
    assert str(raised.value) == f"{address} accepts a client without a certificate: it answered b'h'"


def test_a_scheduler_that_requires_a_certificate_passes_the_check(tmp_path: Path) -> None:
    with server(tmp_path, ssl.CERT_REQUIRED) as address:
        assert check.check_tls(address) == "clients without a certificate are rejected"
