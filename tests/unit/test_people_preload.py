"""The scheduler knows whose connections it has, and closes those of revoked people."""

import asyncio
import contextlib
import runpy
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from distributed import Client, Scheduler, Worker
from distributed.core import Status
from distributed.security import Security

from daskstack import report_status, status_and_logs
from daskstack.tunnel import Way
from tests.client_outputs import machines_client
from tests.tls import accepts

PROJECT = Path(__file__).parents[2]
MODULE: dict[str, Any] = runpy.run_path(str(PROJECT / "charts/dask/files/people.py"))
RELOAD: dict[str, Any] = runpy.run_path(str(PROJECT / "on_the_cluster/reload_tls.py"))
NOW = datetime.now(UTC)


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


class Authority:
    """Signs certificates, and keeps its own with its revocation list in `file`, as the cluster's does."""

    def __init__(self, file: Path) -> None:
        self.file, self.key, self.signed = file, ec.generate_private_key(ec.SECP256R1()), {}
        self.certificate = self.sign("the authority", self.key).public_bytes(Encoding.PEM).decode()
        self.revoke()

    def sign(self, name: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        new = x509.CertificateBuilder(named("the authority"), named(name), key.public_key())
        new = new.serial_number(x509.random_serial_number())
        new = new.not_valid_before(NOW - timedelta(days=1)).not_valid_after(NOW + timedelta(days=1))
        new = new.add_extension(x509.BasicConstraints(name == "the authority", None), critical=True)
        self.signed[name] = new.sign(self.key, hashes.SHA256())
        return self.signed[name]

    def security(self, name: str) -> Security:
        key = ec.generate_private_key(ec.SECP256R1())
        files = {part: self.file.with_name(f"{name}-{part}") for part in ("cert", "key")}
        files["cert"].write_bytes(self.sign(name, key).public_bytes(Encoding.PEM))
        files["key"].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        pairs = {f"tls_{role}_{part}": str(file) for role in ROLES for part, file in files.items()}
        return Security(require_encryption=True, tls_ca_file=str(self.file), **pairs)

    def revoke(self, *names: str) -> None:
        crl = x509.CertificateRevocationListBuilder().issuer_name(named("the authority"))
        crl = crl.last_update(NOW - timedelta(days=1)).next_update(NOW + timedelta(days=1))
        for name in names:
            revoked = x509.RevokedCertificateBuilder().serial_number(self.signed[name].serial_number)
            crl = crl.add_revoked_certificate(revoked.revocation_date(NOW).build())
        text = crl.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
        self.file.write_text(self.certificate + text)


ROLES = ("scheduler", "worker", "client")


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def test_unfinished_tasks_are_counted_for_each_person_and_revoked_people_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "authority.pem")
    own = authority.security("scheduler")
    async with Scheduler(protocol="tls", security=own, dashboard=False, dashboard_address=":0") as scheduler:
        MODULE["dask_setup"](scheduler)
        RELOAD["dask_setup"](scheduler)
        people = {name: authority.security(name) for name in ("person:alice", "person:bob", "client", "person-like")}

        async def connected(name: str) -> Client:
            return await Client(scheduler.address, security=people[name], asynchronous=True, timeout=30)

        alice, again, bob, owner = [
            await connected(each) for each in ("person:alice", "person:alice", "person:bob", "client")
        ]
        machine = await connected("person-like")
        try:
            waiting = alice.map(abs, range(5)) + bob.map(abs, [7])
            total = alice.submit(sum, waiting[:5])
            await until(lambda: len(scheduler.tasks) == 7)
            counts = await owner.scheduler.people()
            nothing = {"connections": 1, "running": 0, "waiting": 0}
            assert counts == {
                "person:alice": {"connections": 2, "running": 0, "waiting": 6},
                "person:bob": nothing | {"waiting": 1},
                "client": nothing,
                "person-like": nothing,
            }
            assert {each["name"] for each in report_status.people(counts)} == {"alice", "bob", "client"}

            async with Worker(scheduler.address, security=authority.security("worker-1"), dashboard=False):
                assert await total == 10
                assert (await owner.scheduler.people())["person:alice"] == {
                    "connections": 2,
                    "running": 0,
                    "waiting": 0,
                }
                way = Way([scheduler.http_server.port], lambda: "")
                monkeypatch.setattr(status_and_logs, "way_to", lambda *_: contextlib.nullcontext(way))
                shown = await asyncio.to_thread(status_and_logs.status_through, machines_client())
                assert [each.status for each in shown.workers] == ["running"]
                assert {each.name: each.connections for each in shown.people} == {"alice": 2, "bob": 1, "client": 1}

                before = scheduler.reload_tls.seen
                authority.revoke("person:bob", "person-like")
                await until(lambda: bob.status == "connecting")
                await until(lambda: scheduler.reload_tls.seen != before)  # until then he can connect for a moment
                await until(lambda: "person:bob" not in scheduler.people.count())
                assert await alice.submit(sum, [1, 2]) == 3
                assert scheduler.people.count().keys() == {"person:alice", "client", "person-like"}
                assert bob.status == "connecting"
                assert alice.status == again.status == owner.status == machine.status == "running"
                assert scheduler.status == Status.running
        finally:
            for each in (alice, again, bob, owner, machine):
                await each._close(fast=True)


