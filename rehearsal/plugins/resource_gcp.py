"""A stand-in for Pulumi's plugin `gcp` 10.2.0: a Google Cloud of files, whose cluster and machines are real.

The engine starts this file as `pulumi-resource-gcp ENGINE_ADDRESS` in the stand-ins' environment, in a rehearsal alone:
DASKSTACK_REHEARSAL is its folder, DASKSTACK_REHEARSAL_KUBERNETES a JSON object that says how its Kubernetes starts
(`command`) and ends (`down`), and where (`cwd`); gcp.computers tells what its machines need. What it does not do it
refuses by name.
"""

import asyncio
import contextlib
import os
from collections.abc import Coroutine
from typing import Any

import grpc
from google.protobuf import empty_pb2

import serving
from command import wire
from command.output import CommandError
from gcp import checks, cloud, computers, node
from gcp.cloud import Record, pretended
from gcp.computers import ATTACHED, DISK, FIREWALL
from gcp.inputs import (
    DEFAULTS,
    changes,
    complete,
    config_problems,
    configured,
    given,
    not_done,
    problems,
    refuse_to_stop,
)
from gcp.kinds import CLUSTER, POOL, VM
from gcp.table import KINDS
from kube import values
from serving import proto

VERSION = "10.2.0"
CREDENTIALS = ("GOOGLE_OAUTH_ACCESS_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CREDENTIALS")


def kind_of(urn: str) -> str:
    return urn.split("::")[2].split("$")[-1].removeprefix("gcp:")


def one_at_a_time(token: str) -> contextlib.AbstractAsyncContextManager[Any]:
    if token in (CLUSTER, POOL):
        return node.BUSY
    return computers.BUSY if token in (VM, FIREWALL) else contextlib.nullcontext()


