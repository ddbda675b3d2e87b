"""A cluster behind a slow link that loses connections."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from rehearsal.machines import Stack, as_root
from tests.checkout import Checkout

pytestmark = pytest.mark.timeout(1800)
DELAY = 0.05  # seconds in each direction


class Link:
    """Forwards connections to port 22 with a delay. For each number in `losses`, it loses a connection, the first one
    on which this computer sends more bytes than that.
    """

    def __init__(self, *losses: int) -> None:
        self.losses = list(losses)
        self._loop = asyncio.new_event_loop()

    @contextmanager
    def running(self, places: dict[str, str]) -> Iterator[None]:
        """Listens at the addresses in the keys, and forwards to those in the values."""

        async def listen() -> None:
            for here, there in places.items():
                await asyncio.start_server(lambda *ends, there=there: self._forward(there, *ends), here, 22)

        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(listen(), self._loop).result(20)
            yield
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()

    async def _forward(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            from_there, there = await asyncio.open_connection(address, 22)
            ways = (self._pump(reader, there, loses=True), self._pump(from_there, writer, loses=False))
            await asyncio.wait(map(asyncio.ensure_future, ways), return_when=asyncio.FIRST_COMPLETED)
            there.transport.abort()
        writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, loses: bool) -> None:
        sent = 0
        with suppress(OSError):
            while data := await reader.read(65536):
                sent += len(data)
                if loses and (lost := next((each for each in self.losses if sent > each), None)) is not None:
                    self.losses.remove(lost)
                    return
                self._loop.call_later(DELAY, writer.write, data)
                if writer.transport.get_write_buffer_size() > 2**20:
                    await asyncio.sleep(DELAY)
        await asyncio.sleep(2 * DELAY)


def test_up_converges_over_a_slow_link_that_loses_connections(
    make_stack: Callable[[str], Stack], key: Path, tmp_path: Path
) -> None:
    lan = make_stack("slow")
    machines = lan.boot("head", "hand")
    far = [f"{lan.network.rpartition('.')[0]}.{number}" for number in (251, 252)]
    hosts = [
        {"name": machine.name, "address": address, "privateAddress": machine.address, "user": "admin"}
        for machine, address in zip(machines, far, strict=True)
    ]
    for address in far:
        as_root("ip", "address", "add", f"{address}/32", "dev", lan.bridge)
    checkout = Checkout(tmp_path, "far")
    stack = yaml.safe_load(checkout.file.read_text())
    stack["config"]["dask:cluster"] = {
        "target": "machines",
        "machines": {"source": "existing", "network": lan.network, "hosts": hosts},
        "firewall": {"ssh": [f"{lan.gateway}/32"]},
        "environment": {"source": "wheelhouse"},
        "jupyter": {"enabled": False},
    }
    checkout.file.write_text(yaml.safe_dump(stack))
    checkout.pulumi("stack", "init")
    checkout.pulumi("config", "set", "--secret", "dask:sshKey", stdin=key.read_text())
    # A session of the preflight, the copy of the wheels, and two sessions in their handshakes.
    link = Link(0, 1000, 8000, 5_000_000)
    with link.running({address: machine.address for machine, address in zip(machines, far, strict=True)}):
        try:
            printed = checkout.make("up")
        finally:
            checkout.make("destroy")
    assert link.losses == []
    assert "correct for 26 names" in printed
