"""Before the first change, `up` asks all machines at once what keeps them from joining the cluster."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pip._internal.models.index import PyPI

from components.machines import dask_options
from daskstack.engine import PROJECT
from rehearsal.kubernetes import pki
from rehearsal.machines import Machine, Stack
from tests import private_index
from tests.machines.snapshots import snapshot

# A user of a directory, who may use sudo only with a password.
JANE = "CORP\\jane"

# What is wrong with each machine, and what `up` says about it.
FAULTS = {
    "locked": (
        "mv /usr/bin/python3.11 /usr/bin/python3.10\n"
        f"echo '{JANE}:x:4000:100::/home/jane:/bin/bash' >>/etc/passwd; echo '{JANE}:*:20000::::::' >>/etc/shadow\n"
        "install -d -o 4000 /home/jane /home/jane/.ssh\n"
        "install -o 4000 /etc/machine/authorized_keys.admin /home/jane/.ssh/authorized_keys",
        [
            f"sudo asks the user {JANE} for a password; allow",
            "/etc/sudoers.d/dask: CORP\\\\jane ALL=",
            "there is no Python 3.11; install it",
        ],
    ),
    "full": (
        "printf '#!/bin/sh\\necho 1000000\\n' >/usr/local/bin/getconf; chmod 0755 /usr/local/bin/getconf\n"
        "mv /usr/bin/sshfs /root; systemd-run -q flock -o /var/lib/dpkg/lock-frontend sleep 600\n"
        "useradd dask\nmount -t tmpfs -o noexec,size=100m none /opt\n"
        "nft add table inet own; nft add chain inet own in '{ type filter hook input priority 0; }'\n"
        "nft add rule inet own in tcp dport 4444 drop",
        [
            "user 'dask' already exists and does not belong",
            "(flock) has been running for ",
            "the disk of /opt has 100 MB left; free",
            "no program can run in /opt, which is mounted with noexec",
            "another firewall is active:\n  nftables table inet own has rules",
        ],
    ),
    "strict": (
        "sed -i '/^Include/d' /etc/ssh/sshd_config; echo 'DenyUsers da*l' >>/etc/ssh/sshd_config\n"
        "echo 'HostKeyAlgorithms ssh-ed25519' >>/etc/ssh/sshd_config; useradd dask-jupyter; groupadd dask\n"
        "mkdir -p /disk /srv/daskdata; mount --bind /disk /srv/daskdata",
        [
            "make that Include its first line",
            "sshd denies SSH to the user dask-tunnel (DenyUsers or DenyGroups da*l)",
            "add ssh-ed25519-cert-v01@openssh.com to its HostKeyAlgorithms",
            "user 'dask-jupyter' already exists",
            "group 'dask' already exists",
            "data.path /srv/daskdata is already a mount point on this machine; use a folder below it",
        ],
    ),
    "astray": (
        "printf '#!/bin/sh\\nTZ=UTC exec /usr/bin/date --date=\"2 hours\" \"$@\"\\n' >/usr/local/bin/date\n"
        "chmod 0755 /usr/local/bin/date; chmod 0700 /usr/bin/python3.11\nip route add blackhole HEAD\n"
        "echo 'https_proxy=\"http://me:sesame@HEAD:3128/\"' >>/etc/environment",
        [
            "the clock differs from your computer's by 7",
            "only root can run /usr/bin/python3.11; let every user run it",
            "it cannot connect to HEAD on port 22, where SSH must be reachable",
            f"it cannot reach the package index {PyPI.netloc} through the proxy HEAD:3128: [Errno 22] Invalid argument",
        ],
    ),
}  # fmt: skip
VARIABLES = {
    "PYTHON": "3.11", "SOURCE": "wheelhouse", "DATA_PATH": "/srv/daskdata", "DEVICE": "", "HOLDS": "yes",
    "SSH_PORT": "22", "SSH_SOURCES": "", "OPEN": "", "PORTS": "8786 8787 9000-9002", "LIBRARY_PORTS": "",
    "CLOSE_OTHERS": "no", "MANAGE": "yes", "USERS": "dask",
}  # fmt: skip


@pytest.fixture(scope="module")
def lan(make_stack: Callable[[str], Stack]) -> Stack:
    return make_stack("preflight")


def described(machine: Machine, network: str, reaches: str) -> dict[str, object]:
    connection = {"host": machine.address, "user": "admin", "host_key": machine.host_key}
    connection["private_key"] = machine.key.read_text()
    own = {"ADDRESS": machine.address, "NETWORK": network, "REACHES": reaches}
    return {"name": machine.name, "identity": machine.id, "connection": connection, "variables": VARIABLES | own}


def asked(machines: list[dict[str, object]], before: str = "", uv_env: str = "") -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"MACHINES": json.dumps(machines), "PULUMI_COMMAND_STDOUT": before, "UV_ENV": uv_env}
    command = [sys.executable, "-m", "on_this_computer.preflight"]
    return subprocess.run(command, env=environ, cwd=PROJECT, capture_output=True, text=True, timeout=120)


@pytest.fixture
def planted(lan: Stack) -> Iterator[tuple[list[Machine], list[dict[str, object]]]]:
    head, *machines = lan.boot("head", *FAULTS)
    for machine in machines:
        machine.run(f"sed -i '1i echo welcome to {machine.name}' /home/admin/.bashrc")
        machine.run(FAULTS[machine.name][0].replace("HEAD", head.address))
    given = [described(machine, lan.network, head.address) for machine in machines]
    given[0]["connection"]["user"] = JANE
    given[2]["variables"]["USERS"] = "dask dask-tunnel dask-jobs dask-jupyter"
    given[3]["variables"]["SOURCE"] = "index"
    yield machines, given
    lan.remove(*FAULTS)


def test_one_run_reports_every_fault_on_every_machine_with_its_remedy(
    planted: tuple[list[Machine], list[dict[str, object]]], lan: Stack
) -> None:
    _, machines = planted
    done = asked(machines)
    assert done.returncode == 1
    assert not done.stdout
    assert done.stderr.endswith("error: these 4 of 4 machines cannot join the cluster; nothing was changed\n")
    assert "with workers.atLeast, `daskstack up` continues without machines that cannot join\n" in done.stderr
    parts = dict(zip(FAULTS, done.stderr.split(" (10.")[1:], strict=True))
    for name, (_, expected) in FAULTS.items():
        found = parts[name].count("\n- ")
        for text in expected:
            assert text.replace("HEAD", lan.machines["head"].address) in parts[name], parts[name]
        assert found == sum(not text.startswith("/") for text in expected), parts[name]
    assert "sesame" not in done.stderr


@pytest.fixture
def uv_env(lan: Stack, tmp_path: Path) -> Iterator[str]:
    """The variables of an index behind a proxy."""
    pki.make(tmp_path / "pki", "", [private_index.HOST])
    pem = tmp_path / "pem"
    pem.write_text((tmp_path / "pki/server.crt").read_text() + (tmp_path / "pki/server.key").read_text())
    with private_index.running(tmp_path, pem, lan.gateway) as proxy:
        yield dask_options.exports({"UV_DEFAULT_INDEX": private_index.url(), "HTTPS_PROXY": proxy})


def test_fit_machines_are_asked_once_and_nothing_is_changed_on_them(lan: Stack, uv_env: str) -> None:
    one, two = lan.boot("one", "two")
    one.run("sed -i 's/ myhostname//' /etc/nsswitch.conf")  # sudo then says that it cannot resolve its own name
    before = [snapshot(machine) for machine in (one, two)]
    machines = [described(one, lan.network, two.address), described(two, lan.network, one.address)]
    for machine in machines:
        machine["variables"]["SOURCE"] = "index"
    done = asked(machines, uv_env=uv_env)
    assert done.returncode == 0, done.stderr
    assert {*json.loads(done.stdout)} == {"one", "two"}
    assert [snapshot(machine) for machine in (one, two)] == before
    logins = one.logins(), two.logins()
    machines[1]["variables"] |= {"DATA_PATH": "/srv/other"}
    assert asked(machines, done.stdout, uv_env).returncode == 0
    assert (one.logins() - 1, two.logins() - 2) == logins
