"""Runs programs as child processes, which end with their operation."""

import asyncio
import contextlib
import os
import signal
from typing import Any

from command.output import CommandError

GRACE = 2.0  # seconds between SIGTERM and SIGKILL


async def run(program: str, *arguments: str, stdin: str = "", **kwargs: Any) -> str:
    """Run a program with `kwargs` for asyncio.create_subprocess_exec. Returns its stdout."""
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # In its own process group, the program does not receive the engine's SIGINT; the plugin stops it instead.
        start_new_session=True,
        **kwargs,
    )
    try:
        stdout, stderr = await process.communicate(stdin.encode())
    except asyncio.CancelledError:
        await _end(process)
        raise
    if process.returncode:
        raise CommandError(stderr.decode(errors="replace").strip() or f"{program}: status {process.returncode}")
    return stdout.decode()


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), GRACE)
        os.killpg(process.pid, signal.SIGKILL)
