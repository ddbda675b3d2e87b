"""A client that has lost its scheduler."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from distributed import LocalCluster
from distributed.security import Security
from tornado.iostream import IOStream

from daskstack import connection


def test_a_client_gets_back_through_a_tunnel_that_has_no_far_end_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = Security.temporary()
    refused = []
    start_tls = IOStream.start_tls

    def ends_early(stream: IOStream, *arguments, **options):
        if len(refused) < 3:
            refused.append(stream)
            stream.close()
        return start_tls(stream, *arguments, **options)

    with LocalCluster(n_workers=1, processes=False, security=credentials, dashboard_address=":0") as cluster:
        port = int(cluster.scheduler_address.rpartition(":")[2])

        @contextmanager
        def way_to(*_: object) -> Iterator[list[int]]:
            yield [port, port]

        monkeypatch.setattr(connection, "way_to", way_to)
        monkeypatch.setattr(connection, "security", lambda _: credentials)
        with connection.Client({"scheduler": "tls://a:1", "dashboard": "http://a:2/", "tls": {}}) as client:
            monkeypatch.setattr(IOStream, "start_tls", ends_early)
            cluster.scheduler.client_comms[client.id].abort()
            deadline = time.monotonic() + 20
            while (not refused or client.status == "connecting") and time.monotonic() < deadline:
                time.sleep(0.05)
            assert client.submit(sum, [1, 2]).result(timeout=10) == 3
        assert len(refused) == 3
