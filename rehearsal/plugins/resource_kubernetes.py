"""A stand-in for Pulumi's plugin `kubernetes` 4.34.2: objects through `kubectl`, and Helm releases through `helm`.

The engine starts this file as `pulumi-resource-kubernetes ENGINE_ADDRESS` in the stand-ins' environment, with both
programs on PATH. Unsupported arguments are rejected by name.
"""

import asyncio
from typing import Any

from command import wire
from command.output import CommandError, Found, refusal
from command.wire import Properties
from kube import objects, release, values
from kube.objects import KINDS, Objects
from kube.release import TOKEN, Releases
from kube.run import Cluster
from provider import Answer, Provider, name_of

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
# Options without effect here: warnings, the rate limits of the official client, and options of the engine.
IGNORED = {
    "kubeClientSettings",
    "suppressDeprecationWarnings",
    "suppressHelmHookWarnings",
    "version",
    "pluginDownloadURL",
    "__internal",
}


not_done = refusal("kubernetes")


def is_true(value: Any) -> bool:
    """A provider's flags arrive as strings."""
    return value in (True, "true")


def config_problems(raw: Properties) -> list[Found]:
    config = wire.plain(raw)
    found = [(name, not_done(f"{name} of the provider")) for name in sorted(config.keys() - HEEDED - IGNORED)]
    if config.get("enableServerSideApply") in (False, "false"):
        found.append(("enableServerSideApply", not_done("a provider without server-side apply")))
    return found


def problems(kind: str, raw: Properties) -> list[Found]:
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


class Kubernetes(Provider):
    name, version, not_done = "kubernetes", "4.34.2", staticmethod(not_done)
    _cluster: Cluster | None = None

    def config_problems(self, raw):
        return config_problems(raw)

    async def config_changes(self, old, new):
        old, new = wire.plain(old), wire.plain(new)
        found = values.differences(old, new)
        # Another cluster contains none of these objects.
        return found, list(found) if found and await _moved(old, new) else []

    def configure(self, raw):
        self._config = wire.plain(raw)
        self.forget()
        kubeconfig, name = self._config.get("kubeconfig", ""), self._config.get("context", "")
        known = not values.has_unknown([kubeconfig, name])
        self._cluster = Cluster(kubeconfig, name) if known else None

    async def check(self, request, kind, raw):
        if found := problems(kind, raw):
            return raw, found
        old, name, namespace = wire.load(request.olds), name_of(request), self._config.get("namespace", "")
        if kind != TOKEN:
            return objects.complete(TOKENS[kind], raw, old, name, namespace), []
        inputs = release.complete(raw, old, name, namespace)
        try:
            version = await release.chart_version(self._cluster, inputs) if self._cluster else None
        except CommandError as error:
            return inputs, [("chart", f"{error}; check the chart's name and repository")]
        return inputs | ({"version": version} if version else {}), []

    def changes(self, kind, old, new):
        if kind == TOKEN:
            return release.changes(old, new)
        return objects.changes(TOKENS[kind], old, new, self._mutable())

    def forget(self) -> None:
        if self._cluster:
            self._cluster.forget()

    async def preview(self, request, kind, raw):
        if kind == TOKEN:
            return raw | dict.fromkeys(release.COMPUTED, wire.UNKNOWN)
        if self._cluster is None or values.has_unknown(raw) or not await self._cluster.reachable():
            return raw
        existing = Objects(self._cluster, TOKENS[kind])
        if isinstance(request, Answer.CreateRequest) and await existing.exists(wire.plain(raw)):
            return raw  # a replacement of an object that still exists
        try:
            found, warnings = await existing.apply(raw, force=True, dry=True)
        except CommandError as error:
            if "namespaces" in str(error) and "not found" in str(error):
                return raw  # the same program may create it
            raise
        await self._warn(request.urn, warnings)
        found.pop("status", None)
        return objects.outputs(found, raw)

    async def create(self, request, kind, raw):
        manifest = wire.plain(raw)
        if kind == TOKEN:
            return release.identity(manifest), await Releases(self._known()).install(raw)
        those = Objects(self._known(), TOKENS[kind])
        # Like the official plugin, do not adopt existing objects, because this stack would later delete them.
        if not is_true(self._config.get("upsertExistingObjects")) and await those.exists(manifest):
            raise CommandError(
                f"{manifest['kind']} {manifest['metadata']['name']} already exists; delete it, import it into the"
                " stack, or set upsertExistingObjects of the provider"
            )
        return await self._apply(request, those, raw)

    async def update(self, request, kind, raw):
        if kind == TOKEN:
            return await Releases(self._known()).upgrade(raw)
        return (await self._apply(request, Objects(self._known(), TOKENS[kind]), raw))[1]

    async def _apply(self, request, those: Objects, inputs: Properties) -> tuple[str, Properties]:
        found, warnings = await those.apply(inputs, force=is_true(self._config.get("enablePatchForce")))
        await self._warn(request.urn, warnings)
        seconds = objects.timeout(wire.plain(inputs), request.timeout)
        found = await those.ready(inputs, found, seconds)
        return objects.identity(found), objects.outputs(found, inputs)

    async def delete(self, request, kind):
        outputs = wire.load(request.properties)
        if await self._given_up():
            return
        if kind == TOKEN:
            await Releases(self._known()).uninstall(outputs)
        else:
            seconds = objects.timeout(wire.plain(outputs), request.timeout)
            await Objects(self._known(), TOKENS[kind]).delete(request.id, seconds)

    async def read(self, request, kind):
        inputs, before = wire.load(request.inputs), wire.load(request.properties)
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
        """Whether the cluster is unreachable and the program treats its objects as deleted in that case."""
        return is_true(self._config.get("deleteUnreachable")) and not await self._known().reachable()

    def _known(self) -> Cluster:
        if self._cluster is None:
            raise CommandError("the provider's kubeconfig is not known yet")
        return self._cluster

    def _mutable(self) -> set[str]:
        flags = {"ConfigMap": "enableConfigMapMutable", "Secret": "enableSecretMutable"}
        return {kind for kind, flag in flags.items() if is_true(self._config.get(flag))}

    async def _warn(self, urn: str, warnings: str) -> None:
        for line in warnings.splitlines():
            await self.engine.log(line.removeprefix("Warning: "), urn=urn, level="WARNING")


async def _moved(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two configurations refer to different clusters; False if one is not known yet."""
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


async def main() -> None:
    plugin = Kubernetes()
    try:
        await plugin.serve()
    finally:
        plugin.forget()


if __name__ == "__main__":
    asyncio.run(main())
