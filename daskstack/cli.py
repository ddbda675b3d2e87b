"""The commands: `daskstack COMMAND`, or `dask stack COMMAND`."""

import sys
from typing import Any

import click

from daskstack import cluster_commands, engine, job_commands, people, shared_directory, stack_commands
from daskstack.command_line import Moment, Period, as_json, command, main, stack_or_file, yes
from daskstack.printable import printable


@command(yes)
def up(stack: str, yes: bool) -> None:
    """Create or change the cluster."""
    stack_commands.up(stack, yes)


@command()
def preview(stack: str) -> None:
    """Show what `up` would change, and the cost."""
    stack_commands.preview(stack)


@command()
def preflight(stack: str) -> None:
    """Ask existing machines what keeps them from joining the cluster.

    Changes nothing on them. The first `up` asks too.
    """
    stack_commands.preflight(stack)


@command(as_json, stack=stack_or_file)
def status(stack: str, as_json: bool) -> None:
    """List the workers, and the people and jobs that are connected."""
    cluster_commands.status(stack, as_json)


@command(
    click.argument("number", type=click.IntRange(min=0), required=False),
    click.option("--adapt", "adapts", is_flag=True, help="Let the scheduler change the number with the work."),
    click.option("--minimum", type=click.IntRange(min=0), help="With --adapt: not the stack's own minimum."),
    click.option("--maximum", type=click.IntRange(min=0), help="With --adapt: not the stack's own maximum."),
)
def scale(stack: str, number: int | None, adapts: bool, minimum: int | None, maximum: int | None) -> None:
    """Change the number of workers, within the stack's bounds.

    Without NUMBER and --adapt, print it. Workers that stop first hand over their results.
    """
    if adapts and number is not None:
        raise click.UsageError("write either NUMBER or --adapt")
    if not adapts and (minimum is not None or maximum is not None):
        raise click.UsageError("--minimum and --maximum need --adapt")
    cluster_commands.scale(stack, number, adapts, minimum, maximum)


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


@command(stack=stack_or_file)
def dashboard(stack: str) -> None:
    """Open Dask's dashboard until Ctrl-C."""
    cluster_commands.dashboard(stack)


@command(
    click.option("--password", is_flag=True, help="Print the notebook server's password instead."), stack=stack_or_file
)
def jupyter(stack: str, password: bool) -> None:
    """Open the notebook server until Ctrl-C."""
    cluster_commands.jupyter(stack, password)


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


@command()
def ssh_config(stack: str) -> None:
    """Print an OpenSSH configuration of the machines.

    For rsync, scp and editors: daskstack ssh-config >config, then ssh -F config dev-scheduler. The keys
    are in a folder that only you can open, until `destroy`.
    """
    print(shared_directory.ssh_config(stack), end="")


@command(click.argument("local", nargs=-1, required=True), click.argument("remote"))
def put(stack: str, local: tuple[str, ...], remote: str) -> None:
    """Copy files and folders into the shared directory.

    REMOTE is a path in the shared directory, e.g. data/ or daskdata://data/. If the copy is interrupted,
    run the command again.
    """
    shared_directory.put(stack, local, remote)


@command(click.argument("remote", nargs=-1, required=True), click.argument("local"))
def get(stack: str, remote: tuple[str, ...], local: str) -> None:
    """Copy files and folders from the shared directory.

    LOCAL is a path on this computer.
    """
    shared_directory.get(stack, remote, local)


@command(click.argument("remote", default=""))
def ls(stack: str, remote: str) -> None:
    """List a folder of the shared directory."""
    print(printable(shared_directory.ls(stack, remote)))


@command(click.argument("folder"))
def mount(stack: str, folder: str) -> None:
    """Show the shared directory in FOLDER until Ctrl-C.

    Needs sshfs on this computer.
    """
    shared_directory.mount(stack, folder)


@main.group()
def access() -> None:
    """Give people access to the cluster, or take it back."""


person = click.argument("name", metavar="PERSON")
output = click.option("--output", "-o", metavar="FILE", help="The access file; by default PERSON.json in this folder.")


