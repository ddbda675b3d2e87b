"""A `distributed.Client` for a stack."""

import asyncio
import contextlib
import importlib.metadata
import platform
import sys
import time
import warnings
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from ssl import SSLEOFError, SSLZeroReturnError
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import dask
import distributed
from distributed.comm.core import FatalCommClosedError
from distributed.security import Security
from distributed.versions import VersionMismatchWarning

from daskstack import access_file, shared_directory
from daskstack.client_output import KubernetesClient, MachinesClient
from daskstack.route import wake, way_to
from daskstack.tunnel import TunnelError, Way
from daskstack.user_code import Code

if TYPE_CHECKING:
    from daskstack.cluster import StackCluster

# If client and workers have different versions of these, tasks fail or, worse, return different results.
MATTERS = ("dask", "distributed", "cloudpickle", "msgpack", "toolz", "tornado", "numpy", "pandas", "pyarrow")

# Seconds to wait for a scheduler that restarts: a new pod installs the packages first.
AWAY = 600


# `connect` compares versions itself; another patch release of Python does no harm.
warnings.filterwarnings(
    "ignore",
    r"Mismatched versions found\n+[+-]+\n\| Package .*\n[+-]+\n\| python .*\n[+-]+\Z",
    VersionMismatchWarning,
)
# XGBoost wants an argument instead of the configuration that `Client` sets, but its estimators have no such argument.
warnings.filterwarnings("ignore", ".*Dask global configuration store for the XGBoost tracker", FutureWarning)


class VersionError(RuntimeError):
    """This Python differs from the cluster's environment. The message has the command that fixes it."""


class Client(distributed.Client):
    """A client that reaches its scheduler and dashboard through tunnels. Closing it closes the tunnels.

    With `cluster`, it uses the tunnels of that cluster and leaves them open.
    """

    def __init__(
        self,
        facts: MachinesClient | KubernetesClient,
        code: Code | None = None,
        cluster: "StackCluster | None" = None,
        **kwargs,
    ):
        self._code: Code | None = None
        self._tunnels = contextlib.ExitStack()
        self._attempt: float | None = None
        self._way = cluster.way if cluster else self._tunnels.enter_context(way_to_dask(facts))
        self._dashboard = local_dashboard(facts, self._way)
        try:
            super().__init__(cluster or local_address(facts, self._way), security=security(facts), **kwargs)
            if code:
                code.ship(self)
                self._code = code
        except BaseException:
            self._tunnels.close()
            raise

    @property
    def dashboard_link(self) -> str:
        """The dashboard's URL on this computer. It works while the client is open."""
        return self._dashboard

    def _graph_to_futures(self, *args, **kwargs):
        if self._code:
            self._code.ship(self)
        return super()._graph_to_futures(*args, **kwargs)

    async def _ensure_connected(self, timeout: float | None = None) -> None:
        """Retries while nothing listens behind the tunnel."""
        limit = self._timeout if timeout is None else timeout
        # Dask sets no time limit for a scheduler's first message. It waits for three messages in total.
        single, connected = self._attempt or limit, super()._ensure_connected
        await until_it_listens(self._way, limit, lambda: asyncio.wait_for(connected(timeout=single), 3 * single))
        tell_xgboost(self._scheduler_identity["address"])

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


async def until_it_listens(way: Way, limit: float, attempt: Callable[[], Awaitable[Any]]) -> None:
    """Retries for `limit` seconds while nothing listens behind the tunnel: the stream ends before the TLS handshake.

    Raises TunnelError if the tunnel has ended, and ConnectionError if the limit is over or something else is wrong.
    """
    deadline = time.monotonic() + limit
    while True:
        if fault := way.fault():
            raise TunnelError(fault)
        try:
            await attempt()
            return
        except (FatalCommClosedError, ValueError) as error:
            ended = isinstance(error, ValueError) or isinstance(error.__cause__, (SSLEOFError, SSLZeroReturnError))
            if not ended or time.monotonic() > deadline:
                raise ConnectionError(str(error.__cause__ or error)) from error
            await asyncio.sleep(0.2)


