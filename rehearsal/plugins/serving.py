"""The base of a Pulumi plugin: it serves gRPC, prints its port, and ends with the engine."""

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
import types
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf import empty_pb2


def _without_the_sdk() -> None:
    """Allow `pulumi.runtime.proto` to be imported without the rest of the SDK, which takes half a second."""
    spec = importlib.util.find_spec("pulumi")
    if spec is None or spec.origin is None:
        raise SystemExit("the package pulumi is missing; create the stand-ins' environment from requirements.txt")
    for name, folder in (
        ("pulumi", Path(spec.origin).parent),
        ("pulumi.runtime", Path(spec.origin).parent / "runtime"),
    ):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package


_without_the_sdk()

from pulumi.runtime import proto  # noqa: E402  (plugins import it from here, for the same reason)

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Engine:
    """A client of the engine that started this plugin, for log messages."""

    def __init__(self) -> None:
        self.address = [argument for argument in sys.argv[1:] if not argument.startswith("-")][-1]
        self._stub: proto.engine_pb2_grpc.EngineStub | None = None

    async def log(self, message: str, *, urn: str = "", level: str = "INFO", passing: bool = False) -> None:
        """Log a message for a resource or the stack. The final report omits `passing` messages."""
        if self._stub is None:
            self._stub = proto.engine_pb2_grpc.EngineStub(grpc.aio.insecure_channel(self.address, UNLIMITED))
        request = proto.engine_pb2.LogRequest(
            severity=proto.engine_pb2.LogSeverity.Value(level), message=message, urn=urn, ephemeral=passing
        )
        # If the engine is shutting down, logging must not fail a command that succeeded.
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self._stub.Log(request)


class Plugin:
    """The base class of all stand-ins: reports its version, and stops its work when the engine ends."""

    version = ""

    def __init__(self) -> None:
        self.engine = Engine()
        self._running: set[asyncio.Task[Any]] = set()

    @staticmethod
    def register(plugin: "Plugin", server: grpc.aio.Server) -> None:
        """Add the plugin's service to a server."""
        raise NotImplementedError

    async def GetPluginInfo(self, request, context):
        return proto.plugin_pb2.PluginInfo(version=self.version)

    async def Cancel(self, request, context):
        await self.end()
        return empty_pb2.Empty()

    async def ending_with_me(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run `work` as a task that `end` can cancel."""
        task = asyncio.create_task(work)
        self._running.add(task)
        try:
            return await task
        finally:
            self._running.discard(task)

    async def end(self) -> None:
        """Cancel all running tasks, and wait for them."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def serve(self) -> None:
        """Serve until SIGINT, SIGTERM or the engine's end, then cancel running tasks, and return.

        The engine holds the other end of stdin, so end-of-file means that the engine ended, even if it was killed.
        """
        server = grpc.aio.server(options=UNLIMITED)
        self.register(self, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(port, flush=True)

        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)

        def stdin_is_readable() -> None:
            if not os.read(0, 4096):
                loop.remove_reader(0)
                ended.set()

        # A stdin that cannot be watched (a file, /dev/null) is not the engine's pipe.
        with contextlib.suppress(OSError):
            loop.add_reader(0, stdin_is_readable)
        await ended.wait()
        await self.end()
        await server.stop(grace=1)
