"""Kubernetes objects through `kubectl`, by server-side apply."""

import asyncio
import base64
import contextlib
import json
import secrets
from dataclasses import dataclass
from typing import Any

from command import wire
from command.output import CommandError, PartialError
from kube import ready
from kube.run import Cluster, ProgramError
from kube.values import differences, drifted, marked, redacted, secret, touches, without_nulls

Object = dict[str, Any]
MANAGER = "pulumi-kubernetes"
SECONDS = 600.0  # default timeout
AUTONAMED, SKIP_AWAIT, TIMEOUT, FORCE = (
    f"pulumi.com/{name}" for name in ("autonamed", "skipAwait", "timeoutSeconds", "patchForce")
)


@dataclass(frozen=True)
class Kind:
    resource: str  # kubectl's name
    namespaced: bool = True
    fixed: tuple[str, ...] = ()  # arguments whose change replaces the object
    dependents: bool = False  # whether controllers create dependent objects, which are deleted first


KINDS = {
    "core/v1:ConfigMap": Kind("configmaps", fixed=("data", "binaryData")),
    "core/v1:Namespace": Kind("namespaces", namespaced=False),
    "core/v1:PersistentVolumeClaim": Kind(
        "persistentvolumeclaims",
        fixed=("spec.accessModes", "spec.selector", "spec.storageClassName", "spec.volumeName"),
    ),
    "core/v1:Secret": Kind("secrets", fixed=("type", "data", "stringData")),
    "core/v1:Service": Kind("services", fixed=("spec.clusterIP",)),
    "core/v1:ServiceAccount": Kind("serviceaccounts"),
    "apps/v1:Deployment": Kind("deployments.apps", fixed=("spec.selector",), dependents=True),
    "batch/v1:Job": Kind(
        "jobs.batch",
        fixed=("spec.completions", "spec.parallelism", "spec.selector", "spec.template"),
        dependents=True,
    ),
    "cloud.google.com/v1:ComputeClass": Kind("computeclasses.cloud.google.com", namespaced=False),
    "networking.k8s.io/v1:NetworkPolicy": Kind("networkpolicies.networking.k8s.io"),
    "rbac.authorization.k8s.io/v1:ClusterRoleBinding": Kind(
        "clusterrolebindings.rbac.authorization.k8s.io", namespaced=False, fixed=("roleRef",)
    ),
    "rbac.authorization.k8s.io/v1:Role": Kind("roles.rbac.authorization.k8s.io"),
    "rbac.authorization.k8s.io/v1:RoleBinding": Kind("rolebindings.rbac.authorization.k8s.io", fixed=("roleRef",)),
    "storage.k8s.io/v1:StorageClass": Kind(
        "storageclasses.storage.k8s.io", namespaced=False, fixed=("provisioner", "parameters")
    ),
}


def complete(token: str, raw: wire.Properties, old: wire.Properties, name: str, namespace: str) -> wire.Properties:
    """The inputs with defaults: version, kind, name, the provider's namespace."""
    version, kind = token.removeprefix("core/").split(":")
    inputs = {"apiVersion": version, "kind": kind, "metadata": {}} | without_nulls(raw)
    metadata = inputs["metadata"]
    if not isinstance(metadata, dict) or wire.SIGNATURE in metadata:
        return inputs
    inputs["metadata"] = metadata = dict(metadata)
    if not metadata.get("name"):
        previous = wire.plain(old).get("metadata", {})
        adopted = previous.get("annotations", {}).get(AUTONAMED) == "true"
        metadata["name"] = previous["name"] if adopted else f"{name}-{secrets.token_hex(4)}"
        annotations = metadata.get("annotations", {})
        if isinstance(annotations, dict) and wire.SIGNATURE not in annotations:
            metadata["annotations"] = annotations | {AUTONAMED: "true"}
    if namespace and KINDS[token].namespaced and not metadata.get("namespace"):
        metadata["namespace"] = namespace
    return inputs


def fixed(token: str, new: Object, mutable: set[str]) -> list[str]:
    """Paths whose change replaces the object. ConfigMaps and Secrets only change in place if they are in `mutable`."""
    paths = KINDS[token].fixed
    if new.get("kind") in mutable and new.get("immutable") is not True:
        paths = tuple(path for path in paths if path == "type")
    return ["metadata.name", "metadata.namespace", *paths]


def keeps_its_name(old: Object, new: Object) -> bool:
    """Whether the new object has the old one's name and namespace, so that the old one must be deleted first."""
    before, after = old.get("metadata", {}), new.get("metadata", {})
    if not isinstance(after, dict) or after.get("annotations", {}).get(AUTONAMED) == "true":
        return False
    return all(before.get(key) == after.get(key) for key in ("name", "namespace"))


