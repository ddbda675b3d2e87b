"""A stand-in for Pulumi's plugin `command` 1.2.1: runs commands on this machine and, over SSH, on others.

The engine starts this file as `pulumi-resource-command ENGINE_ADDRESS` in the stand-ins' environment. It rejects
unsupported arguments by name.
"""

import asyncio
import functools
import secrets
from typing import Any

import values
from command import local, wire
from command.output import Found, Log, Output, refusal
from command.wire import Properties
from provider import Provider, kind_of, name_of

LOCAL, REMOTE, COPY = "command:local:Command", "command:remote:Command", "command:remote:CopyToRemote"
SCRIPTS = {"create", "update", "delete", "stdin", "environment", "logging", "addPreviousOutputInEnv", "triggers"}
INPUTS = {
    LOCAL: SCRIPTS | {"dir", "interpreter"},
    REMOTE: SCRIPTS | {"connection"},
    COPY: {"connection", "source", "remotePath", "triggers"},
}
OUTPUTS = {"stdout", "stderr"}
LOGGING = ["stdout", "stderr", "stdoutAndStderr", "none"]


not_done = refusal("command")


def problems(kind: str, raw: Properties) -> list[Found]:
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
            found.append(("source", "expected a FileAsset or a FileArchive with a path on this machine"))
        if not inputs.get("remotePath"):
            found.append(("remotePath", "remotePath is required: the target path on the machine"))
    return found


class Command(Provider):
    name, version, not_done = "command", "1.2.1", staticmethod(not_done)

    async def check(self, request, kind, raw):
        return raw, problems(kind, raw)

    def changes(self, kind, old, new):
        found = values.differences(old, new)
        return found, [path for path in found if path == "triggers"], False

    async def preview(self, request, kind, raw):
        return raw if kind == COPY else raw | dict.fromkeys(OUTPUTS, wire.UNKNOWN)

    async def create(self, request, kind, raw):
        if kind == COPY:
            await self._copy(request, raw)
        else:
            raw |= await self._command(request, raw.get("create"), raw, dict.fromkeys(OUTPUTS, ""))
        return name_of(request) + secrets.token_hex(4), raw

    async def update(self, request, kind, raw):
        old = wire.load(request.olds)
        if kind != COPY:
            return raw | await self._command(request, raw.get("update", raw.get("create")), raw, _outputs(old))
        # Like the official plugin, do not copy again if only the connection changed.
        if any(wire.changed(old.get(name), raw.get(name)) for name in ("source", "remotePath")):
            await self._copy(request, raw)
        return raw

    async def delete(self, request, kind):
        old = wire.load(request.properties)
        if kind != COPY:
            await self._command(request, old.get("delete"), old, _outputs(old))

    async def _command(self, request: Any, raw_script: Any, raw: Properties, raw_previous: Properties) -> Properties:
        """Run a script, if any. Returns stdout and stderr; the previous ones if nothing ran."""
        if raw_script is None:
            return raw_previous
        script, inputs = wire.plain(raw_script), wire.plain(raw)
        previous = {
            f"PULUMI_COMMAND_{name.upper()}": value
            for name, value in wire.plain(raw_previous).items()
            if value and inputs.get("addPreviousOutputInEnv", True)
        }
        shown = "[secret]" if wire.has_secret(raw_script) else script
        output = Output(inputs.get("logging", "stdoutAndStderr"), self._log(request))
        if kind_of(request) == LOCAL:
            await local.run(script, inputs, previous, output, shown)
        else:
            from command import remote  # importing asyncssh takes 0.3 s, which a run without changes can skip

            log, warn = self._log(request), self._log(request, level="WARNING", passing=False)
            await remote.run(script, inputs, previous, output, shown, log, warn)
        return output.properties()

    async def _copy(self, request: Any, raw: Properties) -> None:
        from command import copy_to_remote

        await copy_to_remote.copy(wire.plain(raw), self._log(request))

    def _log(self, request: Any, level: str = "INFO", passing: bool = True) -> Log:
        return functools.partial(self.engine.log, urn=request.urn, level=level, passing=passing)


def _outputs(old: Properties) -> Properties:
    return {name: old.get(name, "") for name in OUTPUTS}


if __name__ == "__main__":
    asyncio.run(Command().serve())