async def test_in_kubernetes_revoked_people_are_cut_off_at_once_and_a_new_scheduler_knows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "revoked"
    folder.mkdir()
    monkeypatch.setitem(MODULE["People"].revoke.__globals__, "REVOKED", folder)
    authority = Authority(tmp_path / "authority.pem")
    own = authority.security("scheduler")
    people = {name: authority.security(name) for name in ("person:alice", "person:bob", "person:carol", "client")}

    def serial(name: str) -> str:
        return f"{authority.signed[name].serial_number:x}"

    async def accepted(address: str, name: str) -> bool:
        files = [authority.file.with_name(f"{name}-{part}") for part in ("cert", "key")]
        return await asyncio.to_thread(accepts, address, *(each.read_text() for each in files))

    async with Scheduler(protocol="tls", security=own, dashboard=False, dashboard_address=":0") as scheduler:
        MODULE["dask_setup"](scheduler)
        clients = {
            name: await Client(scheduler.address, security=security, asynchronous=True, timeout=30)
            for name, security in people.items()
        }
        try:
            answer = await clients["client"].scheduler.people_revoke(serials=[serial("person:bob")])
            assert answer["ended"] >= 1
            assert scheduler.people.count().keys() == {"person:alice", "person:carol", "client"}
            assert not await accepted(scheduler.address, "person:bob")
            assert await accepted(scheduler.address, "person:alice")
            (folder / "..data").touch()  # Kubernetes' own
            (folder / serial("person:carol")).touch()
            await until(lambda: scheduler.people.count().keys() == {"person:alice", "client"})
            assert clients["person:alice"].status == clients["client"].status == "running"
        finally:
            for each in clients.values():
                await each._close(fast=True)
    async with Scheduler(protocol="tls", security=own, dashboard=False, dashboard_address=":0") as scheduler:
        MODULE["dask_setup"](scheduler)
        assert not await accepted(scheduler.address, "person:carol")
        assert await accepted(scheduler.address, "person:alice")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_serial_numbers_are_read_from_all_lists_of_a_file(tmp_path: Path, count: int) -> None:
    """During a renewal there are several authorities."""
    first, second = Authority(tmp_path / "first"), Authority(tmp_path / "second")
    key = ec.generate_private_key(ec.SECP256R1())
    serials = {each.sign("person:alice", key).serial_number for each in (first, second)[:count]}
    for each in (first, second)[:count]:
        each.revoke("person:alice")
    text = f"{first.file.read_text()}\n{second.file.read_text()}"
    assert MODULE["revoked"](text) == serials
