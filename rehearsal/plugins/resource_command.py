"""A stand-in for Pulumi's plugin `command` 1.2.1: commands on this machine and, over SSH, on others.

The engine starts this file as `pulumi-resource-command ENGINE_ADDRESS` in the stand-ins' environment. What it does
not do it refuses by name.
"""

import asyncio
import secrets
from collections.abc import Coroutine
from typing import Any

import grpc
from google.protobuf import empty_pb2

import serving
from command import local, wire
from command.output import CommandError, Output
from serving import proto

VERSION = "1.2.1"

LOCAL, REMOTE, COPY = "command:local:Command", "command:remote:Command", "command:remote:CopyToRemote"
SCRIPTS = {"create", "update", "delete", "stdin", "environment", "logging", "addPreviousOutputInEnv", "triggers"}
INPUTS = {
    LOCAL: SCRIPTS | {"dir", "interpreter"},
    REMOTE: SCRIPTS | {"connection"},
    COPY: {"connection", "source", "remotePath", "triggers"},
}
OUTPUTS = {"stdout", "stderr"}
LOGGING = ["stdout", "stderr", "stdoutAndStderr", "none"]


def kind_of(urn: str) -> str:
    return urn.split("::")[2].split("$")[-1]


def problems(kind: str, raw: wire.Properties) -> list[tuple[str, str]]:
    """What is wrong with the inputs, as (property, reason)."""

    def not_done(what: str) -> str:
        return f"the stand-in for command does not know {what}; install the official plugin"

    if kind not in INPUTS:
        return [("", not_done(kind))]
    found = [(name, not_done(f"{name} of {kind}")) for name in sorted(raw.keys() - INPUTS[kind])]
    inputs = wire.plain(raw)
    if inputs.get("logging", "none") not in [*LOGGING, wire.UNKNOWN]:
        found.append(("logging", f"expected one of {', '.join(LOGGING)}, found {inputs['logging']}"))
    if "connection" in INPUTS[kind]:
        connection = inputs.get("connection", {})
        if connection != wire.UNKNOWN and not connection.get("host"):
            found.append(("connection", "connection.host is required: the address of the machine"))
    if kind == COPY:
        source = inputs.get("source")
        if source != wire.UNKNOWN and not (isinstance(source, dict) and "path" in source):
            found.append(("source", "expected a FileAsset or a FileArchive, that is, a path on this machine"))
        if not inputs.get("remotePath"):
            found.append(("remotePath", "remotePath is required: where on the machine the source goes"))
    return found


