"""`command:remote:Command`: runs a command on another machine over SSH."""

import asyncio
import contextlib
from typing import Any

import asyncssh
from asyncssh.packet import String

from command.connection import connect
from command.output import CommandError, Log, Output


class _Channel(asyncssh.SSHClientChannel):
    """A channel that checks whether the server accepted environment variables, which asyncssh does not."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.refused: list[str] = []

    async def create(self, session_factory, command, subsystem, env, *rest):
        self._wanted = env
        return await super().create(session_factory, command, subsystem, {}, *rest)

    async def _make_request(self, request: bytes, *args: bytes) -> bool | None:
        if request == b"exec":
            for name, value in self._wanted.items():
                if not await super()._make_request(b"env", String(name), String(value)):
                    self.refused.append(name.decode())
            if required := [name for name in self.refused if not name.startswith("PULUMI_COMMAND_")]:
                self.close()
                raise CommandError(
                    f"could not set environment variable {', '.join(required)}: the SSH server accepts only "
                    "those that its AcceptEnv lists; put assignments before the script, or on stdin if they are private"
                )
        return await super()._make_request(request, *args)


asyncssh.connection.SSHClientChannel = _Channel  # type: ignore[attr-defined]


async def run(
    script: str, inputs: dict[str, Any], previous: dict[str, str], output: Output, shown: str, log: Log, warn: Log
) -> None:
    """Run `script`. Raises CommandError unless it exits with status 0. The error shows the script as `shown`."""
    address = inputs["connection"]["host"]
    async with connect(inputs["connection"], log) as ssh:
        try:
            process = await ssh.create_process(script, env={**inputs.get("environment", {}), **previous}, encoding=None)
            for name in process.channel.refused:
                await warn(f"{address} refused the variable {name}; addPreviousOutputInEnv: false avoids this")
            await asyncio.gather(
                _feed(process, (inputs.get("stdin") or "").encode()),
                output.follow(process.stdout, "stdout"),
                output.follow(process.stderr, "stderr"),
            )
            await process.wait_closed()
        except (OSError, asyncssh.Error) as error:
            raise output.error(f"connection to {address} was lost ({error})", shown) from error
        if process.exit_status is None:
            raise output.error(f"connection to {address} was closed before the command ended", shown)
        if process.exit_status:
            by = f" from signal {process.exit_signal[0]}" if process.exit_signal else ""
            raise output.error(f"Process exited with status {process.exit_status}{by}", shown)


async def _feed(process: asyncssh.SSHClientProcess, data: bytes) -> None:
    # The command may not read its stdin.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(data)
        await process.stdin.drain()
        process.stdin.write_eof()
