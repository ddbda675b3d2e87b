"""Commands that build, change and remove a stack. They need the project, and run its tools with its own Python."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from daskstack import cluster_commands, configuration, engine, shared_directory
from daskstack.configuration import StackKind
from daskstack.google_credentials import has_credentials

DEV = "dev"  # runs on this computer and costs nothing, so no command asks for confirmation


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
        tool("google_policies", stack)
    if kind.at_least:
        tool("missing_machines", stack)
        if kind.users_machines:
            ask(kind, stack, "--target=**::dask-preflight", leaves_out=True)
    options = [*answers(stack, yes), *(["--refresh"] if kind.compute else [])]
    pulumi(kind, stack, "up", *options, leaves_out=kind.at_least)
    cluster_commands.summary(stack)


def preview(stack: str) -> None:
    configuration.file(stack)
    select(stack, create=True)
    kind = prepared(stack)
    # The plugin requires a credential even for a preview, which sends no request to Google.
    pretended = {} if has_credentials() else {"GOOGLE_OAUTH_ACCESS_TOKEN": "preview"}
    pulumi(kind, stack, "preview", variables=pretended)


def preflight(stack: str) -> None:
    """Asks the machines of the settings what keeps them from joining the cluster, and changes nothing on them."""
    configuration.file(stack)
    tool("unlock", stack)
    select(stack, create=True)
    kind = prepared(stack)
    if not kind.users_machines:
        raise engine.EngineError(f"stack {stack} has no machines of your own (machines.source: existing) to ask")
    ask(kind, stack, "--target-replace=**::dask-preflight")


def ask(kind: StackKind, stack: str, option: str, *, leaves_out: bool = False) -> None:
    """Runs the part of the program before the machines' first change; `option` names the preflight itself."""
    parts = ["pulumi:pulumi:Stack::**", "dask:index:ExistingMachines::*", "dask:index:DaskOnMachines::*"]
    parts += ["dask:index:DaskOnMachines$pulumi:index:Stash::*-machine", "machines-*-host-key"]
    targets = [f"--target=**::{each}" for each in parts]
    pulumi(kind, stack, "up", "--yes", "--skip-preview", *targets, option, leaves_out=leaves_out)


def destroy(stack: str, yes: bool) -> None:
    tool("unlock", stack)
    tool("undo_unfinished", stack)
    select(stack, create=stack == DEV)
    kind = prepared(stack)
    pulumi(kind, stack, "destroy", *answers(stack, yes))
    shutil.rmtree(shared_directory.config_folder(stack), ignore_errors=True)  # has keys
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


def lock(file: str | None, python: str | None, upgrade: bool, from_here: bool, yes: bool) -> None:
    variable = {"UPGRADE": "1"} if upgrade else {}
    words = [*([file] if file else []), *(["--python", python] if python else [])]
    conda = file is not None and file.endswith((".yml", ".yaml"))
    if conda and from_here:
        raise engine.EngineError(f"{file} and --from-here both name packages: leave one of them out")
    if file is not None and ".tar" in file:
        succeeded(run([sys.executable, "-m", "tools.lock_archive", file], os.environ))
        return
    asks = conda or from_here
    command = ["tools.lock_from", *words, *(["--yes"] if yes else [])] if asks else ["tools.lock", *words]
    succeeded(run([sys.executable, "-m", *command], {**os.environ, **variable}))


def sync(stack: str) -> None:
    """Installs the stack's packages into the environment of this Python."""
    client = engine.cluster(stack)["client"]
    here = ".".join(platform.python_version_tuple()[:2])
    if sys.prefix == sys.base_prefix:
        raise engine.EngineError(
            f"{sys.executable} is not in a virtual environment, whose packages this command could change: create one"
            f" with `uv venv --python {client.python}`, and install {engine.PROJECT} into it"
        )
    if here != client.python:
        raise engine.EngineError(
            f"this environment has Python {here}, and stack {stack} has {client.python}: create an environment with"
            f" `uv venv --python {client.python}`, and install {engine.PROJECT} into it"
        )
    succeeded(run([sys.executable, "-m", "tools.sync", client.lock, sys.executable], os.environ))


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


def pulumi(
    kind: StackKind, stack: str, *words: str, leaves_out: bool = False, variables: Mapping[str, str] | None = None
) -> None:
    """Runs Pulumi. If Google has no capacity for machines, runs `up` again with others. With `leaves_out`, runs it
    again without the machines that cannot join, if enough remain.
    """
    environ = {**os.environ, **engine.variables(stack), **(variables or {})}
    with tempfile.TemporaryDirectory() as folder:  # only this user can enter it
        events, tried = str(Path(folder) / "events"), str(Path(folder) / "tried")
        if kind.google or leaves_out:
            # As an option, a Pulumi without this log would reject it.
            environ |= {"PULUMI_DEBUG_COMMANDS": "true", "PULUMI_OPTION_EVENT_LOG": events}
        signals: list[int] = []
        command = [engine.engine(), "--cwd", engine.PROJECT, *words, "--stack", stack]
        while status := run(command, environ, signals):
            # Each round tries another kind for at least one machine, or has one machine less.
            moves = kind.compute and words[0] == "up" and not signals
            if moves and tool("next_capacity", stack, events, tried, check=False) == 0:
                continue
            if kind.google:
                tool("google_errors", events, check=False)
            if signals or not leaves_out or tool("missing_machines", stack, events, check=False):
                break
    if status and kind.users_machines and words[0] != "preview":
        tool("name_silent_machines", stack, check=False)
    succeeded(status)


def sweep(stack: str) -> None:
    """Removes machines and networks that a first `up` created but could not record because it was killed."""
    folder = engine.data_folder() / "machines" / Path(stack).name
    script = engine.PROJECT / "on_this_computer/local_machines/network.sh"
    succeeded(run(["bash", script, "sweep"], {**os.environ, "DIRECTORY": str(folder), "NAME": stack}))


def install(*words: str) -> None:
    succeeded(run([sys.executable, "-m", "tools.install", *words], os.environ))


def tool(name: str, *arguments: str, check: bool = True) -> int:
    python = engine.checked_project() / ".venv/bin/python"
    if not python.exists():
        install("program")
    status = run([python, "-m", f"tools.{name}", *arguments], os.environ)
    if check:
        succeeded(status)
    return status


def run(command: list, environ: Mapping[str, str], signals: list[int] | None = None) -> int:
    """Runs a program on this terminal. It gets Ctrl-C directly and decides how to end, so this process waits.

    Adds the signals that were to end it to `signals`.
    """
    got = [] if signals is None else signals
    # Set it before the program starts, because Ctrl-C can follow at once. The program does not inherit this handler.
    handlers = {signal.SIGINT: signal.signal(signal.SIGINT, lambda number, _: got.append(number))}
    try:
        with subprocess.Popen(list(map(str, command)), cwd=engine.checked_project(), env=environ) as process:

            def terminate(number: int, _: object) -> None:
                got.append(number)
                process.terminate()

            handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, terminate)
            status = process.wait()
        return status if status >= 0 else 128 - status  # as a shell reports a signal
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def succeeded(status: int) -> None:
    if status:
        raise Failed(status)
