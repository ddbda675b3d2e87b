"""A step: one thing made true on a machine by one remote Command."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pulumi import Input, Output, Resource, ResourceOptions
from pulumi_command import remote

from daskstack.engine import PROJECT

ON_THE_CLUSTER = PROJECT / "on_the_cluster"
STEPS = ON_THE_CLUSTER / "steps"


@dataclass(frozen=True)
class Host:
    """A machine as its source hands it over, before any step."""

    name: str
    """Its name in the cluster: that of its resources, of its certificates and of its Dask workers."""
    address: Input[str]
    """Where the other machines of the cluster reach it."""
    identity: Input[str]
    """Changes when the machine is made anew, also under the same address: then all its steps run again."""
    connection: Mapping[str, Input[Any]]
    """How `up` reaches it: the arguments of `remote.ConnectionArgs`."""
    deleted_with: Resource | None = None
    """The resource with which the machine itself goes away, so that nothing needs to be undone on it."""
    port: int = 22
    """Where its sshd answers the other machines; the same on all."""
    disk: str = ""
    """A block device of its own for the shared directory's files, such as "/dev/disk/by-id/google-dask-data"."""
    disk_size: int = 0
    """Its size in GB: the file system grows with it."""
    guarded: bool = False
    """Its network knows who may reach SSH, and its own firewall does not ask: else nobody who comes from elsewhere one
    day could tell it so."""
    grace: int = 80
    """Seconds that its workers have to hand over what they hold when it stops; spot machines have 30 for all of it."""
    metadata: bool = False
    """Its tasks may use its account, which the cloud's metadata server hands out."""
    gone: bool = False
    """It will never answer again, and nothing is run on it."""


class Step:
    """Runs `steps/STATE.sh` on a host, after the steps that are named; undone when it is removed.

    `variables` are the script's, text each. They travel on standard input, which no other user of the machine
    can read, and so does the script. They are inputs: a change of either runs the step again.
    """

    def __init__(
        self,
        name: str,
        state: str,
        host: Host,
        variables: Mapping[str, Input[str]],
        *,
        parent: Resource,
        after: Sequence["Step | Resource"] = (),
        show: bool = False,
    ):
        privilege = "" if host.connection["user"] == "root" else "sudo -n "
        stdin = Output.all(IDENTITY=host.identity, **variables).apply(lambda known: script(state, known))
        self.command = remote.Command(
            name,
            connection=remote.ConnectionArgs(**host.connection),
            # A first run that fails is in no state, so that no destroy would undo it: it undoes itself.
            create=f"{privilege}bash -s first",
            update=f"{privilege}bash -s",
            delete=f"{privilege}bash -s undo",
            stdin=stdin,
            add_previous_output_in_env=False,
            # What a step prints on standard output is for other steps; people read its standard error.
            logging=remote.Logging.STDOUT_AND_STDERR if show else remote.Logging.STDERR,
            opts=ResourceOptions(
                parent=parent,
                deleted_with=host.deleted_with,
                depends_on=[each.command if isinstance(each, Step) else each for each in after],
            ),
        )
        self.fingerprint: Output[str] = stdin.apply(lambda text: hashlib.sha256(text.encode()).hexdigest())
        """Changes whenever the step runs again."""

    def __getitem__(self, key: str) -> Output[str]:
        """One of the values that the step printed, as a JSON object."""
        return self.command.stdout.apply(lambda text: json.loads(text)[key])


def script(state: str, variables: Mapping[str, str]) -> str:
    """What arrives on the machine's standard input: assignments, then the step."""
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(variables.items()))
    return assignments + (STEPS / "common.sh").read_text() + step_text(state)


def step_text(state: str) -> str:
    """A step's file, after those of its folder where it has one."""
    files = [*sorted((STEPS / state).glob("*.sh")), STEPS / f"{state}.sh"]
    return "".join(file.read_text() for file in files)
