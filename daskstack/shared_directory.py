"""A stack's shared directory from outside of the cluster, with the login of `up` or through `kubectl exec`."""

import os
import posixpath
import shlex
import shutil
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from daskstack import access_file, engine, private_folder, ssh
from daskstack.client_output import KubernetesClient
from daskstack.kubectl import kubectl

stack_in_use: str | None = None  # the stack of the last `connect`
connections: dict[str, Any] = {}  # by stack: its directory's path, and an open Sftp

# Pods have the first folder, or an image has one of the others.
_SFTP_SERVER = (
    "PATH=/opt/dask/system/usr/lib/openssh:/usr/lib/openssh:/usr/libexec/openssh:/usr/lib/ssh; "
    "command -v sftp-server >/dev/null || "
    "{ echo 'the image has no sftp-server: add the package openssh-sftp-server to it' >&2; exit 1; }; exec sftp-server"
)
# Each ends with a line that says whether rsync is installed.
_HAS_RSYNC = "command -v rsync || echo no"
_MAKE_FOLDER = f'mkdir -p "$1" && {{ {_HAS_RSYNC}; }}'
_FIND_MISSING = f'for each; do [ -e "$each" ] || echo "missing: $each"; done; {_HAS_RSYNC}'


def use(stack: str) -> None:
    """Makes this the stack of daskdata:// URLs. Its machines may be new, so the next URL opens a new connection."""
    global stack_in_use
    stack_in_use = stack
    # An environment that imports this package from its folder has no entry points of it.
    fsspec.register_implementation("daskdata", "daskstack.daskdata.DaskData", clobber=True)
    connections.pop(stack, None)


class DataError(RuntimeError):
    """The shared directory cannot be used, or not in this way. The message says what to do."""


@dataclass(frozen=True)
class Host:
    """The scheduler's machine or pod, as programs of this computer reach it."""

    name: str
    directory: str
    """The path of the shared directory there."""
    shell: list[str]
    """Takes one more word: what a shell there runs."""
    sftp: list[str]
    """Speaks SFTP with the host."""
    rsync: str | None
    """The remote shell for rsync. None: it cannot be used."""
    scp: list[str]
    """Options of scp and of sshfs, which know the host as `host`."""
    sshfs: list[str]


@contextmanager
def host(stack: str) -> Generator[Host]:
    """The host of a stack's shared directory, whose commands can be started inside the context."""
    access_file.refuse(stack)
    outputs = engine.cluster(stack)
    client, directory = outputs["client"], outputs.get("data")
    if not directory:
        raise DataError(f"stack {stack} has no shared directory: write data.size and run `make up STACK={stack}`")
    if isinstance(client, KubernetesClient):
        with kubectl(client.kubernetes) as command, private_folder.folder() as folder:
            pod = ["--namespace", client.namespace, "exec", "--stdin", "deployment/dask-scheduler"]
            shell = [*command, *pod, "--container", "scheduler", "--", "sh", "-c"]
            remote = folder / "ssh"  # ignores the options that ssh would have
            remote.touch(mode=0o700)
            remote.write_text(f"#!/bin/sh\nexec {shlex.join([*shell, _SFTP_SERVER])}\n")
            yield Host(
                "the scheduler's pod", directory, shell, [*shell, _SFTP_SERVER], None,
                scp=["-s", "-S", str(remote)], sshfs=["-o", f"ssh_command={remote}"],
            )  # fmt: skip
    else:
        connection = outputs["admin"]["machines"][client.head]
        with ssh.command(connection, "host") as shell:
            *command, name = shell
            yield Host(
                connection["host"], directory, shell, [*command, "-s", name, "sftp"], shlex.join(command),
                scp=command[1:], sshfs=command[1:],
            )  # fmt: skip


def inside(directory: str, path: str) -> str:
    """The full path of a file that a user names by a daskdata:// URL, its full path, or its path in the directory."""
    full = posixpath.join(directory, path.removeprefix("daskdata://"))
    plain = posixpath.normpath(full)
    if plain != directory and not plain.startswith(directory + "/"):
        raise DataError(f"{path} is outside of the shared directory {directory}; use `daskstack ssh-config` and scp")
    return plain + "/" if full.endswith("/") else plain


