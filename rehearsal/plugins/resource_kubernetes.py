"""A stand-in for Pulumi's plugin `kubernetes` 4.34.2: objects through `kubectl`, and Helm releases through `helm`.

The engine starts this file as `pulumi-resource-kubernetes ENGINE_ADDRESS` in the stand-ins' environment, with both
programs on PATH. What it does not do it refuses by name.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

import grpc
from google.protobuf import any_pb2, empty_pb2

import serving
from command import wire
from command.output import CommandError
from kube import objects, release, values
from kube.objects import KINDS, Objects, PartialError
from kube.release import TOKEN, Releases
from kube.run import Cluster
from serving import proto

VERSION = "4.34.2"
TOKENS = {f"kubernetes:{token}": token for token in KINDS}
HEEDED = {
    "context",
    "deleteUnreachable",
    "enableConfigMapMutable",
    "enablePatchForce",
    "enableSecretMutable",
    "enableServerSideApply",
    "kubeconfig",
    "namespace",
    "upsertExistingObjects",
}
# What changes nothing here: warnings that nobody gives, the pace of another client, the engine's own.
IGNORED = {
    "kubeClientSettings",
    "suppressDeprecationWarnings",
    "suppressHelmHookWarnings",
    "version",
    "pluginDownloadURL",
    "__internal",
}


def kind_of(urn: str) -> str:
    return urn.split("::")[2].split("$")[-1]


def not_done(what: str) -> str:
    return f"the stand-in for kubernetes does not know {what}; install the official plugin"


def is_true(value: Any) -> bool:
    """A provider's flags arrive as text."""
    return value in (True, "true")


def config_problems(raw: wire.Properties) -> list[tuple[str, str]]:
    """What is wrong with a provider's inputs, as (property, reason)."""
    config = wire.plain(raw)
    found = [(name, not_done(f"{name} of the provider")) for name in sorted(config.keys() - HEEDED - IGNORED)]
    if config.get("enableServerSideApply") in (False, "false"):
        found.append(("enableServerSideApply", not_done("a provider without server-side apply")))
    return found


def problems(kind: str, raw: wire.Properties) -> list[tuple[str, str]]:
    """What is wrong with a resource's inputs, as (property, reason)."""
    inputs = wire.plain(raw)
    if kind == TOKEN:
        missing = [] if inputs.get("chart") else [("chart", "chart is required: a path, or a name in a repository")]
        return [*missing, *((name, not_done(f"{name} of {kind}")) for name in release.not_done(raw))]
    if kind not in TOKENS:
        return [("", not_done(kind))]
    metadata = inputs.get("metadata", {})
    if isinstance(metadata, dict) and "generateName" in metadata:
        return [("metadata", not_done(f"metadata.generateName of {kind}"))]
    return []


