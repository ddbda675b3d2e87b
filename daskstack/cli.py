"""The command line: `daskstack COMMAND`, or `dask stack COMMAND`."""

import sys
from collections.abc import Callable
from typing import Any

import click

from daskstack import cluster_commands, engine, stack_commands
from daskstack.printable import printable
from daskstack.status_and_logs import RemoteError
from daskstack.tunnel import TunnelError


class Commands(click.Group):
    """Shows commands in the order of this file, and errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (engine.EngineError, TunnelError, RemoteError) as error:
            sys.exit(f"error: {printable(str(error))}")
        except stack_commands.Failed as error:
            sys.exit(error.status)
        except KeyboardInterrupt:
            sys.exit(130)


@click.group("stack", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Build, use and remove Dask clusters. Each cluster is a stack; its settings are in Pulumi.NAME.yaml."""


stack = click.option(
    "--stack", "-s", default="dev", envvar="STACK", show_default=True, show_envvar=True, metavar="NAME",
    help="The stack to work on.",
)  # fmt: skip
yes = click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation. Stack dev never asks.")


def command(*options: Callable, **settings: Any) -> Callable[[Callable], click.Command]:
    def made(function: Callable) -> click.Command:
        for option in (*reversed(options), stack):
            function = option(function)
        return main.command(**settings)(function)

    return made


@command(yes)
def up(stack: str, yes: bool) -> None:
    """Create or change the cluster."""
    stack_commands.up(stack, yes)


@command()
def preview(stack: str) -> None:
    """Show what `up` would change, and the cost."""
    stack_commands.preview(stack)


@command()
def status(stack: str) -> None:
    """List the workers with their memory and CPU."""
    cluster_commands.status(stack)


@command()
def check(stack: str) -> None:
    """Run the check of the last `up` again."""
    cluster_commands.check(stack)


@command(click.argument("machine", required=False))
def logs(stack: str, machine: str | None) -> None:
    """Print the last lines of Dask's services.

    MACHINE is one machine, e.g. worker-1, or on Kubernetes one component, e.g. worker. Without it, print all.
    """
    cluster_commands.logs(stack, machine)


@command()
def dashboard(stack: str) -> None:
    """Open Dask's dashboard until Ctrl-C."""
    cluster_commands.dashboard(stack)


@command()
def jupyter(stack: str) -> None:
    """Open the notebook server until Ctrl-C."""
    cluster_commands.jupyter(stack)


@command(
    click.argument("machine", required=False),
    click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND]..."),
    context_settings={"allow_interspersed_args": False},  # options after MACHINE belong to COMMAND
)
def ssh(stack: str, machine: str | None, words: tuple[str, ...]) -> None:
    """Open a shell on a machine, or run COMMAND there.

    MACHINE is the scheduler's machine by default; on Kubernetes it is a component, e.g. worker. Put
    options of daskstack before MACHINE.
    """
    sys.exit(cluster_commands.shell(stack, machine, words))


@command(yes)
def destroy(stack: str, yes: bool) -> None:
    """Remove the cluster."""
    stack_commands.destroy(stack, yes)


@command()
def leftovers(stack: str) -> None:
    """List the stack's remaining resources in Google Cloud.

    Prints the cost of each, and the command that deletes it.
    """
    stack_commands.leftovers(stack)


@command()
def rehearse(stack: str) -> None:
    """Try a stack on this computer.

    For stacks on Kubernetes or on machines in Google Cloud. It needs no account.
    """
    stack_commands.rehearse(stack)


@command()
def env(stack: str) -> None:
    """Print the variables for plain `pulumi`.

    In a shell: eval "$(.venv/bin/daskstack env)"
    """
    print(engine.exports(stack))


@main.command()
@click.option("--upgrade", is_flag=True, help="Upgrade to the newest versions.")
def lock(upgrade: bool) -> None:
    """Renew the locks of Python packages."""
    stack_commands.lock(upgrade)