@command(
    person,
    output,
    click.option(
        "--google", metavar="EMAIL", help="In Kubernetes: no token in the file, but this Google user's login."
    ),
    of=access,
)
def add(stack: str, name: str, output: str | None, google: str | None) -> None:
    """Give a person access.

    Writes a file with keys for that person alone, with which `connect`, `status`, `dashboard` and
    `jupyter` work.
    """
    people.add(stack, name, output, google)


@command(of=access, name="list")
def list_people(stack: str) -> None:
    """List the people who have access."""
    people.show(stack)


@command(person, of=access)
def revoke(stack: str, name: str) -> None:
    """End a person's access and open connections."""
    people.revoke(stack, name)


@command(person, output, of=access)
def renew(stack: str, name: str, output: str | None) -> None:
    """Replace a person's keys and file; the former ones stop working."""
    people.renew(stack, name, output)


@command(
    click.option("--detach", is_flag=True, help="Return at once."),
    click.option("--at", type=Moment(), help="Start then: HH:MM or YYYY-MM-DD HH:MM, in your time zone."),
    click.option("--every", type=Period(), help="Run again after this time until it is stopped, e.g. 30m, 12h or 7d."),
    click.option(
        "--workers", type=click.IntRange(min=0), help="Run with so many workers, then return to the number before."
    ),
    click.option("--then", type=click.Choice(["sleep"]), help="Afterwards, return to the smallest number of workers."),
    click.option("--report", is_flag=True, help="Keep Dask's performance report in the shared directory."),
    click.argument("script"),
    click.argument("arguments", nargs=-1, type=click.UNPROCESSED),
    context_settings={"allow_interspersed_args": False},  # options after SCRIPT belong to it
    stack=stack_or_file,
)
def run(stack: str, detach: bool, script: str, arguments: tuple[str, ...], **plan: Any) -> None:
    """Run SCRIPT next to the scheduler, and print its output.

    It goes on without this computer. Its folder's modules can be imported there and on the workers; a
    bare Client() connects to the cluster. Put options of daskstack before SCRIPT.
    """
    sys.exit(job_commands.run(stack, script, arguments, detach, **plan))


@main.group("jobs", invoke_without_command=True)
@stack_or_file
@as_json
@click.pass_context
def jobs_group(context: click.Context, stack: str, as_json: bool) -> None:
    """List jobs, print one's output, wait for one or stop it."""
    context.default_map = {name: {"stack": stack} for name in jobs_group.commands}
    if context.invoked_subcommand is None:
        job_commands.show(stack, as_json)


number = click.argument("number", type=click.IntRange(1))


@command(number, of=jobs_group, name="logs", stack=stack_or_file)
def job_logs(stack: str, number: int) -> None:
    """Print a job's output until it has ended. The exit status is the job's."""
    sys.exit(job_commands.follow(stack, number))


@command(number, of=jobs_group, name="wait", stack=stack_or_file)
def job_wait(stack: str, number: int) -> None:
    """Wait until a job has ended. The exit status is the job's."""
    sys.exit(job_commands.follow(stack, number, quiet=True))


@command(number, of=jobs_group, name="stop", stack=stack_or_file)
def job_stop(stack: str, number: int) -> None:
    """Stop a job."""
    job_commands.stop(stack, number)


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


@command()
def sync(stack: str) -> None:
    """Install the cluster's packages into this environment.

    The other direction is `lock --from-here`.
    """
    stack_commands.sync(stack)


@main.command()
@click.argument("file", required=False)
@click.option("--python", metavar="VERSION", help="Oldest Python minor version; by default the lock's own, or 3.11.")
@click.option("--upgrade", is_flag=True, help="Upgrade to the newest versions.")
@click.option("--from-here", is_flag=True, help="First replace FILE by the packages of this environment.")
@click.option("--yes", "-y", is_flag=True, help="With --from-here or a conda file, do not ask for confirmation.")
def lock(file: str | None, python: str | None, upgrade: bool, from_here: bool, yes: bool) -> None:
    """Renew the locks of Python packages.

    With FILE, e.g. environments/mine.in, write the lock next to it. With --from-here, FILE is
    environment.in by default. If FILE is a conda file such as environment.yml, write its packages into
    environment.in. Both show what changes, and ask before they write. If FILE is an archive of
    conda-pack or venv-pack, e.g. team.tar.gz, write team.tar.gz.lock.
    """
    stack_commands.lock(file, python, upgrade, from_here, yes)
