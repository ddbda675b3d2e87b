"""Runs the OpenSSH client with keys from memory."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from daskstack import private_folder
from daskstack.client_output import Connection

OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "15",
    "StrictHostKeyChecking": "yes",
    "GlobalKnownHostsFile": "/dev/null",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",
}


# Patterns for values in ssh's configuration, where a newline or a quote could add an option or a command.
_PLAIN: dict[Literal["host", "user", "host_key"], str] = {
    "host": r"[A-Za-z0-9:][A-Za-z0-9:._-]*(%[A-Za-z0-9_.-]+)?",
    "user": r"[A-Za-z_][A-Za-z0-9_.-]*",
    "host_key": r"[a-z0-9][a-z0-9@.-]* [A-Za-z0-9+/=]+( [^\n]*)?",
}


@contextmanager
def command(connection: Connection) -> Generator[list[str]]:
    """The `ssh` command that reaches a machine; append what to run there.

    Keys are on disk only inside the context, in a folder that only the caller's user can read.
    """
    with private_folder.folder() as folder:
        config = folder / "config"
        config.write_text(_config("machine", connection, folder))
        yield ["ssh", "-F", str(config), "machine"]


def _config(alias: str, connection: Connection, folder: Path) -> str:
    for name, right in _PLAIN.items():
        if not re.fullmatch(right, str(connection[name])):
            raise ValueError(f"the connection's {name} is {connection[name]!r}, which ssh could misread")
    known = folder / f"{alias}.known_hosts"
    known.write_text(f"{alias} {connection['host_key']}\n")
    options = {
        **OPTIONS,
        "HostName": connection["host"].replace("%", "%%"),
        "Port": connection.get("port") or 22,
        "User": connection["user"],
        "HostKeyAlias": alias,
        "HostKeyAlgorithms": connection["host_key"].split()[0],
        "UserKnownHostsFile": f'"{known}"',
    }
    if connection.get("private_key"):
        key = folder / f"{alias}.key"
        key.touch(mode=0o600)
        key.write_text(connection["private_key"])
        options |= {"IdentityFile": f'"{key}"', "IdentitiesOnly": "yes", "IdentityAgent": "none"}
    if connection.get("certificate"):
        certificate = folder / f"{alias}.certificate"
        certificate.write_text(connection["certificate"] + "\n")
        options["CertificateFile"] = f'"{certificate}"'
    text = ""
    if connection.get("proxy"):
        text = _config("bastion", connection["proxy"], folder)
        options["ProxyCommand"] = f'ssh -F "{folder}/config" -W "[%h]:%p" bastion'
    return text + f"Host {alias}\n" + "".join(f"    {name} {value}\n" for name, value in options.items())
