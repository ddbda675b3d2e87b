"""Personal access to a stack on machines: `daskstack access`, for the stack's owner.

Each person gets keys of their own, which are made on this computer. The scheduler's machine signs their public halves.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daskstack import access_file, engine, status_and_logs
from daskstack.access_file import Access, AccessError
from daskstack.client_output import Connection, KubernetesClient, Tls
from daskstack.printable import printable
from daskstack.status_and_logs import RemoteError

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}"  # as in on_the_cluster/access.py
PROGRAM = "/opt/daskstack/access.py"

Kind = TypeVar("Kind", bound="Answer")


class Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Signed(Answer):
    ssh: str = Field(pattern=r"^ssh-ed25519-cert-v01@openssh\.com [A-Za-z0-9+/=]+$")
    tls: str = Field(pattern="^-----BEGIN CERTIFICATE-----\n")
    expires: str


class Person(Answer):
    name: str = Field(pattern=rf"^{NAME}$")
    state: Literal["valid", "incomplete", "outdated"]
    expires: str = Field(max_length=10)
    tunnels: int = Field(ge=0)


class People(Answer):
    people: list[Person] = Field(max_length=10_000)


class Ended(Answer):
    ended: int = Field(ge=0)


class Confirmed(Answer):
    pass


def add(stack: str, name: str, output: str | None) -> None:
    """Gives a person access, and writes the access file."""
    path = Path(output or f"{checked(name)}.json")
    if os.path.lexists(path):
        raise AccessError(f"{path} exists already: move it away, or name another file with --output")
    _issue("add", stack, name, path)


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
    ended = _ask(_outputs(stack), Ended, "revoke", checked(name)).ended
    print(f"{name} has no access any more; SSH connections ended: {ended}")


def show(stack: str) -> None:
    """Prints the people who have access."""
    for each in _ask(_outputs(stack), People, "list").people:
        print(f"{each.name:<12} {described(each)}")


def described(person: Person) -> str:
    if person.state == "incomplete":
        return f"incomplete: run `daskstack access add {person.name}` again"
    if person.state == "outdated":
        return f"has keys from before a renewal: run `daskstack access renew {person.name}`"
    return f"until {person.expires}, SSH connections: {person.tunnels}"


def checked(name: str) -> str:
    if not re.fullmatch(NAME, name):
        raise AccessError(f"{name!r} is not a name for a person; write up to 40 of a-z, A-Z, 0-9, - and _, e.g. alice")
    return name


def _issue(command: str, stack: str, name: str, path: Path) -> None:
    from daskstack.client_keys import client_identity

    checked(name)
    if not os.access(path.parent, os.W_OK):
        raise AccessError(f"{path} cannot be written: choose another folder with --output")
    outputs = _outputs(stack)
    client, keys = outputs["client"], client_identity()
    request = json.dumps({"request": keys["request"], "sshPublic": keys["sshPublic"]})
    signed = _ask(outputs, Signed, command, name, request=request)
    tls = Tls(authority=client.tls.authority, certificate=signed.tls, key=keys["key"])
    own: Any = {"user": client.tunnel["user"], "private_key": keys["sshKey"], "certificate": signed.ssh}
    client = replace(client, tls=tls, tunnel=own | _way(client.tunnel))
    try:
        access_file.write(path, Access(person=name, stack=Path(stack).name, client=client))
    except OSError as error:
        raise AccessError(f"{path} cannot be written ({error.strerror}): run the command again") from None
    _ask(outputs, Confirmed, "confirm", name)
    print(
        f"{path} gives {name} access until {signed.expires}. It contains private keys: send it over a private channel"
    )


def _way(door: Connection) -> dict[str, Any]:
    """How to reach a machine, without the owner's keys. A bastion must know the person's own key."""
    way: dict[str, Any] = {key: door[key] for key in ("host", "host_key", "port") if key in door}
    if "proxy" in door:
        way["proxy"] = {"user": door["proxy"]["user"], **_way(door["proxy"])}
    return way


def _outputs(stack: str) -> dict[str, Any]:
    outputs = engine.cluster(stack)
    if isinstance(outputs["client"], KubernetesClient):
        raise AccessError(f"stack {stack} is on Kubernetes; personal access exists only for stacks on machines")
    return outputs


def _ask(outputs: dict[str, Any], kind: type[Kind], *words: str, request: str = "") -> Kind:
    """The answer of the program on the scheduler's machine, which is JSON."""
    machine = outputs["admin"]["machines"][outputs["client"].head]
    try:
        said = status_and_logs.ask_machine(machine, f"/usr/bin/python3 -I {PROGRAM} {' '.join(words)}", request)
    except RemoteError as error:
        if "can't open file" in str(error):
            raise AccessError("an older version of daskstack built the stack: run `make up` first") from None
        raise
    answer = said.strip().rpartition("\n")[2]
    try:
        found = json.loads(answer)
        if isinstance(found, dict) and isinstance(found.get("refused"), str):
            raise AccessError(printable(f"{said.strip().removesuffix(answer).strip()}\n{found['refused']}".strip()))
        return kind.model_validate_json(answer)
    except (ValidationError, ValueError):
        raise RemoteError(f"the scheduler's machine did not answer as expected: {said[-300:]}") from None
