"""Prints the ed25519 host key that a machine shows now; runs once for each machine, at the first contact.

Variables: ADDRESS, PORT, and BASTION: JSON as daskstack.ssh takes it, empty for direct connections.
"""

import base64
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from contextlib import ExitStack

from daskstack import ssh
from daskstack.client_output import Connection

ATTEMPTS = 3
ANSWER = 10  # seconds for sshd to answer


def scan(address: str, port: str, bastion: Connection | None) -> tuple[str, str]:
    """The key, "ssh-ed25519 AAAA...", or an empty text with the error message."""
    command = ["ssh-keyscan", "-T", str(ANSWER), "-t", "ed25519", "-p", port, address]
    with ExitStack() as stack:
        if bastion:
            command = [*stack.enter_context(ssh.command(bastion)), shlex.join(command)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        except FileNotFoundError as error:
            sys.exit(f"error: {error}")
        except subprocess.TimeoutExpired as error:
            return "", str(error)
    for line in done.stdout.splitlines():
        if " ssh-ed25519 " in line:
            return " ".join(line.split()[1:3]), ""
    return "", done.stderr.strip()


def read(address: str, port: str, bastion: Connection | None) -> str:
    """The key; ends the program with an error message if the machine shows none."""
    said = ""
    for _ in range(ATTEMPTS):
        key, said = scan(address, port, bastion)
        if key:
            return key
        time.sleep(1)
    through = f" through {bastion['host']}" if bastion else ""
    sys.exit(
        f"error: {address} port {port}{through} shows no ed25519 host key; check that the machine is up and that its"
        f" sshd listens on this port, or set the key in the settings as hostKey. {said}"
    )


def first_contact(address: str, port: str, key: str) -> None:
    """Prints the key, and reports its fingerprint."""
    said = f"first contact: {address} port {port} has the host key {fingerprint(key)}; later connections require it"
    print(said, file=sys.stderr)
    print(key, end="")


def fingerprint(key: str) -> str:
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def main() -> None:
    address, port, bastion = os.environ["ADDRESS"], os.environ["PORT"], os.environ["BASTION"]
    first_contact(address, port, read(address, port, json.loads(bastion) if bastion else None))


if __name__ == "__main__":
    main()
