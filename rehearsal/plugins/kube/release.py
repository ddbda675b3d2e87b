"""`kubernetes:helm.sh/v3:Release`: a release of a chart, managed with `helm`."""

import asyncio
import json
import re
import secrets
from typing import Any

from command import wire
from command.output import CommandError, PartialError
from kube import ready
from kube.run import Cluster, ProgramError
from kube.values import differences, has_unknown, redacted, touches, without_nulls

TOKEN = "kubernetes:helm.sh/v3:Release"
SECONDS = 300  # helm's default timeout
DONE = {
    "allowNullValues",
    "atomic",
    "chart",
    "cleanupOnFail",
    "createNamespace",
    "description",
    "forceUpdate",
    "maxHistory",
    "name",
    "namespace",
    "repositoryOpts",
    "skipAwait",
    "skipCrds",
    "timeout",
    "values",
    "version",
    "waitForJobs",
}
IGNORED = {"compat"}  # set by the SDK
FIXED = ("name", "namespace")
COMPUTED = ("status", "resourceNames")
STATUS = ("name", "namespace", "revision", "status", "chart", "version", "appVersion")
# One line for each field of STATUS, then the manifest.
TEMPLATE = """{{with .Release}}{{.Name}}
{{.Namespace}}
{{.Version}}
{{.Info.Status}}
{{.Chart.Metadata.Name}}
{{.Chart.Metadata.Version}}
{{.Chart.Metadata.AppVersion}}
{{.Manifest}}{{end}}"""


def not_done(raw: wire.Properties) -> list[str]:
    """The arguments that are set but not supported."""
    inputs = wire.plain(raw)
    repository = inputs.get("repositoryOpts", {})
    below = repository.keys() - {"repo"} if isinstance(repository, dict) else set()
    names = [name for name in inputs if name not in DONE | IGNORED and inputs[name]]
    return sorted([*names, *(f"repositoryOpts.{name}" for name in below)])


def complete(raw: wire.Properties, old: wire.Properties, name: str, namespace: str) -> wire.Properties:
    """The inputs with defaults: name, namespace, timeout."""
    inputs = {key: value for key, value in raw.items() if key in DONE}
    if not wire.plain(inputs.get("allowNullValues")):
        inputs = without_nulls(inputs)
    if not inputs.get("name"):
        inputs["name"] = old.get("name") or f"{name}-{secrets.token_hex(4)}"
    if not inputs.get("namespace"):
        inputs["namespace"] = namespace or "default"
    if not wire.plain(inputs.get("skipAwait")):
        inputs.setdefault("timeout", SECONDS)
    return inputs


async def chart_version(cluster: Cluster, raw: wire.Properties) -> str | None:
    """The version of the chart, or None if it is unknown."""
    inputs = wire.plain(raw)
    if has_unknown([inputs.get(name) for name in ("chart", "version", "repositoryOpts")]):
        return None
    shown = await cluster.helm("show", "chart", *_chart(inputs))
    match = re.search(r"^version:\s*[\"']?([^\s\"']+)", shown, re.MULTILINE)
    return match[1] if match else None


def changes(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, str], list[str], bool]:
    """Differences between plain inputs, those that replace, and whether to delete the old release first."""
    found = differences(old, new)
    return found, [path for path in found if touches(path, FIXED)], False