def tell_xgboost(scheduler: str) -> None:
    """XGBoost's tracker listens on the scheduler's machine, by default at the address of the tunnel."""
    dask.config.set({"xgboost.scheduler_address": urlsplit(scheduler).hostname})


def connect(stack: str = "dev", *, wakes: bool = True, code: str | Path | None = None, **kwargs) -> Client:
    """A client of a stack's cluster. If an idle cluster has stopped its workers, they start again.

    `stack` is the name of one of the project's stacks, the path of an access file, or the name NAME of the access file
    ~/.config/daskstack/NAME.json.

    With `wakes=False` they stay stopped. With `code`, the scheduler and all workers can import the modules in this
    folder; modules that change are sent again before the next computation. `kwargs` are those of `distributed.Client`.

    Raises `engine.EngineError` if the stack does not exist, `AccessError` if others can read the access file or it is
    not one, `VersionError` if this Python differs from the cluster's environment, `TunnelError` if no tunnel opens,
    `ConnectionError` if the scheduler does not answer, and `ValueError` if `code` is not a folder of modules.
    """
    modules = Code(code) if code is not None else None
    if modules and kwargs.get("asynchronous"):
        raise ValueError("code is not available with asynchronous=True; use client.upload_file")
    facts = facts_of(stack)
    with scheduler_of(stack):
        wake_workers(facts, wakes)
        client = Client(facts, modules, **kwargs)
        shared_directory.use(stack)
        return client


def facts_of(stack: str) -> MachinesClient | KubernetesClient:
    """What a client has to know. Raises VersionError if tasks of this Python would fail in the cluster."""
    facts = access_file.client(stack)
    if different := differences(facts.python, facts.packages):
        command = f"daskstack sync --stack {stack}"
        if access_file.find(stack):  # `sync` needs the project
            packages = [f"{name}=={facts.packages[name]}" for name in MATTERS if name in facts.packages]
            command = f"pip install {' '.join(packages)}"
        raise VersionError(
            f"this Python differs from the cluster's in {', '.join(different)}. Install the cluster's packages into an"
            f" environment with Python {facts.python}: {sys.executable} -m {command}"
        )
    return facts


@contextlib.contextmanager
def scheduler_of(stack: str) -> Generator[None]:
    """If the scheduler does not answer inside the context, the error says where to look."""
    try:
        yield
    except TunnelError:
        raise
    except OSError as error:
        text = f"the scheduler of stack {stack} does not answer ({error or type(error).__name__})"
        if access_file.find(stack):
            raise ConnectionError(f"{text}: ask the stack's owner to look at its status and logs") from error
        raise ConnectionError(f"{text}: look at `make status STACK={stack}` and `make logs STACK={stack}`") from error


def wake_workers(facts: MachinesClient | KubernetesClient, wakes: bool) -> None:
    if wakes and (workers := wake(facts)):
        print(f"The cluster was asleep; starting {workers} workers (this takes a few minutes)", file=sys.stderr)


def way_to_dask(facts: MachinesClient | KubernetesClient) -> AbstractContextManager[Way]:
    """Ports that lead to the scheduler and to the dashboard."""
    return way_to(facts, [urlsplit(facts.scheduler).netloc, urlsplit(facts.dashboard).netloc], restarts=True)


def local_address(facts: MachinesClient | KubernetesClient, way: Way) -> str:
    return f"{urlsplit(facts.scheduler).scheme}://127.0.0.1:{way.ports[0]}"


def local_dashboard(facts: MachinesClient | KubernetesClient, way: Way) -> str:
    return f"http://127.0.0.1:{way.ports[1]}{urlsplit(facts.dashboard).path}"


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


def security(facts: MachinesClient | KubernetesClient) -> Security | None:
    """The credentials in the form that Dask accepts. They stay in memory. None: the cluster has no TLS."""
    if not facts.scheduler.startswith("tls://"):
        return None
    return Security(
        require_encryption=True,
        tls_ca_file=facts.tls.authority,
        tls_client_cert=facts.tls.certificate,
        tls_client_key=facts.tls.key,
    )
