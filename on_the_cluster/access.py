#!/usr/bin/python3 -I
"""Gives people access to the cluster and takes it back. `daskstack access` runs it as root on the authority's machine:

    access.py add NAME      sign new keys; standard input is JSON with `request` (for TLS) and `sshPublic`
    access.py renew NAME    the same for a person who has access
    access.py confirm NAME  the new access file is complete: revoke the person's former keys
    access.py revoke NAME   revoke all keys of the person
    access.py list

The last line of its output is JSON. Every command can be run again after an interruption. To revoke keys means that
nobody can connect with them, and that open tunnels end. The scheduler's preload people.py closes Dask's connections.
"""

import contextlib
import json
import os
import pwd
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

ETC, OPT = Path("/etc/daskstack"), Path("/opt/daskstack")
AUTHORITY = ETC / "authority"
MACHINES = AUTHORITY / "machines"  # a folder for each name that the authority has signed
INDEX = AUTHORITY / "index"  # the TLS certificates that it has signed
UNCONFIRMED = "unconfirmed"  # in a person's folder: the access file may not have been written
TUNNEL_USER = "dask-tunnel"
PERSON = "person:"  # names of machines contain no colon
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}"
ACCEPTED = re.compile(
    rf"Accepted publickey for {TUNNEL_USER} from \S+ port \d+ ssh2: ED25519-CERT \S+ ID (\S+) \(serial \d+\) CA .*"
)


class Refused(Exception):
    """The command cannot be done; the message says why."""


def add(name):
    folder = MACHINES / f"{PERSON}{name}"
    if is_signed(folder) and not (folder / UNCONFIRMED).exists():
        raise Refused(f"{name} already has access; `daskstack access renew {name}` replaces the access file")
    return sign(name, UNCONFIRMED)


def renew(name):
    if not is_signed(MACHINES / f"{PERSON}{name}"):
        raise Refused(unknown(name))
    return sign(name)


def sign(name, *marks):
    given = json.load(sys.stdin)
    with tempfile.TemporaryDirectory(prefix="request.", dir=AUTHORITY) as work:
        files = {"address": "", "request.pem": given["request"], "user.pub": given["sshPublic"] + "\n"}
        for file, text in {**files, **dict.fromkeys(marks, "")}.items():
            Path(work, file).write_text(text)
        call(OPT / "authority", "admit", PERSON + name, work)
    folder = MACHINES / f"{PERSON}{name}"
    ssh = " ".join((folder / "user-cert.pub").read_text().split()[:2])
    return {"ssh": ssh, "tls": (folder / "tls.pem").read_text(), "expires": expires(folder)}


def confirm(name):
    folder = MACHINES / f"{PERSON}{name}"
    if not is_signed(folder):
        raise Refused(unknown(name))
    replaced = any((AUTHORITY / "replaced").glob(f"{PERSON}{name}.*"))
    call(OPT / "authority", "outdate", PERSON + name)
    if replaced:
        install()
        end_tunnels(name)
    with contextlib.suppress(FileNotFoundError):
        (folder / UNCONFIRMED).unlink()
    return {}


def revoke(name):
    subject = f"/CN={PERSON}{name}"
    signed = INDEX.exists() and any(line.split("\t")[5] == subject for line in INDEX.read_text().splitlines())
    # After an interruption, the folder may be gone.
    if not signed and not (MACHINES / f"{PERSON}{name}").exists():
        raise Refused(unknown(name))
    call(OPT / "authority", "revoke", PERSON + name)
    install()
    ended = end_tunnels(name)
    if (OPT / "jobs").exists():
        call("/usr/bin/python3", "-I", OPT / "jobs/jobs.py", "revoked", name)
    return {"ended": ended}


def people():
    return sorted(each.name[len(PERSON) :] for each in MACHINES.glob(f"{PERSON}*"))


def unknown(name):
    return f"{name} has no access; access has: {', '.join(people()) or 'nobody'}"


def is_signed(folder):
    return all((folder / each).exists() for each in ("tls.pem", "user-cert.pub"))


