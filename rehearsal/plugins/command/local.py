"""`command:local:Command`: runs a command on this machine."""

import asyncio
import contextlib
import os
import signal
from typing import Any

from command.output import Output

GRACE = 2.0  # seconds between SIGTERM and SIGKILL; the engine itself kills a plugin 5 s after the first Ctrl-C


async def run(script: str, inputs: dict[str, Any], previous: dict[str, str], output: Output, shown: str) -> None:
    """Run `script`. Raises CommandError unless it exits with status 0. The error shows the script as `shown`."""
    stdin = inputs.get("stdin") or ""
    process = await asyncio.create_subprocess_exec(
        *(inputs.get("interpreter") or ["/bin/sh", "-c"]),
        script,
        stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=inputs.get("dir"),
        env={**os.environ, **inputs.get("environment", {}), **previous},
        # In its own process group, the command does not receive the engine's SIGINT, and processes that it started in
        # the background survive it.
        start_new_session=True,
    )
    try:
        await asyncio.gather(
            _feed(process.stdin, stdin.encode()),
            output.follow(process.stdout, "stdout"),
            output.follow(process.stderr, "stderr"),
        )
        status = await process.wait()
    except asyncio.CancelledError:
        await _end_group(process.pid)
        raise
    if status:
        what = f"exit status {status}" if status > 0 else f"signal: {signal.Signals(-status).name}"
        raise output.error(what, shown)


async def _feed(stdin: asyncio.StreamWriter | None, data: bytes) -> None:
    if stdin is None:
        return
    # The command may not read its stdin.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stdin.write(data)
        await stdin.drain()
    stdin.close()


async def _end_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                while True:
                    os.killpg(group, 0)
                    await asyncio.sleep(0.05)
        os.killpg(group, signal.SIGKILL)
