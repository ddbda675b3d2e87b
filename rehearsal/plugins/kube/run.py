"""Runs `kubectl` and `helm` as child processes, which end with their operation."""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

from command.output import CommandError

GRACE = 2.0  # seconds between SIGTERM, which makes helm record a failed release, and SIGKILL
PROBE = 5  # timeout in seconds for an answer of the cluster


class ProgramError(CommandError):
    """A program failed. The message is its output."""


class Cluster:
    """A cluster, given by a kubeconfig and a context. If either is empty, the environment's is used."""

    def __init__(self, kubeconfig: str, context: str) -> None:
        self._environment = dict(os.environ)
        self._context = context
        self._file: Path | None = None
        self._answers: bool | None = None
        self._asking = asyncio.Lock()
        if is_path(kubeconfig):
            self._environment["KUBECONFIG"] = str(Path(kubeconfig).expanduser())
        elif kubeconfig:
            handle, name = tempfile.mkstemp(prefix="kubeconfig-")  # readable only by this user
            with os.fdopen(handle, "w") as file:
                file.write(kubeconfig)
            self._file = Path(name)
            self._environment["KUBECONFIG"] = name

    def forget(self) -> None:
        """Delete the temporary kubeconfig."""
        if self._file:
            self._file.unlink(missing_ok=True)

    async def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return (await self.kubectl_with_warnings(*arguments, stdin=stdin))[0]

    async def kubectl_with_warnings(self, *arguments: str, stdin: str = "") -> tuple[str, str]:
        """Run kubectl. Returns its stdout and stderr."""
        context = ["--context", self._context] if self._context else []
        return await self._run("kubectl", *context, *arguments, stdin=stdin)

    async def helm(self, *arguments: str, stdin: str = "") -> str:
        context = ["--kube-context", self._context] if self._context else []
        return (await self._run("helm", *arguments, *context, stdin=stdin))[0]

    async def reachable(self) -> bool:
        """Whether the cluster answers. The result is cached."""
        async with self._asking:
            if self._answers is None:
                try:
                    await self.kubectl("get", "--raw", "/version", f"--request-timeout={PROBE}s")
                    self._answers = True
                except ProgramError:
                    self._answers = False
        return self._answers

    async def _run(self, program: str, *arguments: str, stdin: str) -> tuple[str, str]:
        return await run(program, *arguments, stdin=stdin, env=self._environment)


async def run(program: str, *arguments: str, stdin: str = "", **kwargs: Any) -> tuple[str, str]:
    """Run a program with `kwargs` for asyncio.create_subprocess_exec. Returns its stdout and stderr."""
    if not shutil.which(program):
        raise CommandError(f"`{program}`, which the stand-in requires, is not on PATH")
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
        raise ProgramError(stderr.decode(errors="replace").strip() or f"{program}: status {process.returncode}")
    return stdout.decode(), stderr.decode(errors="replace")


def is_path(kubeconfig: str) -> bool:
    """Whether a provider's `kubeconfig` is a path, even of a missing file, rather than a file's contents."""
    return bool(kubeconfig) and "\n" not in kubeconfig and not kubeconfig.lstrip().startswith("{")


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), GRACE)
        os.killpg(process.pid, signal.SIGKILL)