def put(stack: str, local: Sequence[str], remote: str) -> None:
    """Copies files and folders of this computer into the shared directory."""
    if missing := [path for path in local if not os.path.lexists(path)]:
        raise DataError(f"this computer has no {', '.join(missing)}; check the path")
    with host(stack) as there:
        target = inside(there.directory, remote)
        folder = target if target.endswith("/") or len(local) > 1 else posixpath.dirname(target)
        *_, rsync = _ask(there, _MAKE_FOLDER, folder)
        _copy(there, rsync != "no", local, f"host:{target}")


def get(stack: str, remote: Sequence[str], local: str) -> None:
    """Copies files and folders of the shared directory to this computer."""
    with host(stack) as there:
        paths = [inside(there.directory, path) for path in remote]
        *missing, rsync = _ask(there, _FIND_MISSING, *paths)
        if missing:
            raise DataError(f"{', '.join(missing)}; `daskstack ls --stack {stack} FOLDER` lists a folder's files")
        if len(paths) > 1 or local.endswith("/"):
            os.makedirs(local, exist_ok=True)
        _copy(there, rsync != "no", [f"host:{path}" for path in paths], local)


def ls(stack: str, remote: str) -> str:
    """The listing of a folder of the shared directory."""
    with host(stack) as there:
        return "\n".join(_ask(there, 'ls -lh -- "$1"', inside(there.directory, remote)))


def mount(stack: str, folder: str) -> None:
    """Shows the shared directory in a folder of this computer until Ctrl-C."""
    if not shutil.which("sshfs"):
        raise DataError(
            "this computer has no sshfs: install it (sudo apt-get install sshfs), or copy files with `daskstack put` "
            "and `daskstack get`"
        )
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    if os.path.ismount(path) or any(path.iterdir()):
        raise DataError(f"{folder} is not empty; use another folder")
    with host(stack) as there:
        sshfs = subprocess.Popen(["sshfs", f"host:{there.directory}", folder, "-f", *there.sshfs, "-o", "reconnect"])
        print(f"the shared directory of {stack}: {folder} (until Ctrl-C)", flush=True)
        try:
            status = sshfs.wait()
        except KeyboardInterrupt:
            status = 0
        finally:
            sshfs.terminate()  # unmounts
            sshfs.wait()
    if status:
        raise DataError(f"sshfs ended with status {status}; its message is above")


def ssh_config(stack: str) -> str:
    """The text of an OpenSSH configuration for the stack's machines, such as dev-scheduler.

    It names files with keys, in a folder that only this user can open.
    """
    outputs = engine.cluster(stack)
    if isinstance(outputs["client"], KubernetesClient):
        raise DataError(f"stack {stack} is on Kubernetes, without SSH; use `daskstack ssh --stack {stack}`")
    folder = config_folder(stack)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    return ssh.write_config(folder, {f"{stack}-{name}": each for name, each in outputs["admin"]["machines"].items()})


def config_folder(stack: str) -> Path:
    return engine.data_folder() / "ssh" / stack


def _ask(there: Host, script: str, *arguments: str) -> list[str]:
    words = [*there.shell, shlex.join(["sh", "-c", script, "sh", *arguments])]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise DataError(f"{there.name} cannot do this; its error is above")
    return done.stdout.splitlines()


def _copy(there: Host, rsync: bool, sources: Sequence[str], target: str) -> None:
    if rsync and there.rsync and shutil.which("rsync"):
        options = ["-a", "--partial", "--protect-args", "--human-readable", "--info=progress2"]
        copy = ["rsync", *options, "-e", there.rsync, "--", *sources, target]
    else:
        if there.rsync:
            print(f"rsync is missing here or on {there.name}, so an interrupted copy starts again", file=sys.stderr)
        copy = ["scp", *there.scp, "-rp", "--", *sources, target]
    if subprocess.call(copy):
        raise DataError("the copy is incomplete; its error is above. Run the same command again to continue")
