"""What TLS costs two bare Python sockets: the floor of part f.

One process sends to another one about as much as the job's workers exchange, in messages as large as their blocks.
"""

import socket
import ssl
import tempfile
import time
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dask
from distributed.security import Security

from bench.figures import spread
from daskstack.certificates import new_authority, sign

SIZE, COUNT = 8_000_000, 50
AES_128 = "ECDHE-ECDSA-AES128-GCM-SHA256"
WAYS: dict[str, Mapping[str, Any] | None] = {
    "no TLS": None,
    "TLS 1.3, AES-256 (as in the cluster)": {},
    "TLS 1.2, AES-128": {"max-version": 1.2, "ciphers": AES_128},
    "TLS 1.2, ChaCha20": {"max-version": 1.2, "ciphers": "ECDHE+CHACHA20"},
}


def measure(repeats: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        authority = new_authority("bench")
        identity = sign(authority, "bench")
        files = {"ca": authority.certificate, "cert": identity.certificate, "key": identity.key}
        for name, text in files.items():
            Path(folder, name).write_text(text)
        for _ in range(repeats):
            for way, settings in WAYS.items():
                rate, processor = transfer(folder, settings)
                rates[way].append(rate)
                spent[way].append(processor)
    rows = {way: [str(spread(rates[way])), str(spread(spent[way]))] for way in WAYS}
    return {"what": "two bare Python sockets", "columns": ["MB/s", "processor s per GB, both ends"], "rows": rows}


def transfer(folder: str, settings: Mapping[str, Any] | None) -> tuple[float, float]:
    """MB/s, and the processor seconds per GB of both processes together. Without settings, there is no TLS."""
    processes = get_context("spawn")
    ours, theirs = processes.Pipe()
    child = processes.Process(target=receive, args=(folder, settings, theirs))
    child.start()
    with socket.create_connection(("127.0.0.1", ours.recv()), timeout=60) as plain:
        wrapped = plain if settings is None else context(folder, settings, "client").wrap_socket(plain)
        message = memoryview(bytearray(SIZE))
        wrapped.recv(1)  # the handshake is over
        started, before = time.monotonic(), time.process_time()
        for _ in range(COUNT):
            wrapped.sendall(message)
        spent = time.process_time() - before + ours.recv()
        seconds = time.monotonic() - started
        child.join()
        wrapped.close()
    return SIZE * COUNT / 1e6 / seconds, spent / (SIZE * COUNT / 1e9)


def receive(folder: str, settings: Mapping[str, Any] | None, told: Connection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        told.send(server.getsockname()[1])
        accepted, _ = server.accept()
    if settings is not None:
        accepted = context(folder, settings, "scheduler").wrap_socket(accepted, server_side=True)
    accepted.sendall(b"1")
    message, before = memoryview(bytearray(SIZE)), time.process_time()
    for _ in range(COUNT):
        done = 0
        while done < SIZE:
            done += accepted.recv_into(message[done:])
    told.send(time.process_time() - before)
    accepted.close()


def context(folder: str, settings: Mapping[str, Any], role: str) -> ssl.SSLContext:
    """Dask's TLS with these settings."""
    pair = {"cert": f"{folder}/cert", "key": f"{folder}/key"}
    found = {"ca-file": f"{folder}/ca", role: pair, **settings}
    with dask.config.set({f"distributed.comm.tls.{name}": value for name, value in found.items()}):
        security = Security(require_encryption=True)
    if role == "client":
        return security.get_connection_args(role)["ssl_context"]
    return security.get_listen_args(role)["ssl_context"]
