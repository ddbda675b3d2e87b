"""What all commands of the command line share: errors, options, and the group that they belong to."""

import contextlib
import re
import sys
from collections.abc import Callable
from datetime import datetime, time, timedelta
from typing import Any, ClassVar

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


class Moment(click.ParamType):
    """A time of day, the next one, or a day and a time, in the computer's time zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        now = datetime.now()
        with contextlib.suppress(ValueError):
            hour = time.fromisoformat(value)
            today = now.replace(hour=hour.hour, minute=hour.minute, second=hour.second, microsecond=0)
            return today if today > now else today + timedelta(days=1)
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(value)
        self.fail(f"{value} is not a time; write e.g. 03:00 or '2027-01-31 03:00'", param, ctx)


class Period(click.ParamType):
    name = "period"
    units: ClassVar = {"m": "minutes", "h": "hours", "d": "days"}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if not (match := re.fullmatch(r"([1-9]\d{0,3})([mhd])", value)):
            self.fail(f"{value} is not a period; write minutes, hours or days, e.g. 30m, 12h or 7d", param, ctx)
        return timedelta(**{self.units[match[2]]: int(match[1])})


stack = stack_option("The stack to work on.", callback=owned)
stack_or_file = stack_option("The stack, or an access file.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes = click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation. Stack dev never asks.")


def command(
    *options: Callable, of: click.Group = main, stack: Callable = stack, **settings: Any
) -> Callable[[Callable], click.Command]:
    def made(function: Callable) -> click.Command:
        for option in (*reversed(options), stack):
            function = option(function)
        return of.command(**settings)(function)

    return made