class Provider(proto.provider_pb2_grpc.ResourceProviderServicer):
    def __init__(self, engine: serving.Engine) -> None:
        self._engine = engine
        self._introduced = False
        self._running: set[asyncio.Task[Any]] = set()
        self._config: dict[str, Any] = {}

    async def GetPluginInfo(self, request, context):
        return proto.plugin_pb2.PluginInfo(version=VERSION)

    async def CheckConfig(self, request, context):
        raw = values.load(request.news)
        return serving.checked(raw, config_problems(configured(raw)))

    async def DiffConfig(self, request, context):
        old = configured(values.load(request.old_inputs or request.olds))
        found = values.differences(old, configured(values.load(request.news)))
        # In another project is nothing of what was made in this one.
        return serving.differing(found, [path for path in found if path == "project"], False)

    async def Configure(self, request, context):
        if not self._introduced:
            self._introduced = True
            await self._engine.log(f"gcp {VERSION} is a stand-in here, not Pulumi's own plugin: no account is reached")
        self._config = configured(values.load(request.args))
        own = [self._config.get(name) for name in ("accessToken", "credentials")]
        if not any([*own, *map(os.environ.get, CREDENTIALS)]):
            await context.abort(
                grpc.StatusCode.UNKNOWN,
                f"no credentials for Google Cloud: set {CREDENTIALS[0]} (to any text, in a rehearsal),"
                f" {CREDENTIALS[1]}, or accessToken or credentials of the provider",
            )
        return proto.provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    async def Check(self, request, context):
        token, raw = kind_of(request.urn), values.without_nulls(values.load(request.news))
        if token not in KINDS:
            return serving.checked(raw, [("", not_done(f"gcp:{token}"))])
        old = wire.plain(values.load(request.olds))
        inputs = complete(KINDS[token], raw, old, request.urn.split("::")[-1])
        found = problems(token, given(wire.plain(inputs)), self._config)
        return serving.checked(inputs, [(name, values.redacted(reason, raw)) for name, reason in found])

    async def Diff(self, request, context):
        kind = KINDS[kind_of(request.urn)]
        old, new = wire.plain(values.load(request.old_inputs)), wire.plain(values.load(request.news))
        found, replacing, first = changes(kind, old, new)
        ignored = [path for path in found if values.touches(path, list(request.ignoreChanges))]
        found = {path: what for path, what in found.items() if path not in ignored}
        return serving.differing(found, [path for path in replacing if path in found], first)

    async def Create(self, request, context):
        inputs = values.load(request.properties)
        work = self._preview(request, inputs) if request.preview else self._create(request, inputs)
        identity, outputs = await self._operate(context, work)
        return proto.provider_pb2.CreateResponse(id=identity, properties=wire.dump(outputs))

    async def Update(self, request, context):
        new = values.load(request.news)
        work = self._preview(request, new) if request.preview else self._update(request, new)
        _, outputs = await self._operate(context, work)
        return proto.provider_pb2.UpdateResponse(properties=wire.dump(outputs))

    async def Delete(self, request, context):
        await self._operate(context, self._delete(request))
        return empty_pb2.Empty()

    async def Read(self, request, context):
        identity, inputs, outputs = await self._operate(context, self._read(request))
        return proto.provider_pb2.ReadResponse(id=identity, inputs=wire.dump(inputs), properties=wire.dump(outputs))

    async def Invoke(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, not_done(request.tok))

    async def Construct(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, not_done(request.type))

    async def Cancel(self, request, context):
        await self.end()
        return empty_pb2.Empty()

    async def end(self) -> None:
        """End what runs, and wait until nothing is left of it."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _operate(self, context, work: Coroutine[Any, Any, Any]) -> Any:
        """Do the work as a task that `end` can cancel, and turn its failure into one that the engine shows."""
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

    async def _preview(self, request, raw: wire.Properties) -> tuple[str, wire.Properties]:
        """What an operation would bring: what Google fills in is not known before."""
        kind, inputs = KINDS[kind_of(request.urn)], given(wire.plain(raw))
        updating = isinstance(request, proto.provider_pb2.UpdateRequest)
        before = wire.plain(values.load(request.olds)) if updating else {}
        filled: dict[str, Any] = {}
        for path in kind.filled:
            cloud.put(filled, path, next((value for _, value in checks.at(before, path)), wire.UNKNOWN), inputs)
        return "", values.marked(cloud.over(filled, cloud.settled(kind, inputs, self._config)), raw)

    async def _create(self, request, raw: wire.Properties) -> tuple[str, wire.Properties]:
        token, inputs = kind_of(request.urn), given(wire.plain(raw))
        async with one_at_a_time(token):
            if token == CLUSTER:
                identity, record = await self._create_cluster(inputs)
            else:
                identity, record = cloud.new_record(token, inputs, self._config, known=pretended().records())
                if token == VM and computers.real():
                    pretended().admit(identity, record)
                    await computers.create(identity, record)
                elif token == ATTACHED and computers.real():
                    raise CommandError(not_done("an AttachedDisk (it knows attachedDisks of an Instance)"))
                await self._put(token, identity, record, request.urn)
        return identity, values.marked(record["outputs"], raw)

    async def _create_cluster(self, inputs: dict[str, Any]) -> tuple[str, Record]:
        known = pretended()
        known.admit(*cloud.new_record(CLUSTER, inputs, self._config, kubernetes=node.NONE))
        for other, _ in known.records(CLUSTER):
            raise CommandError(not_done(f"a second cluster: a rehearsal has one Kubernetes, which is {other} already"))
        identity, record = cloud.new_record(CLUSTER, inputs, self._config, kubernetes=await node.up())
        known.write(identity, record)
        known.trust(record["kubernetes"]["authority"])
        return identity, record

    async def _put(self, token: str, identity: str, record: Record, urn: str, *, new: bool = True) -> None:
        known = pretended()
        write = known.create if new else known.write
        if token != POOL:
            write(identity, record)
            if token == FIREWALL and computers.real():
                await computers.compute("rules")
            return
        async with node.changing(known, record["links"][0][0]) as said:
            write(identity, record)
        for line in said:
            await self._engine.log(line, urn=urn, level="WARNING")

    async def _update(self, request, raw: wire.Properties) -> tuple[str, wire.Properties]:
        token, inputs = kind_of(request.urn), given(wire.plain(raw))
        async with one_at_a_time(token):
            old = pretended().read(request.id)
            if old is None:
                raise CommandError(f"{request.id} was not found (notFound): `pulumi refresh` takes it out of the stack")
            refuse_to_stop(token, old["inputs"], inputs)
            more = {"kubernetes": old["kubernetes"]} if token == CLUSTER else {}
            identity, record = cloud.new_record(
                token, inputs, self._config, old["made"], known=pretended().records(), **more
            )
            if token == VM and computers.real():
                wanted = await computers.before_update(identity, old, record)
                await self._put(token, identity, record, request.urn, new=False)
                await computers.after_update(identity, record, wanted)
            else:
                await self._put(token, identity, record, request.urn, new=False)
            if token == DISK and computers.real():
                await computers.compute("grow", identity)
        return identity, values.marked(record["outputs"], raw)

    async def _delete(self, request) -> None:
        token, outputs = kind_of(request.urn), wire.plain(values.load(request.properties))
        known, policy = pretended(), outputs.get("deletionPolicy")
        if policy == "PREVENT":
            raise CommandError(
                f"{request.id} has deletionPolicy PREVENT: set it to DELETE, `pulumi up`, then try again"
            )
        if policy == "ABANDON" or (token == "projects/service:Service" and outputs.get("disableOnDestroy") is not True):
            return
        if outputs.get("deletionProtection") is True:
            raise CommandError(
                f"{request.id} cannot be deleted while deletionProtection is true: set it to false, `pulumi up`,"
                " then try again"
            )
        async with one_at_a_time(token):
            record = known.read(request.id)
            if token == POOL and record:
                async with node.changing(known, record["links"][0][0]):
                    known.delete(request.id)
                return
            if token == CLUSTER and record:
                await node.down()
                known.trust("")
            if token == VM and computers.real():
                await computers.compute("delete", request.id)
            known.delete(request.id)
            if token == FIREWALL and computers.real():
                await computers.compute("rules")

    async def _read(self, request) -> tuple[str, wire.Properties, wire.Properties]:
        """Id, inputs and outputs as they are now, all empty for what is gone."""
        inputs, before = values.load(request.inputs), values.load(request.properties)
        record = pretended().read(request.id)
        if record is None:
            return "", {}, {}
        if kind_of(request.urn) == VM and computers.real():
            await computers.observe(request.id, record)
        outputs = record.get("outputs", {})
        if not inputs:  # an import
            return request.id, record.get("inputs", {}) | {DEFAULTS: []}, outputs
        now = values.drifted(given(wire.plain(inputs)), wire.plain(before), outputs)
        made_up = {key: value for key, value in inputs.items() if key == DEFAULTS}
        return request.id, values.marked(now, inputs) | made_up, values.marked(outputs, inputs)


async def main() -> None:
    provider = Provider(serving.Engine())
    await serving.serve(
        lambda server: proto.provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server),
        provider.end,
    )


if __name__ == "__main__":
    asyncio.run(main())