def list_people():
    found, open_now = [], list(tunnels().values())
    for name in people():
        folder = MACHINES / f"{PERSON}{name}"
        complete = is_signed(folder)
        state = "incomplete"
        if complete and not (folder / UNCONFIRMED).exists():
            # A renewal of all credentials replaces the authority.
            verify = ["openssl", "verify", "-no_check_time", "-CAfile", AUTHORITY / "tls.pem", folder / "tls.pem"]
            done = subprocess.run(verify, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            state = "outdated" if done.returncode else "valid"
        until = expires(folder) if complete else ""
        found.append({"name": name, "state": state, "expires": until, "tunnels": open_now.count(PERSON + name)})
    return {"people": found}


def expires(folder):
    words = ["openssl", "x509", "-noout", "-enddate", "-in", folder / "tls.pem"]
    said = subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout.decode()
    end = ssl.cert_time_to_seconds(said.strip().partition("=")[2])
    return datetime.fromtimestamp(end, timezone.utc).date().isoformat()  # noqa: UP017, for Python 3.9


def call(*words):
    """Runs a program of the cluster, whose output is for people."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    if done.returncode:
        raise Refused(f"{words[0]} failed; its error is above. Run the command again")


def install():
    """Makes sshd and Dask on this machine reject revoked keys. Other machines fetch the lists within minutes."""
    call(OPT / "authority", "renew")
    call(OPT / "credentials")
    # It gives up without an error if another process has been installing certificates for 30 seconds.
    if (ETC / "ssh/revoked").read_bytes() != (AUTHORITY / "revoked").read_bytes():
        raise Refused("the revocation is not installed yet, because another program holds the lock; run it again")


def end_tunnels(name):
    """Ends the person's SSH connections; returns how many. A connection that the log does not explain may be theirs."""
    ended = 0
    # A connection that sshd accepted just before the revocation is in the log by the second time.
    for pause in (1, 0):
        for pid, key in tunnels().items():
            ended += key in (None, PERSON + name) and end(pid)
        time.sleep(pause)
    return ended


def tunnels():
    """The ID of the certificate of each open SSH connection of TUNNEL_USER, by the process that serves it.

    The log of its parent, which runs as root, has the ID. It is None if the log has lost it.
    """
    found, accepted = tunnel_processes(), {}
    if found:
        subprocess.run(["journalctl", "--sync"], stderr=subprocess.DEVNULL)
        matches = ["_UID=0", "SYSLOG_IDENTIFIER=sshd", "SYSLOG_IDENTIFIER=sshd-session"]
        matches += [f"_PID={pid}" for pid in set(found.values())]
        words = ["journalctl", "-q", "-b", "-o", "json", *matches]
        for line in subprocess.run(words, stdout=subprocess.PIPE).stdout.splitlines():
            entry = json.loads(line)
            match = ACCEPTED.fullmatch(str(entry.get("MESSAGE")))
            if match:  # a later process with the same number has a later entry
                accepted[int(entry["_PID"])] = match[1]
    return {pid: accepted.get(above) for pid, above in found.items()}


def tunnel_processes():
    """The processes of sshd that serve tunnels, with their parents."""
    user, found = pwd.getpwnam(TUNNEL_USER).pw_uid, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            status = dict(re.findall(r"^(PPid|Uid):\s+(\d+)", (folder / "status").read_text(), re.MULTILINE))
            if int(status["Uid"]) == user:
                program = os.readlink(folder / "exe").replace(" (deleted)", "")  # after an upgrade of its package
                if os.path.basename(program) in ("sshd", "sshd-session"):
                    found[int(folder.name)] = int(status["PPid"])
    return found


def end(pid):
    """Ends the process if it still serves a tunnel. With a handle, a new process with its number cannot be meant."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            if pid in tunnel_processes():
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                return True
        finally:
            os.close(handle)
    return False


COMMANDS = {"add": add, "renew": renew, "confirm": confirm, "revoke": revoke}


def main(command, *names):
    if command == "list":
        return list_people()
    [name] = names
    if not re.fullmatch(NAME, name):
        raise Refused(f"{name} is not a name: up to 40 of a-z, A-Z, 0-9, - and _")
    return COMMANDS[command](name)


if __name__ == "__main__":
    os.umask(0o022)
    os.chdir("/")
    try:
        print("\n" + json.dumps(main(*sys.argv[1:])))
    except Refused as refused:
        print("\n" + json.dumps({"refused": str(refused)}))
