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

# If client and workers have different versions of these, tasks fail or, worse, return different results.
MATTERS = ("dask", "distributed", "cloudpickle", "msgpack", "toolz", "tornado", "numpy", "pandas", "pyarrow")

# Seconds to wait for a scheduler that restarts: a new pod installs the packages first.
AWAY = 600


class VersionError(RuntimeError):
    """This Python differs from the cluster's environment. The message has the command that fixes it."""


class Client(distributed.Client):
    """A client that reaches its scheduler and dashboard through tunnels. Closing it closes the tunnels."""

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
        """The dashboard's URL on this computer. It works while the client is open."""
        return self._dashboard

    async def _ensure_connected(self, timeout: float | None = None) -> None:
        """Retries while nothing listens behind the tunnel: the stream then ends before the TLS handshake."""
        limit = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        while True:
            if fault := self._way.fault():
                raise TunnelError(fault)
            try:
                # Dask sets no time limit for a scheduler's first message. It waits for three messages in total.
                attempt = super()._ensure_connected(timeout=timeout)
                return await asyncio.wait_for(attempt, 3 * (self._attempt or limit))
            except (FatalCommClosedError, ValueError) as error:
                ended = isinstance(error, ValueError) or isinstance(error.__cause__, (SSLEOFError, SSLZeroReturnError))
                if not ended or time.monotonic() > deadline:
                    raise ConnectionError(str(error.__cause__ or error)) from error
                await asyncio.sleep(0.2)

    async def _reconnect(self) -> None:
        """Waits up to AWAY seconds. Dask would close the client after the time limit of a single connection."""
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
    """A client of a stack's cluster. If an idle cluster has stopped its workers, they start again.

    With `wakes=False` they stay stopped. `kwargs` are those of `distributed.Client`. Raises `engine.EngineError` if the
    stack does not exist, `VersionError` if this Python differs from the cluster's environment, `TunnelError` if no
    tunnel opens, and `ConnectionError` if the scheduler does not answer.
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
    """Differences from the cluster's Python minor version and packages that break tasks, as text."""
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
    """The credentials in the form that Dask accepts. They stay in memory."""
    return Security(
        require_encryption=True,
        tls_ca_file=tls.authority,
        tls_client_cert=tls.certificate,
        tls_client_key=tls.key,
    )
