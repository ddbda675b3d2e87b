"""Waits until a new machine has started up, and prints the ed25519 host key that it showed first.

The machine itself writes its host keys down as guest attributes, which Google's API shows over a connection that is
verified. They are compared here, before any task has run: later any process of the machine could have changed them.

Variables: NAME; CONNECTION (JSON, as daskstack.ssh takes it, without a host key); WAIT, seconds; CONSOLE, the command
that shows what the machine said; HOST_KEYS, the command that asks Google's API for its host keys; TUNNEL, the command
of a tunnel that somebody has to hold open, empty where none is.
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
WRITTEN = 30  # seconds after which a machine that has started up has written down its host keys, or never will
# Units that start up are done, those of the image too; one that failed is not ours to judge.
STARTED = "case $(systemctl is-system-running) in running | degraded) ;; *) exit 1 ;; esac"


def main() -> None:
    connection = json.loads(os.environ["CONNECTION"])
    wait = float(os.environ["WAIT"])
    deadline = time.monotonic() + wait
    if os.environ["TUNNEL"]:
        print(f"this machine is reached through a tunnel; keep it open: {os.environ['TUNNEL']}", file=sys.stderr)

    said = "its SSH did not answer"
    while time.monotonic() < deadline:
        key, problem = scan(connection["host"], str(connection["port"]), connection.get("proxy"))
        if key and not (problem := started({**connection, "host_key": key})):
            compare(key, first=not connection.get("proxy"))
            first_contact(connection["host"], str(connection["port"]), key)
            return
        said = problem or said
        time.sleep(PAUSE)
    sys.exit(
        f"error: {os.environ['NAME']} was not ready within {wait:g} s ({said}); what it said: {os.environ['CONSOLE']}"
    )


def started(connection: Connection) -> str:
    """Empty where the machine has started up; else what is not so yet."""
    with ssh.command(connection) as command:
        try:
            done = subprocess.run([*command, STARTED], capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return "it stopped answering"
    return {0: "", 1: "it still starts"}.get(done.returncode, done.stderr.strip() or "nobody could log in")


def compare(key: str, *, first: bool) -> None:
    """Ends the program where Google's API knows the machine by another key.

    Says on the stack's first machine if nothing could be compared.
    """
    name, deadline = os.environ["NAME"], time.monotonic() + WRITTEN
    known, problem = vouched()
    while not known and not problem and time.monotonic() < deadline:
        time.sleep(PAUSE)
        known, problem = vouched()
    if known and known != key:
        sys.exit(
            f"error: {name} showed the host key {fingerprint(key)}, but Google's API says that it has"
            f" {fingerprint(known)}: another machine or program answered in its place (with machines.iapPort: a program"
            " that held this port before the tunnel did). No step was run there; find out what answers, then run up"
            " again"
        )
    if not known and first:
        print(
            f"the host key of {name} was not compared with Google's API ({problem or 'it has none for this machine'}):"
            " the first one seen is accepted",
            file=sys.stderr,
        )


def vouched() -> tuple[str, str]:
    """The key that Google's API shows, empty where there is none; and why it could not be asked."""
    # gcloud has a login of its own; the program's is used where it can be handed on.
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
        # It answers so until the machine has written something.
        missing = "404" in done.stderr or "not found" in done.stderr
        return "", "" if missing else " ".join(done.stderr.split())[:200] or f"{command[0]} failed"
    keys = {each["key"]: each["value"].split()[-1] for each in json.loads(done.stdout or "[]")}
    return (f"ssh-ed25519 {keys['ssh-ed25519']}", "") if "ssh-ed25519" in keys else ("", "")


if __name__ == "__main__":
    main()
