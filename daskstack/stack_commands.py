"""Commands that build, change and remove a stack. They need the project, and run its tools with its own Python."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from daskstack import cluster_commands, configuration, engine
from daskstack.configuration import StackKind
from daskstack.google_credentials import has_credentials

DEV = "dev"  # runs on this computer and costs nothing, so no command asks for confirmation
DEAD = (
    "If a machine will never answer again, set `gone: true` for it in {file} and run `up`, which then skips it."
    " Afterwards `destroy` skips it, too."
)


class Failed(Exception):
    """A program has failed and printed the reason; `status` is its exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


def up(stack: str, yes: bool) -> None:
    configuration.file(stack)
    tool("unlock", stack)
    select(stack, create=True)
    kind = prepared(stack)
    if kind.compute:
        tool("allow_my_address", stack)
    pulumi(kind, stack, "up", *answers(stack, yes), *(["--refresh"] if kind.compute else []))
    cluster_commands.summary(stack)


def preview(stack: str) -> None:
    configuration.file(stack)
    select(stack, create=True)
    kind = prepared(stack)
    # The plugin requires a credential even for a preview, which sends no request to Google.
    pretended = {} if has_credentials() else {"GOOGLE_OAUTH_ACCESS_TOKEN": "preview"}
    pulumi(kind, stack, "preview", **pretended)


def destroy(stack: str, yes: bool) -> None:
    tool("unlock", stack)
    tool("undo_unfinished", stack)
    select(stack, create=stack == DEV)
    kind = prepared(stack)
    pulumi(kind, stack, "destroy", *answers(stack, yes))
    if kind.local:
        sweep(stack)
    if kind.google and shutil.which("gcloud"):
        tool("cloud_leftovers", stack, check=False)
    if stack == DEV:  # `destroy` removes even the state of this stack
        succeeded(engine.pulumi(stack, "stack", "rm", "--yes", "--preserve-config", "--remove-backups").returncode)


def leftovers(stack: str) -> None:
    configuration.file(stack)
    tool("cloud_leftovers", stack)


def rehearse(stack: str) -> None:
    configuration.file(stack)
    install("rehearsal")
    tool("rehearse", stack)


def lock(upgrade: bool) -> None:
    variable = {"UPGRADE": "1"} if upgrade else {}
    succeeded(run([sys.executable, "-m", "tools.lock"], {**os.environ, **variable}))


def prepared(stack: str) -> StackKind:
    """Installs the programs and packages that this kind of stack needs."""
    kind = StackKind.of(configuration.read(stack))
    install("program", *kind.parts)
    return kind


def answers(stack: str, yes: bool) -> list[str]:
    if stack == DEV:
        return ["--yes", "--skip-preview"]
    return ["--yes"] if yes else []


def select(stack: str, *, create: bool) -> None:
    succeeded(engine.pulumi(stack, "stack", "select", *(["--create"] if create else [])).returncode)


def pulumi(kind: StackKind, stack: str, *words: str, **variables: str) -> None:
    environ = {**os.environ, **engine.variables(stack), **variables}
    status = run([engine.engine(), "--cwd", engine.PROJECT, *words, "--stack", stack], environ)
    if status and kind.users_machines and words[0] != "preview":
        print(DEAD.format(file=configuration.file(stack).name), file=sys.stderr)
    succeeded(status)


def sweep(stack: str) -> None:
    """Removes machines and networks that a first `up` created but could not record because it was killed."""
    folder = engine.data_folder() / "machines" / Path(stack).name
    script = engine.PROJECT / "on_this_computer/local_machines/network.sh"
    succeeded(run(["bash", script, "sweep"], {**os.environ, "DIRECTORY": str(folder), "NAME": stack}))


def install(*words: str) -> None:
    succeeded(run([sys.executable, "-m", "tools.install", *words], os.environ))


def tool(name: str, stack: str, *, check: bool = True) -> None:
    python = engine.checked_project() / ".venv/bin/python"
    if not python.exists():
        install("program")
    status = run([python, "-m", f"tools.{name}", stack], os.environ)
    if check:
        succeeded(status)


def run(command: list, environ: Mapping[str, str]) -> int:
    """Runs a program on this terminal. It gets Ctrl-C directly and decides how to end, so this process waits."""
    # Set it before the program starts, because Ctrl-C can follow at once. The program does not inherit this handler.
    handlers = {signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None)}
    try:
        with subprocess.Popen(list(map(str, command)), cwd=engine.checked_project(), env=environ) as process:
            handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
            status = process.wait()
        return status if status >= 0 else 128 - status  # as a shell reports a signal
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def succeeded(status: int) -> None:
    if status:
        raise Failed(status)
