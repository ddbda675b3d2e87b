"""A step: one remote Command that brings a part of a machine into its wanted state."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pulumi import Input, Output, Resource, ResourceOptions
from pulumi_command import remote

from daskstack.engine import PROJECT
from on_this_computer import send_scripts

ON_THE_CLUSTER = PROJECT / "on_the_cluster"


@dataclass(frozen=True)
class Host:
    """A machine as its source provides it, before any step."""

    name: str
    """The name in the cluster. Resources, certificates and Dask workers have it too."""
    address: Input[str]
    """The address at which the other machines of the cluster reach it."""
    identity: Input[str]
    """A value that changes if the machine is replaced, even at the same address. Then all its steps run again."""
    connection: Mapping[str, Input[Any]]
    """The arguments of `remote.ConnectionArgs` with which `up` connects."""
    deleted_with: Resource | None = None
    """The resource whose deletion deletes the machine. Then no step needs an undo."""
    port: int = 22
    """The port of its sshd for the other machines. It is the same on all machines."""
    disk: str = ""
    """A block device for the files of the shared directory, such as "/dev/disk/by-id/google-dask-data"."""
    disk_size: int = 0
    """The disk's size in GB. The file system grows with it."""
    ssds: tuple[str, ...] = ()
    """Block devices to which its workers spill. They can be empty after a boot."""
    guarded: bool = False
    """The cloud network filters SSH, and the host firewall accepts it from anywhere. Otherwise users with a new address
    could not log in to update the host firewall."""
    grace: int = 80
    """Seconds that its workers have to hand over their results when it stops. A spot machine has 30 to shut down."""
    metadata: bool = False
    """Tasks may use the machine's cloud account through the metadata server."""
    login: Mapping[str, Input[Any]] | None = None
    """The arguments with which people connect, if `connection` starts the machine; None: `connection`."""
    gone: bool = False
    """The machine is lost, and no step runs on it any more."""


MISSING = (
    "echo 'error: this machine has lost the copies of its steps; with pulumi up --target-replace URN, its resource"
    " `scripts` sends them again' >&2; exit 1"
)


class Step:
    """Runs `steps/STATE.sh` on a host after the steps in `after`. Deleting the step runs the script with `undo`.

    The script's hash and its variables arrive on standard input, which other users of the machine cannot read. Both are
    inputs: changing either reruns this step. The machine has copies of all scripts (`steps.scripts`).
    """

    def __init__(
        self,
        name: str,
        state: str,
        host: Host,
        variables: Mapping[str, Input[str] | Path],
        *,
        parent: Resource,
        after: Sequence["Step | Resource"] = (),
        show: bool = False,
    ):
        privilege = "" if host.connection["user"] == "root" else "sudo -n "
        self.update = f"{privilege}bash -s"
        """The command that runs the step again."""
        # An output takes the SDK much longer than a string.
        plain = {name: value for name, value in variables.items() if isinstance(value, (str, Path))}
        awaited = {name: value for name, value in variables.items() if name not in plain}
        self.stdin: Output[str] = Output.all(IDENTITY=host.identity, **awaited).apply(
            lambda known: script(state, {**plain, **known})
        )
        self.command = remote.Command(
            name,
            connection=remote.ConnectionArgs(**host.connection),
            # Pulumi does not record a first run that fails, so destroy could not undo it. The script does it itself.
            create=f"{privilege}bash -s first",
            update=self.update,
            delete=f"{privilege}bash -s undo",
            stdin=self.stdin,
            add_previous_output_in_env=False,
            # Standard output is for other steps; people read standard error.
            logging=remote.Logging.STDOUT_AND_STDERR if show else remote.Logging.STDERR,
            opts=ResourceOptions(
                parent=parent,
                deleted_with=host.deleted_with,
                depends_on=resources(after),
            ),
        )
        self.fingerprint: Output[str] = self.stdin.apply(lambda text: hashlib.sha256(text.encode()).hexdigest())
        """A hash that changes whenever the step runs again."""

    def __getitem__(self, key: str) -> Output[str]:
        """A value from the JSON object that the step printed in its last line. Login shells can print other lines."""
        return self.command.stdout.apply(lambda text: json.loads(text.strip().rpartition("\n")[2])[key])


def resources(after: Sequence[Step | Resource]) -> list[Resource]:
    """The resources of steps and others, for `depends_on`."""
    return [each.command if isinstance(each, Step) else each for each in after]


def script(state: str, variables: Mapping[str, str | Path]) -> str:
    """The standard input of the machine's shell: assignments, and the names of its copies of `common` and the step.

    If a variable is the path of a program, its value there is the program's text.
    """
    steps = [send_scripts.step("common"), send_scripts.step(state)]
    programs = {name: send_scripts.program(path) for name, path in variables.items() if isinstance(path, Path)}
    lines = [f"{name}={shlex.quote(value)}" for name, value in sorted(variables.items()) if isinstance(value, str)]
    return "\n".join(
        [
            *lines,
            f"cd {send_scripts.PLACE} && ls {' '.join([*steps, *programs.values()])} >/dev/null || {{ {MISSING}; }}",
            *(f"IFS= read -r -d '' {name} <{file} || true" for name, file in sorted(programs.items())),
            f'eval "$(cat {" ".join(steps)})"',
            "",
        ]
    )
