"""Clients connect and reconnect although their tunnel temporarily leads to no scheduler."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import dask
import pytest
from distributed import LocalCluster
from distributed.security import Security
from tornado.iostream import IOStream

import daskstack
from daskstack import connection
from daskstack.tunnel import Way
from tests.client_outputs import machines_client


class Tunnel(socketserver.ThreadingTCPServer):
    """Accepts connections as a tunnel does, but closes the first `refusals` as if no scheduler listened behind it."""

    daemon_threads = True

    def __init__(self, port: int, refusals: int) -> None:
        super().__init__(("127.0.0.1", 0), self.pass_on)
        self.port, self.refusals = port, refusals

    def pass_on(self, here: socket.socket, *_: object) -> None:
        if self.refusals:
            self.refusals -= 1
            return
        with socket.create_connection(("127.0.0.1", self.port)) as there:
            back = threading.Thread(target=copy, args=(there, here))
            back.start()
            copy(here, there)
            back.join()


def copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):  # either end may close first
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def credentials() -> Security:
    return Security.temporary()


@pytest.fixture(scope="module")
def cluster(credentials: Security) -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=1, processes=False, security=credentials, dashboard_address=":0") as cluster:
        yield cluster


@contextmanager
def tunneled(cluster: LocalCluster, credentials: Security, refusals: int) -> Iterator[Tunnel]:
    """Clients of a stack reach the cluster through a tunnel."""
    with (
        pytest.MonkeyPatch.context() as patch,
        Tunnel(int(cluster.scheduler_address.split(":")[2]), refusals) as tunnel,
    ):
        threading.Thread(target=tunnel.serve_forever, args=(0.1,), daemon=True).start()

        @contextmanager
        def way_to(*_: object, restarts: bool) -> Iterator[Way]:
            yield Way(2 * [tunnel.server_address[1]], lambda: "")

        patch.setattr(connection, "way_to", way_to)
        patch.setattr(connection, "security", lambda _: credentials)
        try:
            yield tunnel
        finally:
            tunnel.shutdown()
        assert tunnel.refusals == 0


@contextmanager
def client(cluster: LocalCluster, credentials: Security, refusals: int) -> Iterator[tuple[connection.Client, Tunnel]]:
    with (
        tunneled(cluster, credentials, refusals) as tunnel,
        connection.Client(machines_client(), timeout=20) as found,
    ):
        yield found, tunnel


def test_a_client_connects_once_the_scheduler_is_up(cluster: LocalCluster, credentials: Security) -> None:
    with client(cluster, credentials, refusals=3) as (found, _):
        assert found.submit(sum, [1, 2]).result(timeout=60) == 3


def test_a_cluster_object_connects_once_the_scheduler_is_up(
    cluster: LocalCluster, credentials: Security, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "facts_of", lambda _: machines_client())
    with (
        tunneled(cluster, credentials, refusals=3),
        daskstack.StackCluster("mine") as found,
        found.get_client() as client,
    ):
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3


def test_a_client_gives_xgboost_the_schedulers_own_address(cluster: LocalCluster, credentials: Security) -> None:
    with dask.config.set({"xgboost.scheduler_address": None}), client(cluster, credentials, refusals=0) as _:
        # XGBoost would take the client's address, which leads to the tunnel on this computer.
        cluster_address = urlsplit(cluster.scheduler_address).hostname
        assert dask.config.get("xgboost.scheduler_address") == cluster_address


def test_a_client_reconnects_after_a_connection_that_closed_before_the_tls_handshake(
    cluster: LocalCluster, credentials: Security, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_tls, ended = IOStream.start_tls, []

    def ends_early(stream: IOStream, *arguments, **options):
        if len(ended) < 3 and stream.socket.getpeername() == tunnel.server_address:
            ended.append(stream)
            stream.close()
        return start_tls(stream, *arguments, **options)

    with client(cluster, credentials, refusals=0) as (found, tunnel):
        monkeypatch.setattr(IOStream, "start_tls", ends_early)
        cluster.scheduler.client_comms[found.id].abort()
        deadline = time.monotonic() + 60
        while (not ended or found.status == "connecting") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert found.submit(sum, [1, 2]).result(timeout=60) == 3
    assert len(ended) == 3


def test_a_client_reconnects_after_an_outage_longer_than_the_connection_timeout(
    cluster: LocalCluster, credentials: Security
) -> None:
    with client(cluster, credentials, refusals=0) as (found, tunnel):
        found._timeout = 1  # seconds
        tunnel.refusals = 20  # one each 0.2 s
        cluster.scheduler.client_comms[found.id].abort()
        deadline = time.monotonic() + 60
        while (tunnel.refusals or found.status == "connecting") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert found.submit(sum, [1, 2]).result(timeout=60) == 3
