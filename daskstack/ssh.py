"""Runs the OpenSSH client with keys from memory."""

import re
from collections.abc import Generator, Mapping
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


# Directories have users such as CORP\jane, jane@corp.example and "CORP\jane doe".
USER = r"([A-Za-z0-9][A-Za-z0-9.-]*[\\+])?[A-Za-z0-9_]([A-Za-z0-9_. -]*[A-Za-z0-9_.-])?(@[A-Za-z0-9.-]+)?"

# Patterns for values in ssh's configuration, where a newline or a quote could add an option or a command.
_PLAIN: dict[Literal["host", "user", "host_key"], str] = {
    "host": r"[A-Za-z0-9:][A-Za-z0-9:._-]*(%[A-Za-z0-9_.-]+)?",
    "user": USER,
    "host_key": r"[a-z0-9][a-z0-9@.-]* [A-Za-z0-9+/=]+( [^\n]*)?",
}


# What to do about a message of OpenSSH.
REMEDIES = {
    "Too many authentication failures": "your SSH agent offers more keys than sshd tries (MaxAuthTries): load only the"
    " right one (ssh-add -D; ssh-add KEYFILE), or give the stack its own key (dask:sshKey)",
    "stdio forwarding failed": "sshd of the bastion forwards no connections, or cannot reach the machine: allow"
    " AllowTcpForwarding for this user there, and check the machine's address",
    "administratively prohibited": "sshd forbids this tunnel: another of its rules precedes ours in"
    " /etc/ssh/sshd_config.d/60-daskstack.conf; look for AllowTcpForwarding, PermitOpen and DisableForwarding in"
    " `sshd -T -C user=dask-tunnel,host=x,addr=127.0.0.1`",
}


def explained(said: str) -> str:
    """The line of OpenSSH's output for which there is a remedy, with that remedy; or its last lines."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for line in lines:
        for text, remedy in REMEDIES.items():
            if text in line:
                return f"{line}; {remedy}"
    return "; ".join(lines[-3:])


@contextmanager
def command(connection: Connection, alias: str = "machine") -> Generator[list[str]]:
    """The `ssh` command that reaches a machine; append what to run there. It ends with the machine's alias.

    Keys are on disk only inside the context, in a folder that only the caller's user can read.
    """
    with private_folder.folder() as folder:
        write_config(folder, {alias: connection})
        yield ["ssh", "-F", str(folder / "config"), alias]


def lost(status: int, messages: str = "") -> bool:
    """Whether ssh ended because of the connection, so that another attempt may succeed.

    `status` and `messages` are ssh's exit status and standard error.
    """
    return status == 255 and not re.search("Permission denied|verification failed|Too many authentication", messages)


def write_config(folder: Path, connections: Mapping[str, Connection]) -> str:
    """Writes `folder/config` with a host for each connection, and the keys next to it. Returns the text of `config`."""
    text = "".join(_config(alias, connection, folder) for alias, connection in connections.items())
    (folder / "config").write_text(text)
    return text


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
        "User": f'"{connection["user"]}"',
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
        text = _config(f"{alias}-bastion", connection["proxy"], folder)
        options["ProxyCommand"] = f'ssh -F "{folder}/config" -W "[%h]:%p" {alias}-bastion'
    return text + f"Host {alias}\n" + "".join(f"    {name} {value}\n" for name, value in options.items())
