"""A `distributed.Client` for a stack."""

import asyncio
import contextlib
import importlib.metadata
import platform
import sys
import time
from collections.abc import Mapping
from ssl import SSLEOFError, SSLZeroReturnError
from urllib.parse import urlsplit

import distributed
from distributed.comm.core import FatalCommClosedError
from distributed.security import Security

from daskstack import engine
from daskstack.client_output import KubernetesClient, MachinesClient, Tls
from daskstack.route import wake, way_to
from daskstack.tunnel import TunnelError

# Where client and workers differ in these, tasks fail or, worse, give other results.
MATTERS = ("dask", "distributed", "cloudpickle", "msgpack", "toolz", "tornado", "numpy", "pandas", "pyarrow")

# Seconds for a scheduler that went away to answer again: one that moved to another pod installs its packages first.
AWAY = 600


class VersionError(RuntimeError):
    """This Python and the cluster's environment differ; the message has the command that mends it."""


class Client(distributed.Client):
    """A client that reaches its scheduler and dashboard through tunnels; closing it closes them."""

    def __init__(self, facts: MachinesClient | KubernetesClient, **kwargs):
        self._tunnels = contextlib.ExitStack()
        self._attempt: float | None = None
        scheduler, dashboard = urlsplit(facts.scheduler), urlsplit(facts.dashboard)
        self._way = self._tunnels.enter_context(way_to(facts, [scheduler.netloc, dashboard.netloc]))
        ports = self._way.ports
        self._dashboard = f"http://127.0.0.1:{ports[1]}{dashboard.path}"
        try:
            super().__init__(
                f"{scheduler.scheme}://127.0.0.1:{ports[0]}",
                security=security(facts.tls) if scheduler.scheme == "tls" else None,
                **kwargs,
            )
        except BaseException:
            self._tunnels.close()
            raise

    @property
    def dashboard_link(self) -> str:
        """The dashboard's URL on this computer, as long as the client is open."""
        return self._dashboard

    async def _ensure_connected(self, timeout: float | None = None) -> None:
        """Tries again while the tunnel has no far end, which ends the stream before it is one of TLS."""
        limit = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        while True:
            if fault := self._way.fault():
                raise TunnelError(fault)
            try:
                # Dask reads a scheduler's first words without a limit. It waits for three answers in all.
                attempt = super()._ensure_connected(timeout=timeout)
                return await asyncio.wait_for(attempt, 3 * (self._attempt or limit))
            except (FatalCommClosedError, ValueError) as error:
                ended = isinstance(error, ValueError) or isinstance(error.__cause__, (SSLEOFError, SSLZeroReturnError))
                if not ended or time.monotonic() > deadline:
                    raise ConnectionError(str(error.__cause__ or error)) from error
                await asyncio.sleep(0.2)

    async def _reconnect(self) -> None:
        """Dask closes a client whose scheduler is away for longer than one connection may take."""
        self._attempt = usual = self._timeout
        self._timeout = max(usual, AWAY)
        try:
            await super()._reconnect()
        finally:
            self._attempt, self._timeout = None, usual

    async def _close(self, fast: bool = False) -> None:
        try:
            await super()._close(fast=fast)
        finally:
            self._tunnels.close()


def connect(stack: str = "dev", *, wakes: bool = True, **kwargs) -> Client:
    """A client of the cluster of a stack, whose workers come back where they went for want of work.

    Without `wakes` they stay away. `kwargs` go to `distributed.Client`. Raises `engine.EngineError` where the stack
    does not exist, `VersionError` where this Python differs from the cluster's in what matters, `TunnelError` where
    there is no way to it, and `ConnectionError` where the scheduler does not answer.
    """
    facts = engine.cluster(stack)["client"]
    if different := differences(facts.python, facts.packages):
        raise VersionError(
            f"this Python differs from the cluster's in {', '.join(different)}. Run it with the cluster's environment: "
            f"uv run --no-project --python {facts.python} --with-requirements {facts.lock} python"
        )
    try:
        if wakes and (workers := wake(facts)):
            print(f"The cluster was asleep; starting {workers} workers (this takes a few minutes)", file=sys.stderr)
        return Client(facts, **kwargs)
    except TunnelError:
        raise
    except OSError as error:
        text = f"the scheduler of stack {stack} does not answer ({error or type(error).__name__})"
        raise ConnectionError(f"{text}: look at `make status STACK={stack}` and `make logs STACK={stack}`") from error


def differences(python: str, packages: Mapping[str, str]) -> list[str]:
    """What matters and differs here from the cluster's Python minor version and packages, in words."""
    result = []
    here = ".".join(platform.python_version_tuple()[:2])
    if here != python:
        result.append(f"Python ({here}, there {python})")
    for name in MATTERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            here = importlib.metadata.version(name)
            if name in packages and here != packages[name]:
                result.append(f"{name} ({here}, there {packages[name]})")
    return result


def security(tls: Tls) -> Security:
    """Dask's form of the credentials, which stay in memory."""
    return Security(
        require_encryption=True,
        tls_ca_file=tls.authority,
        tls_client_cert=tls.certificate,
        tls_client_key=tls.key,
    )
