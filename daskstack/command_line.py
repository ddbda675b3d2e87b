"""What all commands of the command line share: errors, options, and the group that they belong to."""

import sys
from collections.abc import Callable
from typing import Any

import click

from daskstack import access_file, engine, stack_commands
from daskstack.access_file import AccessError
from daskstack.jobs import JobError
from daskstack.printable import printable
from daskstack.shared_directory import DataError
from daskstack.status_and_logs import RemoteError
from daskstack.tunnel import TunnelError


class Commands(click.Group):
    """Shows commands in the order of cli.py, and errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (engine.EngineError, AccessError, TunnelError, RemoteError, DataError, JobError) as error:
            sys.exit(f"error: {printable(str(error))}")
        except stack_commands.Failed as error:
            sys.exit(error.status)
        except KeyboardInterrupt:
            sys.exit(130)


@click.group("stack", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Build, use and remove Dask clusters. Each cluster is a stack; its settings are in Pulumi.NAME.yaml."""


def stack_option(explanation: str, **options: Any) -> Callable:
    return click.option(
        "--stack", "-s", default="dev", envvar="STACK", show_default=True, show_envvar=True, metavar="NAME",
        help=explanation, **options,
    )  # fmt: skip


def owned(context: click.Context, option: click.Parameter, value: str) -> str:
    access_file.refuse(value)
    return value


stack = stack_option("The stack to work on.", callback=owned)
stack_or_file = stack_option("The stack, or an access file.")
yes = click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation. Stack dev never asks.")


def command(
    *options: Callable, of: click.Group = main, stack: Callable = stack, **settings: Any
) -> Callable[[Callable], click.Command]:
    def made(function: Callable) -> click.Command:
        for option in (*reversed(options), stack):
            function = option(function)
        return of.command(**settings)(function)

    return made