class Releases:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def install(self, raw: wire.Properties) -> wire.Properties:
        inputs = wire.plain(raw)
        extra = [*_flag(inputs, "createNamespace", "--create-namespace"), *_flag(inputs, "skipCrds", "--skip-crds")]
        return await self._make("install", raw, extra)

    async def upgrade(self, raw: wire.Properties) -> wire.Properties:
        inputs = wire.plain(raw)
        extra = [
            f"--history-max={inputs.get('maxHistory', 0)}",
            *_flag(inputs, "forceUpdate", "--force"),
            *_flag(inputs, "cleanupOnFail", "--cleanup-on-fail"),
        ]
        return await self._make("upgrade", raw, extra)

    async def uninstall(self, raw: wire.Properties) -> None:
        """Uninstall the release. It may not exist."""
        inputs = wire.plain(raw)
        wait = ["--wait", _timeout(inputs)] if inputs.get("atomic") or not inputs.get("skipAwait") else []
        try:
            await self._cluster.helm("uninstall", *_place(inputs), *wait)
        except ProgramError as error:
            if "release: not found" not in str(error):
                raise

    async def read(self, raw: wire.Properties) -> wire.Properties | None:
        """The status of a release, or None if it does not exist."""
        inputs = wire.plain(raw)
        try:
            text = await self._cluster.helm("get", "all", *_place(inputs), "--template", TEMPLATE)
        except ProgramError as error:
            if "release: not found" in str(error):
                return None
            raise
        *lines, manifest = text.split("\n", len(STATUS))
        status: dict[str, Any] = dict(zip(STATUS, lines, strict=True))
        status["revision"] = int(status["revision"])
        return {"status": status, "resourceNames": resource_names(manifest)}

    async def _make(self, verb: str, raw: wire.Properties, extra: list[str]) -> wire.Properties:
        """Install or upgrade. Raises PartialError if it fails but leaves a failed release."""
        inputs = wire.plain(raw)
        place = [inputs["name"], *_chart(inputs), "--namespace", inputs["namespace"]]
        try:
            # Pass values as JSON, which is valid YAML, on stdin, which other processes cannot read.
            values = json.dumps(inputs.get("values", {}))
            await self._cluster.helm(verb, *place, *_waiting(inputs), *extra, "--values", "-", stdin=values)
        except (ProgramError, asyncio.CancelledError) as error:
            what = str(error) if isinstance(error, ProgramError) else "cancelled; helm was stopped"
            found = await self._left(raw)
            if found is None:
                if isinstance(error, ProgramError):
                    raise ProgramError(redacted(what, raw)) from None
                raise
            if isinstance(error, ProgramError) and not inputs.get("skipAwait"):
                what = "\n".join([what, *await ready.events(self._cluster, inputs["namespace"])])
            message = f"Helm release {identity(inputs)} was created, but failed: {what}"
            raise PartialError(redacted(message, raw), identity(inputs), outputs(raw, found)) from None
        found = await self.read(raw)
        if found is None:
            raise CommandError(f"Helm release {identity(inputs)} disappeared after its installation")
        return outputs(raw, found)

    async def _left(self, raw: wire.Properties) -> wire.Properties | None:
        """The status of a failed release; None if it does not exist or the cluster does not answer."""
        try:
            return await self.read(raw)
        except CommandError:
            return None


def identity(inputs: dict[str, Any]) -> str:
    return f"{inputs['namespace']}/{inputs['name']}"


def outputs(raw: wire.Properties, found: wire.Properties) -> wire.Properties:
    return raw | found


def resource_names(manifest: str) -> dict[str, list[str]]:
    """The objects in a manifest: `Kind.group/version` -> names, with the namespace if there is one."""
    import yaml  # not needed in a run without changes

    names: dict[str, list[str]] = {}
    for found in yaml.safe_load_all(manifest):
        if not found:
            continue
        version, metadata = found["apiVersion"], found["metadata"]
        group = f".{version.split('/')[0]}" if "/" in version else ""
        place = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
        names.setdefault(f"{found['kind']}{group}/{version}", []).append(place + metadata["name"])
    return names


def _place(inputs: dict[str, Any]) -> list[str]:
    return [inputs["name"], "--namespace", inputs["namespace"]]


def _chart(inputs: dict[str, Any]) -> list[str]:
    repository = inputs.get("repositoryOpts", {}).get("repo")
    version = inputs.get("version")
    return [
        inputs["chart"],
        *(["--repo", repository] if repository else []),
        *(["--version", version] if version else []),
    ]


def _waiting(inputs: dict[str, Any]) -> list[str]:
    awaited = not inputs.get("skipAwait")
    return [
        _timeout(inputs),
        *(["--wait"] if awaited else []),
        *(_flag(inputs, "waitForJobs", "--wait-for-jobs") if awaited else []),
        *_flag(inputs, "atomic", "--atomic"),
        *(["--description", inputs["description"]] if inputs.get("description") else []),
    ]


def _timeout(inputs: dict[str, Any]) -> str:
    return f"--timeout={inputs.get('timeout') or SECONDS}s"


def _flag(inputs: dict[str, Any], name: str, flag: str) -> list[str]:
    return [flag] if inputs.get(name) else []
