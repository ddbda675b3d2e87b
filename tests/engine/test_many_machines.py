"""What grows with the number of machines. The real engine runs the program with a plugin that connects to nothing."""

import ipaddress
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from daskstack import engine
from settings import HOST_KEY
from tests.checkout import Checkout

CANNED = Path(__file__).with_name("canned_command.py")
MANY = 200
NETWORK = ipaddress.ip_network("198.18.0.0/15")  # reserved for benchmarks (RFC 2544); nothing connects to it
Operation = tuple[str, str, str]


def address(machine: int) -> str:
    return str(NETWORK[machine + 1])


class Cluster:
    """Existing machines `m-0` to `m-199`, whose Commands all succeed."""

    def __init__(self, folder: Path) -> None:
        self._checkout = Checkout(folder, "mine")
        self._checkout.pulumi("stack", "init")
        key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        self._checkout.pulumi("config", "set", "--secret", "dask:sshKey", stdin=key.read_text())
        self._operations = folder / "operations"
        self._environ = self._checkout.environ | engine.variables("mine", self._checkout.environ)
        self._environ |= {"PULUMI_HOME": str(self._home(folder / "home")), "OPERATIONS": str(self._operations)}
        # A local backend writes the entire state after each step, which here would take minutes.
        self._environ |= {"PULUMI_EXPERIMENTAL": "true", "PULUMI_SKIP_CHECKPOINTS": "true"}

    def _home(self, home: Path) -> Path:
        """The engine's plugins, with ours instead of `command`."""
        installed = engine.standins(engine.engine())
        shutil.copytree(installed / "home", home, symlinks=True)
        script = home / "plugins" / f"resource-command-v{engine.COMMAND}" / "pulumi-resource-command"
        script.write_text(
            f'#!/bin/sh\nPYTHONPATH="{installed}/sources" exec "{installed}/venv/bin/python" "{CANNED}" "$@"\n'
        )
        return home

    def up(self, number: int) -> list[Operation]:
        """The operations of `pulumi up` with this number of machines."""
        hosts = [
            {"name": f"m-{each}", "address": address(each), "user": "admin", "hostKey": HOST_KEY}
            for each in range(number)
        ]
        machines = {"source": "existing", "hosts": hosts, "network": str(NETWORK)}
        stack: dict[str, Any] = yaml.safe_load(self._checkout.file.read_text())
        stack["config"]["dask:cluster"] = {"target": "machines", "machines": machines}
        self._checkout.file.write_text(yaml.safe_dump(stack))
        self._operations.write_text("")
        command = ["pulumi", "up", "--yes", "--skip-preview", "--non-interactive", "--stack", "mine"]
        done = subprocess.run(
            command, cwd=self._checkout.folder, env=self._environ, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [tuple(json.loads(line)) for line in self._operations.read_text().splitlines()]


def test_one_machine_more_among_200_runs_commands_on_it_and_on_the_authority_alone(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.up(MANY)
    own, head, here = address(MANY), address(0), "this computer"
    operations = cluster.up(MANY + 1)
    assert [each for each in operations if f"m-{MANY}" not in each[1]] == [
        ("update", "dask-preflight", here),
        ("update", "dask-members", head),
        ("update", "dask-check", head),
    ]
    assert {host for _, _, host in operations} == {own, head, here}