def changes(token: str, old: Object, new: Object, mutable: set[str]) -> tuple[dict[str, str], list[str], bool]:
    """Differences between plain inputs, those that replace, and whether to delete the old object first."""
    found = differences(old, new)
    replacing = [path for path in found if touches(path, fixed(token, new, mutable))]
    return found, replacing, bool(replacing) and keeps_its_name(old, new)


class Objects:
    """The objects of one kind in a cluster."""

    def __init__(self, cluster: Cluster, token: str) -> None:
        self._cluster, self._kind = cluster, KINDS[token]

    async def exists(self, manifest: Object) -> bool:
        place = self._place(manifest["metadata"])
        return bool(await self._cluster.kubectl("get", *place, "--ignore-not-found", "-o", "name"))

    async def apply(self, raw: wire.Properties, *, force: bool, dry: bool = False) -> tuple[Object, str]:
        """Apply the inputs. Returns the object and the API server's warnings."""
        manifest = wire.plain(raw)
        arguments = ["apply", "--server-side", f"--field-manager={MANAGER}", "--validate=warn", "-o", "json", "-f", "-"]
        if dry:
            arguments.append("--dry-run=server")
        if force or dry or _annotation(manifest, FORCE) == "true":
            arguments.append("--force-conflicts")
        try:
            text, warnings = await self._cluster.kubectl_with_warnings(*arguments, stdin=json.dumps(manifest))
        except ProgramError as error:
            raise ProgramError(redacted(str(error), raw)) from None
        return json.loads(text), redacted(warnings.strip(), raw)

    async def ready(self, raw: wire.Properties, found: Object, seconds: float) -> Object:
        """Wait until the object is ready, and return it. Raises PartialError on a timeout."""
        manifest = wire.plain(raw)
        if _annotation(manifest, SKIP_AWAIT) == "true":
            return found
        try:
            return await ready.until_ready(self._cluster, self._kind.resource, found, seconds)
        except (CommandError, asyncio.CancelledError) as error:
            why = str(error) or "the wait for it was cancelled"
            what = f"{found['kind']} {identity(found)} was created, but {why}"
            raise PartialError(redacted(what, raw), identity(found), outputs(found, raw)) from None

    async def read(self, identity: str) -> Object | None:
        """The current object, or None if it does not exist."""
        text = await self._cluster.kubectl("get", *self._place(_named(identity)), "--ignore-not-found", "-o", "json")
        return json.loads(text) if text else None

    async def delete(self, identity: str, seconds: float) -> None:
        """Delete the object and wait until it no longer exists. It may not exist."""
        cascade = "foreground" if self._kind.dependents else "background"
        options = ["--wait", f"--timeout={seconds:g}s", f"--cascade={cascade}"]
        try:
            await self._cluster.kubectl("delete", *self._place(_named(identity)), *options)
        except ProgramError as error:
            found = await self.read(identity)
            if found is None:
                return
            conditions = [c for c in found.get("status", {}).get("conditions", []) if c.get("status") == "True"]
            reasons = [f"{c.get('type')}: {c.get('message')}" for c in conditions]
            raise ProgramError("\n".join([f"{identity} still exists: {error}", *reasons])) from None

    def _place(self, metadata: Object) -> list[str]:
        namespace = metadata.get("namespace") if self._kind.namespaced else None
        return [self._kind.resource, metadata["name"], *(["--namespace", namespace] if namespace else [])]


def identity(found: Object) -> str:
    metadata = found["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if metadata.get("namespace") else metadata["name"]


def _named(identity: str) -> Object:
    namespace, _, name = identity.rpartition("/")
    return {"namespace": namespace, "name": name}


def timeout(manifest: Object, custom: float) -> float:
    """The timeout in seconds: from the resource option, the annotation, or the default."""
    configured = _annotation(manifest, TIMEOUT)
    return custom or (float(configured) if configured else SECONDS)


def _annotation(manifest: Object, name: str) -> str:
    return manifest.get("metadata", {}).get("annotations", {}).get(name, "")


def outputs(found: Object, raw: wire.Properties) -> wire.Properties:
    """The object for the state. Values are secret if the inputs are, and a Secret's contents always are."""
    result = marked(found, raw)
    for name in ("data", "stringData") if found["kind"] == "Secret" else ():
        if name in result:
            result[name] = secret(wire.plain(result[name]))
    return result


def inputs_now(raw: wire.Properties, before: wire.Properties, found: Object) -> wire.Properties:
    """The inputs that would create the current object."""
    plain = drifted(wire.plain(raw), _readable(wire.plain(before)), _readable(found))
    return marked(plain, raw)


def _readable(found: Object) -> Object:
    """Add `stringData` to a Secret, which the API server accepts but never returns."""
    if found.get("kind") != "Secret":
        return found
    texts = {}
    for key, value in found.get("data", {}).items():
        with contextlib.suppress(ValueError):
            texts[key] = base64.b64decode(value).decode()
    return found | {"stringData": texts}
