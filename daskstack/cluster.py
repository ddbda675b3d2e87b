"""A stack as one of Dask's cluster managers."""

import asyncio
import contextlib
from collections.abc import Generator
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed.core import Status, rpc
from distributed.deploy import Cluster
from distributed.objects import SchedulerInfo

from daskstack import access_file, connection, shared_directory
from daskstack.client_output import NO_BOUNDS

PAUSE = 1  # seconds between attempts to reach the scheduler again


class StackCluster(Cluster):
    """The cluster of a stack, for code that expects a `Cluster` of Dask: `with StackCluster("dev") as cluster:`.

    Closing it leaves the stack running. If the stack sets bounds for the number of workers, `scale` and `adapt` change
    the number; otherwise `pulumi up` does. If an idle cluster has stopped its workers, they start again, unless `wakes`
    is false. Raises what `daskstack.connect` raises.
    """

    def __init__(self, stack: str = "dev", *, wakes: bool = True, asynchronous: bool = False, **kwargs):
        self._facts = connection.facts_of(stack)
        self._stack = stack  # Dask gives all managers of a cluster the name of the first
        self._supports_scaling = self._facts.bounds is not None
        self._wakes = wakes
        self._tunnels = contextlib.ExitStack()
        self.scheduler_comm: rpc
        self.security = connection.security(self._facts)
        super().__init__(asynchronous=asynchronous, name=access_file.stack_name(stack), **kwargs)
        if not self.called_from_running_loop:
            self._loop_runner.start()
            self.sync(self._start)

    def __await__(self) -> Generator[Any, None, "StackCluster"]:
        async def started() -> StackCluster:
            if self.status == Status.created:
                await self._start()
            return self

        return started().__await__()

    async def _start(self) -> None:
        with connection.scheduler_of(self._stack):
            connection.wake_workers(self._facts, self._wakes)
            self.way = self._tunnels.enter_context(connection.way_to_dask(self._facts))
            try:
                arguments = self.security.get_connection_args("client") if self.security else {}
                self.scheduler_comm = rpc(connection.local_address(self._facts, self.way), connection_args=arguments)
                # A scheduler that has just been woken is not there yet.
                limit = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
                await connection.until_it_listens(self.way, limit, self._reach)
                await super()._start()
            except BaseException:
                await self._close()
                raise
        connection.tell_xgboost(str(self.scheduler_info["address"]))
        shared_directory.use(self._stack)

    async def _reach(self) -> None:
        comm = await self.scheduler_comm.live_comm()
        self.scheduler_comm.comms[comm] = True  # ty: ignore[invalid-assignment]  # a dictionary

    async def _watch_worker_status(self, comm: Any) -> None:
        while self.status not in (Status.closing, Status.closed):
            await super()._watch_worker_status(comm)
            if self.status == Status.running:
                self._log(f"stack {self.name}: the connection to the scheduler is lost; trying again")
            while self.status == Status.running:
                try:
                    comm = await self.scheduler_comm.live_comm()
                    await comm.write({"op": "subscribe_worker_status"})
                    self.scheduler_info = SchedulerInfo(await comm.read())
                    self._watch_worker_status_comm = comm
                    self._log(f"stack {self.name}: connected again")
                    break
                except (OSError, ValueError):  # ValueError: the stream ended before the TLS handshake
                    await asyncio.sleep(PAUSE)

    def scale(self, n: int) -> Any:
        """Lets this many workers run, and ends adapting. With `asynchronous=True`, returns an awaitable.

        Workers that stop first hand over their results. Raises ValueError if `n` is outside of the stack's bounds, and
        NotImplementedError if the stack has none.
        """
        return self._ask("workers_scale", number=n)

    def adapt(self, *, minimum: int | None = None, maximum: int | None = None) -> Any:  # ty: ignore[incompatible-method-override]
        """Lets the scheduler change the number of workers with the work, also after this object is closed.

        By default between the stack's bounds. Raises what `scale` raises.
        """
        return self._ask("workers_adapt", minimum=minimum, maximum=maximum)

    def _ask(self, what: str, **arguments: int | None) -> Any:
        if not self._supports_scaling:
            raise NotImplementedError(NO_BOUNDS.format(stack=self._stack))

        async def asked() -> None:
            await getattr(self.scheduler_comm, what)(**arguments)

        # Code for other clusters does not always await.
        return asyncio.ensure_future(asked()) if self.asynchronous else self.sync(asked)

    def _scaling_status(self) -> str:
        most = f" of at most {self._facts.most}" if self._facts.most else ""
        return f"<p>Workers: {len(self.scheduler_info['workers'])}{most}</p>"

    async def _close(self) -> None:
        try:
            await super()._close()
        finally:
            self._tunnels.close()

    @property
    def dashboard_link(self) -> str:
        """The dashboard's URL on this computer. It works while the cluster object is open."""
        return connection.local_dashboard(self._facts, self.way)

    def get_client(self) -> connection.Client:
        """A client that connects again if the connection breaks."""
        return connection.Client(self._facts, cluster=self, asynchronous=self.asynchronous)
