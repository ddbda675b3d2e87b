"""The base class of the stand-ins for Pulumi's resource plugins."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import grpc
from google.protobuf import empty_pb2

import serving
import values
from command import wire
from command.output import CommandError, Found, Refusal
from command.wire import Properties
from serving import proto

Answer = proto.provider_pb2


class Provider(serving.Plugin, proto.provider_pb2_grpc.ResourceProviderServicer):
    """Methods receive properties from `wire.load`. They raise CommandError to show an error to the user."""

    register = staticmethod(proto.provider_pb2_grpc.add_ResourceProviderServicer_to_server)
    name: str
    not_done: Refusal
    promise = ""  # appended to the log line about the stand-in
    _introduced = False

    # Methods to override

    def config_problems(self, raw: Properties) -> list[Found]:
        return []

    async def config_changes(self, old: Properties, new: Properties) -> tuple[dict[str, str], list[str]]:
        """Differences between configurations (path -> ADD, DELETE or UPDATE), and those that replace all resources."""
        return {}, []

    def configure(self, raw: Properties) -> None:
        """Store the provider's configuration."""

    async def check(self, request: Any, kind: str, raw: Properties) -> tuple[Properties, list[Found]]:
        """A resource's inputs with defaults, and their problems."""
        raise NotImplementedError

    def changes(self, kind: str, old: Properties, new: Properties) -> tuple[dict[str, str], list[str], bool]:
        """Differences between plain inputs, those that replace, and whether to delete the old resource first."""
        raise NotImplementedError

    async def preview(self, request: Any, kind: str, raw: Properties) -> Properties:
        """The outputs of `create` or `update`, as far as they are known in advance."""
        raise NotImplementedError

    async def create(self, request: Any, kind: str, raw: Properties) -> tuple[str, Properties]:
        raise NotImplementedError

    async def update(self, request: Any, kind: str, raw: Properties) -> Properties:
        raise NotImplementedError

    async def delete(self, request: Any, kind: str) -> None:
        raise NotImplementedError

    async def read(self, request: Any, kind: str) -> tuple[str, Properties, Properties]:
        """The current ID, inputs and outputs; all empty if the resource no longer exists."""
        return request.id, wire.load(request.inputs), wire.load(request.properties)

    # The engine's protocol

    async def CheckConfig(self, request, context):
        raw = wire.load(request.news)
        return _checked(raw, self.config_problems(raw))

    async def DiffConfig(self, request, context):
        work = self.config_changes(wire.load(request.old_inputs or request.olds), wire.load(request.news))
        return _differing(*await self._operate(context, work), False)

    async def Configure(self, request, context):
        if not self._introduced:
            self._introduced = True
            await self.engine.log(f"{self.name} {self.version} is a stand-in, not Pulumi's own plugin{self.promise}")
        try:
            self.configure(wire.load(request.args))
        except CommandError as error:
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))
        return Answer.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    async def Check(self, request, context):
        return _checked(*await self._operate(context, self.check(request, kind_of(request), wire.load(request.news))))

    async def Diff(self, request, context):
        old, new = wire.plain(wire.load(request.old_inputs)), wire.plain(wire.load(request.news))
        found, replacing, first = self.changes(kind_of(request), old, new)
        found = {path: what for path, what in found.items() if not values.touches(path, list(request.ignoreChanges))}
        return _differing(found, [path for path in replacing if path in found], first)

    async def Create(self, request, context):
        kind, raw, identity = kind_of(request), wire.load(request.properties), ""
        if request.preview:
            outputs = await self._operate(context, self.preview(request, kind, raw))
        else:
            identity, outputs = await self._operate(context, self.create(request, kind, raw))
        return Answer.CreateResponse(id=identity, properties=wire.dump(outputs))

    async def Update(self, request, context):
        work = (self.preview if request.preview else self.update)(request, kind_of(request), wire.load(request.news))
        return Answer.UpdateResponse(properties=wire.dump(await self._operate(context, work)))

    async def Delete(self, request, context):
        await self._operate(context, self.delete(request, kind_of(request)))
        return empty_pb2.Empty()

    async def Read(self, request, context):
        identity, inputs, outputs = await self._operate(context, self.read(request, kind_of(request)))
        return Answer.ReadResponse(id=identity, inputs=wire.dump(inputs), properties=wire.dump(outputs))

    async def Invoke(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, self.not_done(request.tok))

    async def Construct(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, self.not_done(request.type))

    async def _operate(self, context: Any, work: Coroutine[Any, Any, Any]) -> Any:
        """Run `work`, and convert exceptions to errors of the protocol."""
        try:
            return await self.ending_with_me(work)
        except (CommandError, OSError) as error:
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))
        except asyncio.CancelledError:
            await context.abort(grpc.StatusCode.CANCELLED, "cancelled; running commands were stopped")


def kind_of(request: Any) -> str:
    return request.urn.split("::")[2].split("$")[-1]


def name_of(request: Any) -> str:
    return request.urn.split("::")[-1]


def _checked(inputs: Properties, found: list[Found]) -> Any:
    failures = [Answer.CheckFailure(property=name, reason=reason) for name, reason in found]
    return Answer.CheckResponse(inputs=wire.dump(inputs), failures=failures)


def _differing(found: dict[str, str], replacing: list[str], first: bool) -> Any:
    return Answer.DiffResponse(
        changes=Answer.DiffResponse.DIFF_SOME if found else Answer.DiffResponse.DIFF_NONE,
        diffs=sorted({path.split(".")[0].split("[")[0] for path in found}),
        replaces=replacing,
        deleteBeforeReplace=first,
        detailedDiff={
            path: Answer.PropertyDiff(kind=what + ("_REPLACE" if path in replacing else ""), inputDiff=True)
            for path, what in found.items()
        },
        hasDetailedDiff=True,
    )
