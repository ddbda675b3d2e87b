"""Personal access to a stack: `daskstack access`, for the stack's owner.

Each person gets keys of their own, which are made on this computer. On machines, the scheduler's machine signs their
public halves; in Kubernetes, this computer does.
"""

import os
import re
from pathlib import Path
from typing import Any

from daskstack import access_file, engine, people_in_kubernetes, people_on_machines
from daskstack.access_file import Access, AccessError
from daskstack.client_output import KubernetesClient
from daskstack.person import NAME


def add(stack: str, name: str, output: str | None, google: str | None = None) -> None:
    """Gives a person access, and writes the access file. In Kubernetes, `google` may be the person's e-mail address."""
    if google is not None and not re.fullmatch(r"[^\s@]+@[^\s@]+", google):
        raise AccessError(f"{google!r} is not an e-mail address of a Google user, e.g. alice@example.com")
    path = Path(output or f"{checked(name)}.json")
    if os.path.lexists(path):
        raise AccessError(f"{path} exists already: move it away, or name another file with --output")
    _issue("add", stack, name, path, google)


def renew(stack: str, name: str, output: str | None) -> None:
    """Replaces a person's keys and access file."""
    path = Path(output or f"{checked(name)}.json")
    if os.path.lexists(path):
        former = access_file.read(path)
        if (former.person, former.stack) != (name, Path(stack).name):
            raise AccessError(
                f"{path} is the access of {former.person} to stack {former.stack}: name another file with --output"
            )
    _issue("renew", stack, name, path)


def revoke(stack: str, name: str) -> None:
    """Ends a person's access and open connections."""
    checked(name)
    outputs = engine.cluster(stack)
    target = _target(outputs)
    print(f"{name} has no access any more; {target.CONNECTIONS} ended: {target.revoke(outputs, name)}")


def show(stack: str) -> None:
    """Prints the people who have access."""
    outputs = engine.cluster(stack)
    for each in _target(outputs).people(outputs):
        print(each)


def checked(name: str) -> str:
    if not re.fullmatch(NAME, name):
        raise AccessError(f"{name!r} is not a name for a person; write up to 40 of a-z, A-Z, 0-9, - and _, e.g. alice")
    return name


def _issue(command: str, stack: str, name: str, path: Path, google: str | None = None) -> None:
    checked(name)
    if not os.access(path.parent, os.W_OK):
        raise AccessError(f"{path} cannot be written: choose another folder with --output")
    outputs = engine.cluster(stack)
    target = _target(outputs)
    client, expires = target.issue(outputs, command, name, google)
    try:
        access_file.write(path, Access(person=name, stack=Path(stack).name, client=client))
    except OSError as error:
        raise AccessError(f"{path} cannot be written ({error.strerror}): run the command again") from None
    target.confirm(outputs, name)
    print(f"{path} gives {name} access until {expires}. It contains private keys: send it over a private channel")


def _target(outputs: dict[str, Any]) -> Any:
    """The module that issues and revokes keys on the stack's target."""
    return people_in_kubernetes if isinstance(outputs["client"], KubernetesClient) else people_on_machines
