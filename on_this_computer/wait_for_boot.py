"""Waits until a new machine has booted, and prints the first ed25519 host key that it shows.

A machine publishes its host keys as guest attributes, which Google's API returns over a verified connection. This
program compares them before any task runs: later, any process on the machine could change them.

Variables: NAME; CONNECTION (JSON, as daskstack.ssh takes it, without a host key); WAIT, seconds; CONSOLE, the command
that shows the machine's console; HOST_KEYS, the command that asks Google's API for its host keys; TUNNEL, the command
of the tunnel that the user has to keep open, empty for direct connections.
"""

import json
import os
import shlex
import subprocess
import sys
import time

from daskstack import ssh
from daskstack.client_output import Connection
from on_this_computer.read_host_key import fingerprint, first_contact, scan

PAUSE = 2  # seconds between two attempts
WRITTEN = 30  # seconds after its boot in which a machine publishes its host keys, if it does at all
# All units have started, also those of the image. A unit that failed is no reason to stop.
STARTED = "case $(systemctl is-system-running) in running | degraded) ;; *) exit 1 ;; esac"


def main() -> None:
    connection = json.loads(os.environ["CONNECTION"])
    wait = float(os.environ["WAIT"])
    deadline = time.monotonic() + wait
    if os.environ["TUNNEL"]:
        print(f"connections to this machine use a tunnel; keep it open: {os.environ['TUNNEL']}", file=sys.stderr)

    said = "sshd did not answer"
    while time.monotonic() < deadline:
        key, problem = shown(connection)
        if key and not (problem := started({**connection, "host_key": key})):
            compare(key, first=not connection.get("proxy"))
            first_contact(connection["host"], str(connection["port"]), key)
            return
        said = problem or said
        time.sleep(PAUSE)
    sys.exit(
        f"error: {os.environ['NAME']} was not ready within {wait:g} s ({said}); show its console with:"
        f" {os.environ['CONSOLE']}"
    )


def shown(connection: Connection) -> tuple[str, str]:
    """The machine's host key, or empty and the reason.

    The bastion may still be booting. Nothing has compared its key yet, so whoever answers in its place could show a key
    of their own for this machine, which fails the comparison, or later steps: they use the bastion's compared key.
    """
    proxy = connection.get("proxy")
    if proxy and not proxy.get("host_key"):
        key, problem = scan(proxy["host"], str(proxy["port"]), None)
        if not key:
            return "", problem
        proxy["host_key"] = key
    return scan(connection["host"], str(connection["port"]), proxy)


def started(connection: Connection) -> str:
    """Why the machine is not ready; empty if it is."""
    with ssh.command(connection) as command:
        try:
            done = subprocess.run([*command, STARTED], capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return "it stopped answering"
    return {0: "", 1: "it is still booting"}.get(done.returncode, done.stderr.strip() or "the login failed")


def compare(key: str, *, first: bool) -> None:
    """Ends the program if Google's API reports another key for this machine.

    If the keys cannot be compared, the stack's first machine reports that.
    """
    name, deadline = os.environ["NAME"], time.monotonic() + WRITTEN
    known, problem = vouched()
    while not known and not problem and time.monotonic() < deadline:
        time.sleep(PAUSE)
        known, problem = vouched()
    if known and known != key:
        sys.exit(
            f"error: {name} showed the host key {fingerprint(key)}, but Google's API reports {fingerprint(known)}:"
            " another machine or program answered in its place (with machines.iapPort, a program that listened on this"
            " port before the tunnel did). No step ran there; find out what answers, then run up again"
        )
    if not known and first:
        print(
            f"the host key of {name} was not compared with Google's API ({problem or 'it has no key of this machine'}):"
            " the first key that the machine shows is accepted",
            file=sys.stderr,
        )


def vouched() -> tuple[str, str]:
    """The key that Google's API reports, or empty; and the reason if the API could not be asked."""
    # gcloud has its own login; pass the program's credentials on where gcloud accepts them.
    handed = {
        "CLOUDSDK_AUTH_ACCESS_TOKEN": os.environ.get("GOOGLE_OAUTH_ACCESS_TOKEN"),
        "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE": os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"),
    }
    environ = {name: value for name, value in handed.items() if value} | os.environ
    command = [*shlex.split(os.environ["HOST_KEYS"]), "--format=json", "--quiet"]
    try:
        done = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError:
        return "", f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return "", f"{command[0]} did not answer within 60 s"
    if done.returncode:
        # The API's answer until the machine publishes its first attribute.
        missing = "404" in done.stderr or "not found" in done.stderr
        return "", "" if missing else " ".join(done.stderr.split())[:200] or f"{command[0]} failed"
    keys = {each["key"]: each["value"].split()[-1] for each in json.loads(done.stdout or "[]")}
    return (f"ssh-ed25519 {keys['ssh-ed25519']}", "") if "ssh-ed25519" in keys else ("", "")


if __name__ == "__main__":
    main()
