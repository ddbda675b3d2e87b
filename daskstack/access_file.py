"""Access files: everything that one person needs to use a stack, without Pulumi, the project and the stack's state.

`daskstack access` writes them. They contain the person's own keys, so only that person may be able to read them.
"""

import json
import os
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from daskstack import client_output, engine, project
from daskstack.client_output import KubernetesClient, MachinesClient

SIZE = 1 << 20  # bytes of a file


class AccessError(RuntimeError):
    """An access file cannot be used, or not for this. The message contains the remedy."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """The contents of an access file."""

    person: str
    stack: str
    client: MachinesClient | KubernetesClient


def find(name: str) -> Path | None:
    """The access file that a user means by `name`, if it is not one of the project's stacks.

    A name that ends with .json is a path. Another name means a file in `engine.config_folder`.
    """
    if name.endswith(".json"):
        return Path(name).expanduser()
    stack_file = engine.PROJECT / f"Pulumi.{name}.yaml"
    if "/" in name or (project.is_project(engine.PROJECT) and stack_file.is_file()):
        return None
    file = engine.config_folder() / f"{name}.json"
    return file if file.is_file() else None


def refuse(name: str) -> None:
    """Raises AccessError if `name` means an access file."""
    if path := find(name):
        raise AccessError(
            f"{path} is an access file, which does not permit this: ask the stack's owner, or run it with the project"
            " and the stack's name"
        )


def stack_name(name: str) -> str:
    """The name that the owner gave to the stack which `name` means."""
    path = find(name)
    return read(path).stack if path else name


def client(name: str) -> MachinesClient | KubernetesClient:
    """What reaches the cluster: from an access file, or from the outputs of one of the project's stacks."""
    path = find(name)
    return read(path).client if path else engine.cluster(name)["client"]


def read(path: Path) -> Access:
    """Raises AccessError if the file is not an access file, or if others can read it."""
    try:
        with path.open() as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise AccessError(f"other users can access {path}, which contains private keys: run chmod 600 {path}")
            found = json.loads(file.read(SIZE))
        access = Access(**found | {"client": client_output.parse(found["client"])})
        for part in (access, access.client, access.client.tls):
            if wrong := [each.name for each in fields(part) if each.type is str and not _is_text(part, each.name)]:
                raise ValueError(f"{', '.join(wrong)} must be text")
        if isinstance(access.client, KubernetesClient):
            text = access.client.kubernetes["kubeconfig"]
            if not isinstance(text, str) or "\n" not in text:
                raise ValueError("it contains no kubeconfig")
    except OSError as error:
        raise AccessError(f"the access file {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AccessError(
            f"{path} is not an access file of this version of daskstack ({error}): ask the stack's owner for a new one"
        ) from None
    return access


def _is_text(part: Any, name: str) -> bool:
    return isinstance(getattr(part, name), str)


def write(path: Path, access: Access) -> None:
    """Replaces the file at once, so that an interruption leaves no part of one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:  # mode 0600
        try:
            json.dump(asdict(access), file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