class Provider(proto.provider_pb2_grpc.ResourceProviderServicer):
    def __init__(self, engine: serving.Engine) -> None:
        self._engine = engine
        self._introduced = False
        self._running: set[asyncio.Task[Any]] = set()

    async def GetPluginInfo(self, request, context):
        return proto.plugin_pb2.PluginInfo(version=VERSION)

    async def CheckConfig(self, request, context):
        return proto.provider_pb2.CheckResponse(inputs=request.news)

    async def DiffConfig(self, request, context):
        return proto.provider_pb2.DiffResponse(changes=proto.provider_pb2.DiffResponse.DIFF_NONE)

    async def Configure(self, request, context):
        if not self._introduced:
            self._introduced = True
            await self._engine.log(f"command {VERSION} is a stand-in here, not Pulumi's own plugin")
        return proto.provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    async def Check(self, request, context):
        found = problems(kind_of(request.urn), wire.load(request.news))
        return proto.provider_pb2.CheckResponse(
            inputs=request.news,
            failures=[proto.provider_pb2.CheckFailure(property=name, reason=reason) for name, reason in found],
        )

    async def Diff(self, request, context):
        old, new = wire.load(request.olds), wire.load(request.news)
        names = [
            name
            for name in sorted((old.keys() - OUTPUTS) | new.keys())
            if name not in request.ignoreChanges and wire.changed(old.get(name), new.get(name))
        ]
        detailed = {}
        for name in names:
            what = "ADD" if name not in old else "DELETE" if name not in new else "UPDATE"
            detailed[name] = proto.provider_pb2.PropertyDiff(kind=what + ("_REPLACE" if name == "triggers" else ""))
        some, none = proto.provider_pb2.DiffResponse.DIFF_SOME, proto.provider_pb2.DiffResponse.DIFF_NONE
        return proto.provider_pb2.DiffResponse(
            changes=some if names else none,
            diffs=names,
            replaces=[name for name in names if name == "triggers"],
            detailedDiff=detailed,
            hasDetailedDiff=True,
        )

    async def Create(self, request, context):
        inputs = wire.load(request.properties)
        if kind_of(request.urn) == COPY:
            work = None if request.preview else self._copy(request.urn, inputs)
        elif request.preview:
            inputs |= dict.fromkeys(OUTPUTS, wire.UNKNOWN)
            work = None
        else:
            work = self._command(request.urn, inputs.get("create"), inputs, dict.fromkeys(OUTPUTS, ""))
        outputs = inputs | await self._operate(context, work)
        identity = request.urn.split("::")[-1] + secrets.token_hex(4)
        return proto.provider_pb2.CreateResponse(id=identity, properties=wire.dump(outputs))

    async def Update(self, request, context):
        old, new = wire.load(request.olds), wire.load(request.news)
        if kind_of(request.urn) == COPY:
            # As the official plugin: another connection alone copies nothing.
            moved = any(wire.changed(old.get(name), new.get(name)) for name in ("source", "remotePath"))
            work = self._copy(request.urn, new) if moved and not request.preview else None
        elif request.preview:
            new |= dict.fromkeys(OUTPUTS, wire.UNKNOWN)
            work = None
        else:
            previous = {name: old.get(name, "") for name in OUTPUTS}
            work = self._command(request.urn, new.get("update", new.get("create")), new, previous)
        return proto.provider_pb2.UpdateResponse(properties=wire.dump(new | await self._operate(context, work)))

    async def Delete(self, request, context):
        old = wire.load(request.properties)
        if kind_of(request.urn) != COPY:
            previous = {name: old.get(name, "") for name in OUTPUTS}
            await self._operate(context, self._command(request.urn, old.get("delete"), old, previous))
        return empty_pb2.Empty()

    async def Read(self, request, context):
        return proto.provider_pb2.ReadResponse(id=request.id, properties=request.properties, inputs=request.inputs)

    async def Invoke(self, request, context):
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED,
            f"the stand-in for command does not know {request.tok}; install the official plugin",
        )

    async def Cancel(self, request, context):
        await self.end()
        return empty_pb2.Empty()

    async def end(self) -> None:
        """End what runs, and wait until nothing is left of it."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _operate(self, context, work: Coroutine[Any, Any, wire.Properties] | None) -> wire.Properties:
        """Do the work as a task that `end` can cancel, and turn its failure into one that the engine shows."""
        if work is None:
            return {}
        task = asyncio.create_task(work)
        self._running.add(task)
        try:
            return await task
        except (CommandError, OSError) as error:
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))
        except asyncio.CancelledError:
            await context.abort(grpc.StatusCode.CANCELLED, "cancelled, and what was running has been ended")
        finally:
            self._running.discard(task)

    async def _command(
        self, urn: str, raw_script: Any, raw: wire.Properties, raw_previous: wire.Properties
    ) -> wire.Properties:
        """Run a script if there is one. Returns stdout and stderr, the previous ones where nothing ran."""
        if raw_script is None:
            return raw_previous
        script, inputs = wire.plain(raw_script), wire.plain(raw)
        previous = {
            f"PULUMI_COMMAND_{name.upper()}": value
            for name, value in wire.plain(raw_previous).items()
            if value and inputs.get("addPreviousOutputInEnv", True)
        }
        shown = "[secret]" if wire.has_secret(raw_script) else script

        async def log(line: str) -> None:
            await self._engine.log(line, urn=urn, passing=True)

        async def warn(line: str) -> None:
            await self._engine.log(line, urn=urn, level="WARNING")

        output = Output(inputs.get("logging", "stdoutAndStderr"), log)
        if kind_of(urn) == LOCAL:
            await local.run(script, inputs, previous, output, shown)
        else:
            from command import remote  # asyncssh takes a third of a second, which a run without changes need not pay

            await remote.run(script, inputs, previous, output, shown, log, warn)
        return output.properties()

    async def _copy(self, urn: str, raw: wire.Properties) -> wire.Properties:
        from command import copy_to_remote

        async def log(line: str) -> None:
            await self._engine.log(line, urn=urn, passing=True)

        await copy_to_remote.copy(wire.plain(raw), log)
        return {}


async def main() -> None:
    provider = Provider(serving.Engine())
    await serving.serve(
        lambda server: proto.provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server), provider.end
    )


if __name__ == "__main__":
    asyncio.run(main())
