"""Asks machines, all at once and before anything changes on them, what keeps them from joining the cluster.

Variables: MACHINES (JSON: a list of `name`, `identity`, `connection` as daskstack.ssh takes it, and the `variables` of
on_the_cluster/preflight.sh), UV_ENV, which is secret, and, if other machines were asked before, PULUMI_COMMAND_STDOUT
with what this program printed then. Only machines that are new or have other variables are asked. Prints a hash for
each machine by its name, JSON.
"""

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pip._internal.models.index import PyPI

from daskstack import ssh
from daskstack.engine import PROJECT, digest
from daskstack.printable import printable

ANSWER = 60  # seconds for a machine
ATTEMPTS = 3  # connections to a machine
ON_THE_CLUSTER = PROJECT / "on_the_cluster"
PARTS = ("steps/common/*.sh", "steps/common.sh", "steps/firewall/*.sh", "steps/data/refuse.sh", "preflight.sh")


def script(variables: dict[str, str]) -> str:
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
    return assignments + "".join(file.read_text() for part in PARTS for file in sorted(ON_THE_CLUSTER.glob(part)))


def problems(machine: dict[str, Any]) -> str:
    """Each reason in a line that begins with "- "."""
    connection, frame = machine["connection"], secrets.token_hex(16)
    here = {"UV_ENV": os.environ["UV_ENV"], "PUBLIC_INDEX": PyPI.simple_url, "NOW": str(int(time.time()))}
    text = script({**machine["variables"], **here, "FRAME": frame})
    # The second shell can tell at least what it sees without sudo.
    shell = "bash -s" if connection["user"] == "root" else "sudo -n bash -s || bash -s"
    try:
        with ssh.command(connection) as command:
            for _ in range(ATTEMPTS):
                done = subprocess.run([*command, shell], input=text, capture_output=True, text=True, timeout=ANSWER)
                if not ssh.lost(done.returncode, done.stderr):
                    break
    except subprocess.TimeoutExpired:
        return f"- it did not answer within {ANSWER} s"
    _, *framed = done.stdout.split(f"{frame}\n")
    if len(framed) == 2:
        return framed[0].strip()
    said = ssh.explained(done.stderr) or ssh.explained(done.stdout) or f"exit status {done.returncode}"
    return f"- no shell as {connection['user']}: {said}"


def attributed(found: dict[str, str], machines: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The reasons by machine. If the scheduler's machine, the first, cannot reach another one, that one cannot join."""
    head = next(iter(machines))
    addresses = {each["variables"]["ADDRESS"]: name for name, each in machines.items() if name != head}
    lines = {name: found.get(name, "").splitlines() if name != head else [] for name in machines}
    for line in found.get(head, "").splitlines():
        silent = re.match(r"- it cannot connect to (\S+) on port", line)
        name = addresses.get(silent[1], head) if silent else head
        lines[name].append(line if name == head else line.replace("it", head, 1))
    return {name: "\n".join(each) for name, each in lines.items() if each}


def main() -> None:
    machines = {each["name"]: each for each in json.loads(os.environ["MACHINES"])}
    known = {name: digest(json.dumps([each["identity"], each["variables"]])) for name, each in machines.items()}
    before = json.loads(os.environ.get("PULUMI_COMMAND_STDOUT") or "{}")
    asked = [name for name in machines if before.get(name) != known[name]]
    with ThreadPoolExecutor(32) as pool:
        found = dict(zip(asked, pool.map(lambda name: problems(machines[name]), asked), strict=True))
    if bad := attributed(found, machines):
        for name, text in bad.items():
            print(f"{name} ({machines[name]['connection']['host']}):", printable(text), sep="\n", file=sys.stderr)
        print("with workers.atLeast, `daskstack up` continues without machines that cannot join", file=sys.stderr)
        sys.exit(f"error: these {len(bad)} of {len(machines)} machines cannot join the cluster; nothing was changed")
    print(json.dumps(known))


if __name__ == "__main__":
    main()
