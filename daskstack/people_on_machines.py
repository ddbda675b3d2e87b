"""Keys of people for stacks on machines. on_the_cluster/access.py signs and revokes them on the scheduler's machine."""

import json
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daskstack import status_and_logs
from daskstack.access_file import AccessError
from daskstack.client_output import Connection, MachinesClient, Tls
from daskstack.person import Person
from daskstack.printable import printable
from daskstack.status_and_logs import RemoteError

PROGRAM = "/opt/daskstack/access.py"
CONNECTIONS = "SSH connections"

Kind = TypeVar("Kind", bound="Answer")


class Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Signed(Answer):
    ssh: str = Field(pattern=r"^ssh-ed25519-cert-v01@openssh\.com [A-Za-z0-9+/=]+$")
    tls: str = Field(pattern="^-----BEGIN CERTIFICATE-----\n")
    expires: str


class People(Answer):
    people: list[Person] = Field(max_length=10_000)


class Ended(Answer):
    ended: int = Field(ge=0)


class Confirmed(Answer):
    pass


def issue(outputs: dict[str, Any], command: str, name: str, google: str | None) -> tuple[MachinesClient, str]:
    """What a new access file contains, and its last day. `command` is `add` or `renew`."""
    from daskstack.client_keys import client_identity

    if google:
        raise AccessError("--google is only for stacks in Kubernetes; people reach machines over SSH")
    client, keys = outputs["client"], client_identity()
    request = json.dumps({"request": keys["request"], "sshPublic": keys["sshPublic"]})
    signed = _ask(outputs, Signed, command, name, request=request)
    tls = Tls(authority=client.tls.authority, certificate=signed.tls, key=keys["key"])
    own: Any = {"user": client.tunnel["user"], "private_key": keys["sshKey"], "certificate": signed.ssh}
    return replace(client, tls=tls, tunnel=own | _way(client.tunnel)), signed.expires


def confirm(outputs: dict[str, Any], name: str) -> None:
    """The access file is written: revokes the person's former keys."""
    _ask(outputs, Confirmed, "confirm", name)


def revoke(outputs: dict[str, Any], name: str) -> int:
    """Returns how many connections it has ended."""
    return _ask(outputs, Ended, "revoke", name).ended


def people(outputs: dict[str, Any]) -> list[Person]:
    return _ask(outputs, People, "list").people


def _way(door: Connection) -> dict[str, Any]:
    """How to reach a machine, without the owner's keys. A bastion must know the person's own key."""
    way: dict[str, Any] = {key: door[key] for key in ("host", "host_key", "port") if key in door}
    if "proxy" in door:
        way["proxy"] = {"user": door["proxy"]["user"], **_way(door["proxy"])}
    return way


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