class Provider(proto.provider_pb2_grpc.ResourceProviderServicer):
    def __init__(self, engine: serving.Engine) -> None:
        self._engine = engine
        self._introduced = False
        self._running: set[asyncio.Task[Any]] = set()
        self._config: dict[str, Any] = {}
        self._cluster: Cluster | None = None

    async def GetPluginInfo(self, request, context):
        return proto.plugin_pb2.PluginInfo(version=VERSION)

    async def CheckConfig(self, request, context):
        return serving.checked(values.load(request.news), config_problems(values.load(request.news)))

    async def DiffConfig(self, request, context):
        old = wire.plain(values.load(request.old_inputs or request.olds))
        new = wire.plain(values.load(request.news))
        found = values.differences(old, new)
        # Another cluster has none of the objects that this one has.
        moved = await self._operate(context, _moved(old, new)) if found else False
        return serving.differing(found, list(found) if moved else [], False)

    async def Configure(self, request, context):
        if not self._introduced:
            self._introduced = True
            await self._engine.log(f"kubernetes {VERSION} is a stand-in here, not Pulumi's own plugin")
        self._config = wire.plain(values.load(request.args))
        if self._cluster:
            self._cluster.forget()
        kubeconfig, name = self._config.get("kubeconfig", ""), self._config.get("context", "")
        known = not values.has_unknown([kubeconfig, name])
        self._cluster = Cluster(kubeconfig, name) if known else None
        return proto.provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    async def Check(self, request, context):
        kind, raw = kind_of(request.urn), values.load(request.news)
        found = problems(kind, raw)
        if found:
            return serving.checked(raw, found)
        old, name = values.load(request.olds), request.urn.split("::")[-1]
        namespace = self._config.get("namespace", "")
        if kind != TOKEN:
            return serving.checked(objects.complete(TOKENS[kind], raw, old, name, namespace), [])
        inputs = release.complete(raw, old, name, namespace)
        try:
            version = await self._run(release.chart_version(self._cluster, inputs)) if self._cluster else None
        except CommandError as error:
            return serving.checked(inputs, [("chart", f"{error}; check the chart's name and repository")])
        return serving.checked(inputs | ({"version": version} if version else {}), [])

    async def Diff(self, request, context):
        kind = kind_of(request.urn)
        old = wire.plain(values.load(request.old_inputs))
        new = wire.plain(values.load(request.news))
        if kind == TOKEN:
            found, replacing, first = release.changes(old, new)
        else:
            found, replacing, first = objects.changes(TOKENS[kind], old, new, self._mutable())
        ignored = [path for path in found if values.touches(path, list(request.ignoreChanges))]
        found = {path: what for path, what in found.items() if path not in ignored}
        return serving.differing(found, [path for path in replacing if path in found], first)

    async def Create(self, request, context):
        inputs = values.load(request.properties)
        work = (self._preview if request.preview else self._create)(request, inputs)
        identity, outputs = await self._operate(context, work)
        return proto.provider_pb2.CreateResponse(id=identity, properties=wire.dump(outputs))

    async def Update(self, request, context):
        new = values.load(request.news)
        work = (self._preview if request.preview else self._update)(request, new)
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

    def forget(self) -> None:
        if self._cluster:
            self._cluster.forget()

    async def _operate(self, context, work: Coroutine[Any, Any, Any]) -> Any:
        """Do the work, and turn its failure into one that the engine shows."""
        try:
            return await self._run(work)
        except PartialError as error:
            await _abort_partially(context, error)
        except (CommandError, OSError) as error:
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))
        except asyncio.CancelledError:
            await context.abort(grpc.StatusCode.CANCELLED, "cancelled, and what was running has been ended")

    async def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do the work as a task that `end` can cancel."""
        task = asyncio.create_task(work)
        self._running.add(task)
        try:
            return await task
        finally:
            self._running.discard(task)

    async def _preview(self, request, inputs: wire.Properties) -> tuple[str, wire.Properties]:
        """What an operation would bring, as far as can be told without it."""
        kind = kind_of(request.urn)
        if kind == TOKEN:
            return "", inputs | dict.fromkeys(release.COMPUTED, wire.UNKNOWN)
        if self._cluster is None or values.has_unknown(inputs) or not await self._cluster.reachable():
            return "", inputs
        existing = Objects(self._cluster, TOKENS[kind])
        creating = isinstance(request, proto.provider_pb2.CreateRequest)
        if creating and await existing.exists(wire.plain(inputs)):
            return "", inputs  # a replacement, whose place is not free yet
        try:
            found, said = await existing.apply(inputs, force=True, dry=True)
        except CommandError as error:
            if "namespaces" in str(error) and "not found" in str(error):
                return "", inputs  # the same program may be about to make it
            raise
        await self._warn(request.urn, said)
        found.pop("status", None)
        return "", objects.outputs(found, inputs)

    async def _create(self, request, inputs: wire.Properties) -> tuple[str, wire.Properties]:
        kind, manifest = kind_of(request.urn), wire.plain(inputs)
        if kind == TOKEN:
            return release.identity(manifest), await Releases(self._known()).install(inputs)
        those = Objects(self._known(), TOKENS[kind])
        # As the official plugin: what is somebody else's would one day be deleted with this stack.
        if not is_true(self._config.get("upsertExistingObjects")) and await those.exists(manifest):
            raise CommandError(
                f"{manifest['kind']} {manifest['metadata']['name']} already exists: delete it, import it into the"
                " stack, or set upsertExistingObjects of the provider"
            )
        return await self._apply(request, those, inputs)

    async def _update(self, request, inputs: wire.Properties) -> tuple[str, wire.Properties]:
        kind = kind_of(request.urn)
        if kind == TOKEN:
            return request.id, await Releases(self._known()).upgrade(inputs)
        return await self._apply(request, Objects(self._known(), TOKENS[kind]), inputs)

    async def _apply(self, request, those: Objects, inputs: wire.Properties) -> tuple[str, wire.Properties]:
        found, said = await those.apply(inputs, force=is_true(self._config.get("enablePatchForce")))
        await self._warn(request.urn, said)
        seconds = objects.timeout(wire.plain(inputs), request.timeout)
        found = await those.ready(inputs, found, seconds)
        return objects.identity(found), objects.outputs(found, inputs)

    async def _delete(self, request) -> None:
        kind, outputs = kind_of(request.urn), values.load(request.properties)
        if await self._given_up():
            return
        if kind == TOKEN:
            await Releases(self._known()).uninstall(outputs)
        else:
            seconds = objects.timeout(wire.plain(outputs), request.timeout)
            await Objects(self._known(), TOKENS[kind]).delete(request.id, seconds)

    async def _read(self, request) -> tuple[str, wire.Properties, wire.Properties]:
        """Id, inputs and outputs as they are now, all empty for what is gone."""
        kind, inputs, before = kind_of(request.urn), values.load(request.inputs), values.load(request.properties)
        if not inputs:
            raise CommandError(not_done(f"an import of {kind}"))
        if await self._given_up():
            return "", {}, {}
        if kind == TOKEN:
            status = await Releases(self._known()).read(inputs)
            return (request.id, inputs, release.outputs(inputs, status)) if status else ("", {}, {})
        found = await Objects(self._known(), TOKENS[kind]).read(request.id)
        if found is None:
            return "", {}, {}
        return request.id, objects.inputs_now(inputs, before, found), objects.outputs(found, inputs)

    async def _given_up(self) -> bool:
        """Whether the cluster is gone, and the program says that so is then all that was in it."""
        return is_true(self._config.get("deleteUnreachable")) and not await self._known().reachable()

    def _known(self) -> Cluster:
        if self._cluster is None:
            raise CommandError("the provider's kubeconfig is not known yet")
        return self._cluster

    def _mutable(self) -> set[str]:
        flags = {"ConfigMap": "enableConfigMapMutable", "Secret": "enableSecretMutable"}
        return {kind for kind, flag in flags.items() if is_true(self._config.get(flag))}

    async def _warn(self, urn: str, said: str) -> None:
        for line in said.splitlines():
            await self._engine.log(line.removeprefix("Warning: "), urn=urn, level="WARNING")


async def _moved(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two providers' configurations lead to two clusters; not where one of them is not known yet."""
    if values.has_unknown([old, new]):
        return False
    return await _address(old) != await _address(new)


async def _address(config: dict[str, Any]) -> str:
    cluster = Cluster(config.get("kubeconfig", ""), config.get("context", ""))
    try:
        return await cluster.kubectl("config", "view", "--minify", "--raw", "-o", "jsonpath={.clusters[0].cluster}")
    except CommandError:
        return ""
    finally:
        cluster.forget()


async def _abort_partially(context, error: PartialError) -> None:
    """Fail so that the engine keeps what is there in its state, and mends it the next time."""
    kept = proto.provider_pb2.ErrorResourceInitFailed(
        id=error.identity, properties=wire.dump(error.outputs), reasons=[str(error)]
    )
    from pulumi.runtime.proto import status_pb2  # only once `serving` has cleared the way to it

    detail = any_pb2.Any()
    detail.Pack(kept)
    code = grpc.StatusCode.UNKNOWN
    status = status_pb2.Status(code=code.value[0], message=str(error), details=[detail])
    await context.abort(code, str(error), (("grpc-status-details-bin", status.SerializeToString()),))


async def main() -> None:
    provider = Provider(serving.Engine())
    try:
        await serving.serve(
            lambda server: proto.provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server),
            provider.end,
        )
    finally:
        provider.forget()


if __name__ == "__main__":
    asyncio.run(main())
