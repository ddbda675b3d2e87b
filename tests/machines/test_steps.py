"""Each step establishes its state on real machines; test_guest.py tests second runs and undo."""

import base64
import json
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from cryptography import x509

from components.machines import dask_options
from components.machines.credentials import ACCESS, DAYS
from components.machines.steps import DASKDATA, MOUNT
from on_this_computer import send_environment
from rehearsal.kubernetes import pki
from rehearsal.machines import Machine, Stack, as_root, until
from settings import MachinesTarget
from settings.common import Environment
from tests import private_index
from tests.machines.snapshots import snapshot
from tests.outside import CommandLines
from tests.scripts import script


class Pair:
    """Two machines with their steps' parameters, as `up` passes them: `head` is the authority, `hand` a worker."""

    def __init__(self, head: Machine, hand: Machine, network: str) -> None:
        self.head, self.hand, self.network = head, hand, network
        self.renewal = "1"
        self.variables: dict[tuple[str, str], Mapping[str, str]] = {}
        self.fresh = {machine.name: snapshot(machine) for machine in (head, hand)}

    @classmethod
    def alone(cls, machine: Machine, stack: Stack) -> "Pair":
        """One machine with its credentials, which holds its own data."""
        pair = cls(machine, machine, stack.network)
        pair.credentials(machine)
        return pair

    def step(self, machine: Machine, state: str, **variables: str) -> dict[str, str]:
        self.variables[machine.name, state] = variables
        done = machine.run(script(state, {"IDENTITY": machine.id, **variables}))
        self.said = done.stderr
        return json.loads(done.stdout) if done.stdout.startswith("{") else {}

    def undo(self, machine: Machine, state: str) -> None:
        machine.run(script(state, {"IDENTITY": machine.id, **self.variables[machine.name, state]}), {}, "undo")

    def firewall(self, machine: Machine) -> None:
        variables = {
            "NETWORK": self.network, "SSH_PORT": "22", "PORTS": "8786 8787 9000-9002", "SSH_SOURCES": "", "OPEN": "",
            "LIBRARY_PORTS": "32768-60999", "CLOSE_OTHERS": "no", "MANAGE": "yes",
        }  # fmt: skip
        self.step(machine, "firewall", **variables)
        machine.run(script("firewall", variables), {}, "confirm")

    def keys(self, machine: Machine) -> dict[str, str]:
        return self.step(machine, "keys", NAME=machine.name, METADATA="no", RENEWAL=self.renewal)

    def authority(self) -> None:
        known = {"CLUSTER": "tests", "NETWORK": self.network, "DAYS": DAYS, "RENEWAL": self.renewal}
        self.step(self.head, "authority", **known, ACCESS=ACCESS.read_text())

    def credentials(self, machine: Machine) -> None:
        self.keys(self.head)
        self.authority()
        keys = self.keys(machine)
        self.sign(machine, keys, self.step(self.head, "renewal", RENEWAL=self.renewal))

    def sign(self, machine: Machine, keys: dict[str, str], authority: dict[str, str]) -> None:
        request = {"HOST_KEY": keys["hostKey"], "USER_KEY": keys["userKey"], "REQUEST": keys["request"]}
        address = {"NAME": machine.name, "ADDRESS": machine.address}
        signed = self.step(self.head, "certificates", RENEWAL=self.renewal, **address, **request)
        self.step(
            machine,
            "credentials",
            SSH_PORT="22",
            TUNNEL=f"{machine.address}:8786 {machine.address}:8787" if machine is self.head else "",
            AUTHORITY_ADDRESS="" if machine is self.head else self.head.address,
            HOST_AUTHORITY=authority["hostAuthority"],
            BUNDLE=signed["bundle"],
            **address,
        )

    def data(self, machine: Machine, path: str = "/srv/daskdata") -> None:
        self.step(machine, "data", **self.data_variables(machine, path))

    def data_variables(self, machine: Machine, path: str) -> dict[str, str]:
        holds = "yes" if machine is self.head else "no"
        head = self.head.address
        return {
            "DATA_PATH": path, "DATA_ADDRESS": head, "HOLDS": holds, "OPTIONS": "", "LOGIN_USER": "admin",
            "DELETE": "no", "DEVICE": "", "MOUNT": MOUNT.read_text(), "DASKDATA": DASKDATA.read_text(),
        }  # fmt: skip


@pytest.fixture(scope="module")
def pair(boot: Callable[..., list[Machine]], stack: Stack) -> Pair:
    head, hand = boot("head", "hand")
    return Pair(head, hand, stack.network)


@pytest.fixture(scope="module")
def mesh(pair: Pair) -> Pair:
    """The pair with its credentials."""
    pair.credentials(pair.head)
    pair.credentials(pair.hand)
    return pair


@pytest.fixture(scope="module")
def shared(mesh: Pair) -> Pair:
    """The pair with its shared directory."""
    mesh.data(mesh.head)
    mesh.data(mesh.hand)
    return mesh


@pytest.fixture(scope="module")
def holder(boot: Callable[..., list[Machine]], stack: Stack) -> Pair:
    """A single machine; each test that uses it undoes its shared directory."""
    return Pair.alone(*boot("disk"), stack)


def start_sshd(machine: Machine) -> None:
    as_root("nsenter", "--target", str(machine.pid), "--all", "systemctl", "start", "ssh")


# Credentials


@pytest.mark.parametrize("one", ["head", "hand"])
@pytest.mark.parametrize("other", ["head", "hand"])
def test_the_cluster_user_reaches_every_machine_without_a_prompt(mesh: Pair, one: str, other: str) -> None:
    start, end = getattr(mesh, one), getattr(mesh, other)
    done = start.ssh(f"sudo -iu dask ssh {end.address} hostname")
    assert done.stdout.strip() == end.name
    assert done.stderr == ""


@pytest.mark.parametrize("door", ["root", "admin", "dask-tunnel"])
def test_a_certificate_is_rejected_for_other_users(mesh: Pair, door: str) -> None:
    done = mesh.hand.ssh(f"sudo -iu dask ssh -l {door} {mesh.head.address} true", check=False)
    assert done.returncode == 255
    assert "Permission denied" in done.stderr


def test_a_machine_without_a_signed_host_key_is_rejected(mesh: Pair, boot: Callable[..., list[Machine]]) -> None:
    [stranger] = boot("stranger")
    done = mesh.hand.ssh(f"sudo -iu dask ssh {stranger.address} true", check=False)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr or "no matching host key" in done.stderr


def test_a_rule_that_keeps_the_cluster_user_out_is_named(mesh: Pair) -> None:
    """One is in a file before ours, the other is PAM's, whose reason only sshd's log has."""
    given = mesh.variables["hand", "credentials"]
    step = script("credentials", {"IDENTITY": mesh.hand.id, **given}).replace("reach 20 ", "reach 2 ")
    own, access = "/etc/ssh/sshd_config.d/10-own.conf", "/etc/security/access.conf"
    mesh.hand.run(f"printf 'Match User da*\\nForceCommand /bin/date\\nMatch all\\n' >{own}")
    early = mesh.hand.run(step, check=False)
    mesh.hand.run(
        f"rm {own}; cp {access} /root; cp /etc/pam.d/sshd /root; echo '-:dask:ALL' >>{access}\n"
        # Without this option, dask is also the group, which admin may have joined.
        "echo 'account required pam_access.so nodefgroup' >>/etc/pam.d/sshd; systemctl restart ssh"
    )
    late = mesh.hand.run(step, check=False)
    mesh.hand.run(f"mv /root/access.conf {access}; mv /root/sshd /etc/pam.d/sshd")
    assert (early.returncode, late.returncode) == (1, 1)
    assert "precedes ours for the user dask: 'forcecommand /bin/date' instead of 'forcecommand /etc/" in early.stderr
    assert "user dask cannot log in to its own machine after 2 s" in late.stderr
    assert "\nsshd: pam_access(sshd:account): access denied for user `dask' from" in late.stderr
    mesh.hand.run(step)


def test_private_keys_are_readable_by_their_owner_only(mesh: Pair) -> None:
    for machine in (mesh.head, mesh.hand):
        found = machine.run(
            "find /etc /opt /var /home /root /tmp /srv -path '*daskstack*' -type f -print0 |"
            " xargs -0 grep -lE 'BEGIN ([A-Z]+ )*PRIVATE KEY' | xargs stat -c '%n %a %U'"
        ).stdout.splitlines()
        expected = ["/etc/daskstack/ssh/id_ed25519 600 dask", "/etc/daskstack/tls/key.pem 600 dask"]
        if machine is mesh.head:
            expected += [f"/etc/daskstack/authority/{name} 600 root" for name in ("host", "tls.key", "user")]
        assert sorted(found) == sorted(expected)
    assert mesh.head.ssh("sudo -u dask ls /etc/daskstack/authority", check=False).returncode != 0


def test_tasks_cannot_write_where_root_reads(mesh: Pair) -> None:
    writable = mesh.hand.run("sudo -u dask find /etc /opt /usr -xdev -writable ! -type l 2>/dev/null || true").stdout
    assert writable.split() == ["/etc/daskstack/ssh/id_ed25519", "/etc/daskstack/tls/key.pem"]


def test_tasks_reach_the_metadata_server_only_if_they_may_use_the_machines_account(mesh: Pair) -> None:
    hand = mesh.hand
    # On Google Cloud, port 53 of this address is a name server.
    hand.run("ip address add 169.254.169.254/32 dev lo")
    for port in (80, 53):
        hand.run(f"systemd-run -q --unit metadata-{port} python3 -m http.server {port} --bind 169.254.169.254")

    def reaches(user: str, port: int = 80) -> bool:
        attempt = f"timeout 20 bash -c 'exec 3<>/dev/tcp/169.254.169.254/{port}'"
        return hand.run(f"sudo -u {user} {attempt}", check=False).returncode == 0

    try:
        until(lambda: reaches("root") and reaches("root", 53))
        assert reaches("admin") and reaches("dask", 53)
        assert not reaches("dask")
        session = f"sudo -iu dask ssh {hand.address} 'timeout 20 bash -c \"exec 3<>/dev/tcp/169.254.169.254/80\"'"
        assert hand.ssh(session, check=False).returncode != 0
        hand.run("systemctl start firewalld && firewall-cmd -q --reload && systemctl stop firewalld")
        assert not reaches("dask")
        mesh.step(hand, "keys", NAME=hand.name, METADATA="yes", RENEWAL=mesh.renewal)
        assert reaches("dask")
    finally:
        mesh.keys(hand)
        hand.run("systemctl stop metadata-80 metadata-53; ip address delete 169.254.169.254/32 dev lo")


def test_certificates_are_valid_from_yesterday_for_ninety_days(mesh: Pair) -> None:
    pem = mesh.hand.ssh("cat /etc/daskstack/tls/certificate.pem").stdout
    certificate = x509.load_pem_x509_certificate(pem.encode())
    now = datetime.now(UTC)
    assert round((certificate.not_valid_before_utc - now) / timedelta(days=1)) == -1
    assert round((certificate.not_valid_after_utc - now) / timedelta(days=1)) == 90
    mesh.hand.ssh(
        "openssl verify -crl_check -CAfile /etc/daskstack/tls/authority.pem /etc/daskstack/tls/certificate.pem"
    )
    authority = x509.load_pem_x509_certificate(mesh.hand.ssh("cat /etc/daskstack/tls/authority.pem").stdout.encode())
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def shown(machine: Machine, certificate: str) -> str:
    return machine.ssh(f"ssh-keygen -L -f /etc/daskstack/ssh/{certificate}").stdout


def test_ssh_certificates_have_serials_and_source_addresses_and_no_extra_permissions(mesh: Pair) -> None:
    of_both = [shown(machine, "id_ed25519-cert.pub") for machine in (mesh.head, mesh.hand)]
    serials = {re.search(r"Serial: (\d+)", text)[1] for text in of_both}
    assert len(serials) == 2 and "0" not in serials
    for text in of_both:
        assert f"source-address {mesh.network},127.0.0.0/8,::1/128" in text
        assert "Extensions: (none)" in text


WEAK = {
    "tls": "openssl req -new -newkey rsa:1024 -nodes -subj /CN=weak -keyout /dev/null 2>/dev/null",
    "ssh": "rm -f /tmp/weak*; ssh-keygen -q -t rsa -b 1024 -N '' -f /tmp/weak && cut -d' ' -f1,2 /tmp/weak.pub",
    "ssh with options": 'echo "principals=\\"root\\" $(cut -d\' \' -f1,2 /etc/daskstack/ssh/id_ed25519.pub)"',
}


@pytest.mark.parametrize("kind", WEAK)
def test_weak_keys_are_not_signed(mesh: Pair, kind: str) -> None:
    weak = mesh.hand.ssh(WEAK[kind]).stdout.strip()
    variables = dict(mesh.variables["head", "certificates"], NAME="weak")
    variables["REQUEST" if kind == "tls" else "USER_KEY"] = weak
    done = mesh.head.run(script("certificates", variables), check=False)
    assert done.returncode == 1
    assert "of weak: expected" in done.stderr
    assert mesh.head.run("ls /etc/daskstack/authority/machines/weak", check=False).returncode != 0


FILES = ("ssh/host-cert.pub", "ssh/id_ed25519-cert.pub", "tls/certificate.pem")


def read(machines: Sequence[Machine], *files: str) -> list[str]:
    """The contents of these files in each machine's /etc/daskstack."""
    show = "cd /etc/daskstack && for each; do base64 -w 0 $each && echo; done"
    said = [line for machine in machines for line in machine.run(show, {}, *files).stdout.splitlines()]
    return [base64.b64decode(line).decode() for line in said]


def fetch(pair: Pair) -> None:
    """Runs the renewal that timers start within minutes."""
    pair.head.run("systemctl start dask-authority")
    for machine in (pair.head, pair.hand):
        machine.run("systemctl start dask-credentials || { journalctl -u dask-credentials -n 9; exit 1; }")


def test_certificates_renew_themselves(mesh: Pair) -> None:
    machines = (mesh.head, mesh.hand)
    for machine in machines:
        machine.ssh("systemctl is-enabled dask-credentials.timer && systemctl is-active dask-credentials.timer")
    mesh.head.ssh("systemctl is-enabled dask-authority.timer && systemctl is-active dask-authority.timer")
    before = read(machines, *FILES)
    fetch(mesh)
    assert before == read(machines, *FILES)
    # For a lifetime of 200 days, the remaining time is too short.
    mesh.head.run('sed -i \'s/DAYS="90"/DAYS="200"/\' /opt/daskstack/authority')
    fetch(mesh)
    after = read(machines, *FILES)
    assert all(old != new for old, new in zip(before, after, strict=True))
    mesh.hand.ssh(f"sudo -iu dask ssh {mesh.head.address} true")
    mesh.head.run('sed -i \'s/DAYS="200"/DAYS="90"/\' /opt/daskstack/authority')
    for machine in machines:
        mesh.credentials(machine)  # valid for ninety days again


def test_certificates_that_the_authority_did_not_sign_are_not_installed(mesh: Pair) -> None:
    """The cluster user, who runs tasks, serves these files, so they can be forged."""
    before = read([mesh.hand], *FILES)
    mesh.head.run("cp /etc/daskstack/published/hand /root/kept && sed -i '$s/./&&/' /etc/daskstack/published/hand")
    try:
        done = mesh.hand.run(
            "systemctl start dask-credentials; journalctl -u dask-credentials -n 9 -o cat", check=False
        )
        assert "has no valid signature; it was not installed" in done.stdout
        assert before == read([mesh.hand], *FILES)
    finally:
        mesh.head.run("mv /root/kept /etc/daskstack/published/hand")
        mesh.hand.run("systemctl start dask-credentials")


def test_keys_of_a_removed_machine_are_rejected(mesh: Pair) -> None:
    """The removed machine, or anyone who copied its keys, still has them."""
    hand, stolen = mesh.hand, "/var/lib/daskstack/home/stolen"
    hand.run(
        f'sudo -u dask sh -c \'umask 077 && mkdir {stolen} && cd {stolen} && ssh-keygen -q -t ed25519 -N "" -f id &&'
        " openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=x -keyout key"
        " -out request'"
    )
    variables = {
        "NAME": "removed", "ADDRESS": hand.address, "RENEWAL": "1",
        "HOST_KEY": hand.run(f"cut -d' ' -f1,2 {stolen}/id.pub").stdout.strip(),
        "USER_KEY": hand.run(f"cut -d' ' -f1,2 {stolen}/id.pub").stdout.strip(),
        "REQUEST": hand.run(f"cat {stolen}/request").stdout,
    }  # fmt: skip
    mesh.head.run(script("certificates", variables))
    folder = "/etc/daskstack/authority/machines/removed"
    certificate = mesh.head.run(f"cat {folder}/user-cert.pub").stdout
    hand.run(f"echo '{certificate.strip()}' >{stolen}/id-cert.pub && chmod 644 {stolen}/id-cert.pub")
    tls = mesh.head.run(f"cat {folder}/tls.pem").stdout.strip()
    hand.run(f"echo '{tls}' >{stolen}/tls.pem")

    def opens() -> list[bool]:
        login = (
            f"sudo -iu dask ssh -F none -i {stolen}/id -oIdentitiesOnly=yes -oBatchMode=yes -oStrictHostKeyChecking=no"
        )
        doors = [hand.run(f"{login} {each.address} true", check=False) for each in (mesh.head, hand)]
        bundle = "/etc/daskstack/tls/authority.pem"
        return [done.returncode == 0 for done in doors] + [
            hand.run(f"openssl verify -crl_check -CAfile {bundle} {stolen}/tls.pem", check=False).returncode == 0
        ]

    fetch(mesh)
    assert opens() == [True, True, True]
    mesh.head.run(script("certificates", variables), {}, "undo")
    fetch(mesh)
    assert opens() == [False, False, False]
    assert hand.ssh(f"sudo -iu dask ssh {mesh.head.address} hostname").stdout == "head\n"
    hand.run(f"rm -r {stolen}")


KEYS = ("ssh/id_ed25519", "tls/key.pem")
AUTHORITIES = ("ssh/known_hosts", "ssh/user-authority.pub", "ssh/authorities", "tls/authority.pem")


def test_a_renewal_replaces_keys_and_authorities_and_rejects_the_old_ones(mesh: Pair) -> None:
    machines, old = (mesh.head, mesh.hand), "/var/lib/daskstack/home/old"

    def opened(certificates: list[str], options: str = "") -> set[bool]:
        """Whether each machine accepts the SSH key and TLS certificate of each machine."""
        seen = set()
        verify = "openssl verify -crl_check -CAfile /etc/daskstack/tls/authority.pem"
        for machine in machines:
            logins = "; ".join(f"ssh {options} {other.address} true; echo $?" for other in machines)
            checks = "; ".join(f"echo '{each}' | {verify} >/dev/null; echo $?" for each in certificates)
            done = machine.run(f"sudo -iu dask sh -c '{logins}'; {checks}", check=False)
            assert len(done.stdout.split()) == 4
            seen |= {status == "0" for status in done.stdout.split()}
        return seen

    def everyone_reaches_everyone() -> bool:
        return opened(read(machines, "tls/certificate.pem")) == {True}

    def trusted() -> list[set[str]]:
        return [set(re.findall("AAAA[^ \n]+|BEGIN CERT[^-]+-----[^-]+", text)) for text in read(machines, *AUTHORITIES)]

    before, former = read(machines, *KEYS, *FILES), trusted()
    for machine in machines:
        machine.run(f"cp -r /etc/daskstack {old} && chown -R dask: {old}")
    stolen = (
        read(machines, "tls/certificate.pem"),
        f"-F none -i {old}/ssh/id_ed25519 -oIdentitiesOnly=yes -oBatchMode=yes -oStrictHostKeyChecking=no",
    )
    assert opened(*stolen) == {True}

    mesh.renewal = "2"
    keys = {mesh.head: mesh.keys(mesh.head)}
    mesh.authority()
    keys[mesh.hand] = mesh.keys(mesh.hand)
    assert read(machines, *KEYS, *FILES) == before, "keys of the renewal are used before they have certificates"
    assert all(one < two and len(two) == 2 for one, two in zip(former, trusted(), strict=True))
    assert everyone_reaches_everyone()
    authority = mesh.step(mesh.head, "renewal", RENEWAL="2")
    for machine in machines:
        mesh.sign(machine, keys[machine], authority)
        assert everyone_reaches_everyone()
    after = read(machines, *KEYS, *FILES)
    assert not set(before) & set(after)

    mesh.head.run("/opt/daskstack/authority settle 0")
    fetch(mesh)
    assert everyone_reaches_everyone()
    assert read(machines, *KEYS, *FILES) == after
    assert opened(*stolen) == {False}
    assert not [one & now for one, now in zip(former, trusted(), strict=True) if one & now or len(now) != 1]
    for machine in machines:
        machine.run(f"rm -r {old} && test ! -e /etc/daskstack/next && ! ls -d /etc/daskstack/authority/former/*")


def test_a_fetch_during_a_renewal_never_mixes_old_keys_and_new_certificates(mesh: Pair) -> None:
    """A timer can start, and an `up` can be killed, at any moment."""
    mesh.renewal = "3"
    keys = {mesh.head: mesh.keys(mesh.head)}
    mesh.authority()
    keys[mesh.hand] = mesh.keys(mesh.hand)

    def fits() -> bool:
        fetch(mesh)
        pair = mesh.hand.run("cd /etc/daskstack/tls && openssl pkey -in key.pem -pubout").stdout
        assert mesh.hand.run("openssl x509 -in /etc/daskstack/tls/certificate.pem -noout -pubkey").stdout == pair
        mesh.hand.ssh(f"sudo -iu dask ssh {mesh.head.address} true")
        return pair == mesh.hand.run(f"echo '{keys[mesh.hand]['request']}' | openssl req -noout -pubkey").stdout

    assert not fits()
    authority = mesh.step(mesh.head, "renewal", RENEWAL="3")
    mesh.sign(mesh.head, keys[mesh.head], authority)
    assert not fits()
    variables = dict(mesh.variables["head", "certificates"], NAME="hand", ADDRESS=mesh.hand.address)
    own = keys[mesh.hand]
    variables |= {"HOST_KEY": own["hostKey"], "USER_KEY": own["userKey"], "REQUEST": own["request"]}
    mesh.head.run(script("certificates", variables))
    assert fits()
    mesh.sign(mesh.hand, own, authority)
    mesh.head.run("/opt/daskstack/authority settle 0")
    assert fits()


def test_another_users_account_is_not_taken_over(boot: Callable[..., list[Machine]]) -> None:
    [machine] = boot("taken")
    machine.run("useradd --create-home dask")
    done = machine.run(script("keys", {"NAME": "taken", "METADATA": "no", "RENEWAL": "1"}), check=False)
    assert done.returncode == 1
    assert "user 'dask' already exists and does not belong to this cluster" in done.stderr
    machine.run("useradd --create-home dask-tunnel")
    names = ("HOST_AUTHORITY", "USER_AUTHORITY", "TLS_AUTHORITY", "HOST_CERTIFICATE", "USER_CERTIFICATE")
    variables = dict.fromkeys((*names, "TLS_CERTIFICATE", "AUTHORITY_ADDRESS"), "") | {"ADDRESS": machine.address}
    variables |= {"SSH_PORT": "22", "TUNNEL": f"{machine.address}:8786"}
    done = machine.run(script("credentials", variables), check=False)
    assert done.returncode == 1
    assert "user 'dask-tunnel' already exists and does not belong to this cluster" in done.stderr
    assert machine.ssh("ls -d /home/dask /home/dask-tunnel").stdout.split() == ["/home/dask", "/home/dask-tunnel"]
    machine.ssh("id dask-tunnel")


# Data


@pytest.mark.parametrize("writer", ["root", "admin", "dask"])
@pytest.mark.parametrize("place", ["head", "hand"])
def test_files_in_the_shared_directory_are_usable_from_every_machine_by_every_process(
    shared: Pair, writer: str, place: str
) -> None:
    here = getattr(shared, place)
    there = shared.hand if place == "head" else shared.head
    file = f"/srv/daskdata/{writer}-{place}"
    here.ssh(f"sudo -u {writer} sh -c 'touch {file} && echo 1 >>{file} && mkdir {file}.d'")
    for machine in (there, here):
        uses = f"touch {file} && echo 2 >>{file} && echo 3 >{file}.d/$0-{machine.name}"
        machine.ssh(f"for user in root admin dask; do sudo -u $user sh -c '{uses}' $user || exit; done")
    assert there.ssh(f"sudo -u dask cat {file}").stdout.split() == ["1"] + 6 * ["2"]
    there.ssh(f"sudo -u dask rm -r {file} {file}.d")
    assert here.ssh(f"ls {file}", check=False).returncode != 0


# Runs on one machine, and changes files on the other one by a shell there. The file is watched, so that this machine
# remembers its attributes; "grown" ends in a second.
CHANGES = """
import mmap, os, subprocess, time
os.chdir("/srv/daskdata")
there = subprocess.Popen(["/etc/daskstack/ssh/ssh", HEAD, "sh"], text=True, stdin=-1, stdout=-1)
def change(command):
    there.stdin.write(f"cd /srv/daskdata && {command}; echo $?\\n")
    there.stdin.flush()
    assert there.stdout.readline() == "0\\n", command
change("mkdir -p changes/folder && printf 0 >changes/file")
for size in range(2, 30):
    watched = open("changes/file", "rb")
    assert os.path.isdir("changes/folder") and len(watched.read()) == os.fstat(watched.fileno()).st_size == size - 1
    change("printf 0 >>changes/file")
    if size % 3 == 0:
        assert os.stat("changes/file").st_size == size
    if size % 3 == 1:
        assert len(open("changes/file", "rb").read()) == size
    if size % 3 == 2:
        with open("changes/file", "rb") as file:
            assert len(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[:]) == size
os.fstat(watched.fileno())
change("printf more >>changes/file && rmdir changes/folder")
assert not os.path.exists("changes/folder")
time.sleep(1.1)
assert os.fstat(watched.fileno()).st_size == size + 4
change("printf new >changes/new && mv changes/new changes/file")
assert open("changes/file").read() == "new"
change("rm -r changes")
assert not os.path.exists("changes/file")
os.makedirs("changes/folder")
# Changes of this machine are seen at once through files that are open.
with open("own", "wb", buffering=0) as writer, open("own", "rb") as reader:
    for size in range(1, 30):
        writer.write(b"0")
        assert os.fstat(writer.fileno()).st_size == os.fstat(reader.fileno()).st_size == size
        assert len(reader.read()) == 1
    os.truncate("own", 5)
    assert os.fstat(reader.fileno()).st_size == 5
with open("own", "r+b") as file, mmap.mmap(file.fileno(), 5) as shared:
    shared[:] = b"12345"
    shared.flush()
change("grep -qx 12345 own && rm -r own changes")
print("done")
"""


def test_machines_see_each_others_files_at_their_full_length_at_once(shared: Pair) -> None:
    script = f"HEAD = {shared.head.address!r}\n{CHANGES}"
    done = shared.hand.ssh("cd /; sudo -u dask python3", stdin=script, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_the_kernel_and_programs_send_few_and_large_requests_to_the_shared_directory(shared: Pair) -> None:
    shared.hand.make_read_ahead_writable()
    again = "sudo systemctl stop srv-daskdata.mount; cd /srv/daskdata"
    ahead = "cat /sys/class/bdi/$(mountpoint -d .)/read_ahead_kb"
    buffers = "touch large && stat -c %o large . && stat -c %o - <large && rm large"
    found = shared.hand.ssh(f"{again}; {ahead}; {buffers}")
    assert found.stdout.split() == ["1024", "65536", "65536", "65536"]


def test_each_user_is_the_owner_of_files_that_another_has_just_looked_at(shared: Pair) -> None:
    shared.hand.ssh("mkdir /srv/daskdata/owned && touch /srv/daskdata/owned/file")
    each = "for user in root dask; do sudo -u $user stat -c %U owned owned/file; stat -c %U - <&3; done"
    script = f"cd /srv/daskdata; exec 3<owned/file; {each}; {each}; sudo -u nobody stat owned owned/file"
    found = shared.hand.ssh(script, check=False)
    assert found.stdout.split() == 2 * ["root", "root", "admin", "dask", "dask", "admin"]
    assert found.stderr.count("Permission denied") == 2
    shared.hand.ssh("rm -r /srv/daskdata/owned")


# Copies a folder that has a link, a program, an old file, and files and folders that are not writable.
TOOLS = """
set -eu
exec 2>&1
there=/srv/daskdata/tools-$(id -un)-$(hostname) source=$(mktemp -d)
mkdir $there && cd $source
mkdir -p made/closed && echo one >made/old && ln -s old made/link && printf '#!/bin/sh\n' >made/program
touch -d 2001-02-03 made/old && chmod 444 made/old && chmod 555 made/closed && chmod 755 made/program
tar -c --owner=bin --group=games made >made.tar
git init -q && git add made && git -c user.name=me -c user.email=me@example.org commit -q -m made
cd $there
tar xf $source/made.tar
cp -a $source/made copied
cp -p $source/made/old old && touch -d 2001-02-03 old && chmod a-w old
rsync -a $source/made/ synced
[ -z "$(rsync -rlpti $source/made/program synced/)" ] # nothing is left to do
python3 -c "import shutil; shutil.copytree('$source/made', 'tree', symlinks=True); shutil.copy2('old', 'new')"
git clone -q $source cloned && git -C cloned status --short
for each in made copied synced tree; do $each/program && [ "$(date -r $each/old +%F)" = 2001-02-03 ]; done
rm -rf $source
"""
USE_ALL = """
cd /srv/daskdata
find . -type f -exec sh -c 'for each; do echo >>"$each" && cat "$each" >/dev/null || echo "$each"; done' - {} +
find . -type d -exec sh -c 'for each; do mkdir "$each/extra" && rmdir "$each/extra" || echo "$each"; done' - {} +
"""


def test_usual_tools_work_in_the_shared_directory_for_root_the_login_user_and_tasks(shared: Pair) -> None:
    for machine in (shared.head, shared.hand):
        machine.ssh(f"cat >/tmp/tools <<'END'\n{TOOLS}\nEND")
        for user in ("root", "admin", "dask"):
            done = machine.ssh(f"cd /; sudo -u {user} bash /tmp/tools", check=False)
            assert (done.returncode, done.stdout) == (0, ""), f"as {user} on {machine.name}"
    for user in ("root", "admin", "dask"):
        done = shared.hand.ssh(f"cd /; sudo -u {user} bash", stdin=USE_ALL)
        assert done.stdout + done.stderr == "", f"files that {user} cannot use"
    assert shared.head.run("find /var/lib/daskstack/data ! -user dask -o ! -group dask").stdout == ""
    shared.head.run("rm -r /srv/daskdata/*")


def test_other_users_of_the_machine_cannot_read_the_data(shared: Pair) -> None:
    shared.head.ssh("echo mine >/srv/daskdata/mine; chmod 666 /srv/daskdata/mine; chmod 777 /srv/daskdata")
    for machine in (shared.head, shared.hand):
        machine.ssh("cat /srv/daskdata/mine")
        for attempt in ("ls .", "cat mine", "stat mine", "touch new", "rm mine", "sh -c 'cd /srv/daskdata/.'"):
            attempt = attempt.replace("mine", "/srv/daskdata/mine").replace(" .", " /srv/daskdata")
            assert machine.ssh(f"cd /; sudo -u nobody {attempt}", check=False).returncode != 0, attempt


def test_setuid_programs_in_the_shared_directory_have_no_effect(shared: Pair) -> None:
    """The directory shows every user as the owner of all files, root too."""
    for machine in (shared.head, shared.hand):
        machine.ssh("ls /srv/daskdata")
        assert {"nosuid", "nodev"} <= set(
            machine.ssh("findmnt -no OPTIONS -t fuse.sshfs /srv/daskdata").stdout.strip().split(",")
        )


def test_the_mount_comes_back_after_a_reboot_of_either_machine(shared: Pair, stack: Stack) -> None:
    shared.head.ssh("echo kept >/srv/daskdata/kept")
    for machine in (shared.hand, shared.head):
        machine.reboot()
        stack.boot(machine.name)
        # Operations that were running when the other machine rebooted may fail.
        read = "timeout 60 cat /srv/daskdata/kept"
        until(lambda read=read: shared.hand.ssh(read, check=False).stdout == "kept\n", 120)
        assert "169.254.169.254" in machine.run("nft list table inet daskstack").stdout


def test_the_units_have_no_dependency_cycle(shared: Pair) -> None:
    """systemd breaks a dependency cycle by dropping an arbitrary job at some boots."""
    for machine in (shared.hand, shared.head):
        machine.ssh("systemctl is-enabled srv-daskdata.automount")
        done = machine.run("systemd-analyze verify --man=no srv-daskdata.automount", check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_nothing_is_written_under_an_inactive_mount_point(shared: Pair) -> None:
    """During an outage of the machine that holds the data, writes fail instead of going to the local disk."""
    shared.head.ssh("sudo systemctl stop ssh; sudo pkill -u dask sshd")
    try:
        done = shared.hand.ssh("sudo timeout 60 touch /srv/daskdata/astray", check=False)
        assert done.returncode not in (0, 124)
    finally:
        start_sshd(shared.head)
    assert shared.hand.ssh("timeout 120 touch /srv/daskdata/arrives").returncode == 0
    assert "astray" not in shared.head.ssh("ls /srv/daskdata").stdout


def test_a_task_named_sshfs_cannot_keep_the_mount_busy(shared: Pair) -> None:
    machine = shared.hand
    mounted = (
        "ls /srv/daskdata >/dev/null; systemctl show -p ActiveEnterTimestampMonotonic,ActiveState srv-daskdata.mount"
    )
    before = machine.run(mounted).stdout
    machine.run(
        "systemd-run -q --uid=dask -u decoy bash -c 'exec -a \"sshfs x /srv/daskdata x\" sleep 1000'\n"
        "systemctl restart dask-data-watch; sleep 0.5; systemctl stop decoy; sleep 2"
    )
    assert machine.run(mounted).stdout == before
    assert "ActiveState=active" in before


def test_a_broken_mount_fails_the_step_with_the_reason(
    mesh: Pair, holder: Pair, boot: Callable[..., list[Machine]]
) -> None:
    """The machine at DATA_ADDRESS does not accept the cluster's keys."""
    astray, [stranger] = holder.head, boot("stranger")
    variables = {**mesh.data_variables(astray, "/srv/elsewhere"), "DATA_ADDRESS": stranger.address}
    done = astray.run(script("data", variables), check=False)
    astray.run(script("data", variables), {}, "undo")
    assert done.returncode == 1
    assert "/srv/elsewhere is not mounted" in done.stderr
    assert "Connection reset by peer" in done.stderr
    assert astray.ssh("ls -d /srv/elsewhere", check=False).returncode != 0


def test_a_changed_data_path_leaves_only_the_files_at_the_old_path(holder: Pair) -> None:
    mover = holder.head
    holder.data(mover, "/srv/before")
    mover.ssh("touch /srv/before/kept")
    holder.data(mover, "/srv/after")
    assert mover.ssh("findmnt -n -o FSTYPE /srv/before; sudo ls /srv/before", check=False).stdout.split() == ["kept"]
    assert mover.ssh("ls /srv/after").stdout == ""
    assert "before" not in mover.ssh("ls /etc/systemd/system").stdout
    holder.undo(mover, "data")
    mover.run("rm -rf /srv/before /srv/after")


def test_the_step_fails_if_the_mount_would_hide_files(mesh: Pair) -> None:
    mesh.hand.run("mkdir -p /srv/full && touch /srv/full/mine")
    variables = mesh.data_variables(mesh.hand, "/srv/full")
    done = mesh.hand.run(script("data", variables), check=False)
    assert done.returncode == 1
    assert "would hide files in /srv/full on this machine" in done.stderr
    mesh.hand.run("rm -r /srv/full")


def test_a_data_path_in_memory_is_rejected(mesh: Pair) -> None:
    variables = mesh.data_variables(mesh.head, "/dev/shm/data")
    done = mesh.head.run(script("data", variables), check=False)
    assert done.returncode == 1
    assert "is in memory" in done.stderr


def test_data_under_tmp_survives_a_reboot(holder: Pair, stack: Stack) -> None:
    machine = holder.head
    holder.data(machine, "/tmp/daskdata")
    machine.ssh("echo kept >/tmp/daskdata/kept")
    machine.reboot()
    stack.boot(machine.name)
    assert machine.ssh("cat /tmp/daskdata/kept").stdout == "kept\n"
    holder.undo(machine, "data")
    machine.run("rm -rf /tmp/daskdata")


# Data on a separate disk


@dataclass
class Disk:
    """A blank disk of 64 MB: a file on this computer, which is a device of the machine until it reboots."""

    file: Path
    loop: str

    def attach(self, machine: Machine) -> None:
        """Creates the device node from this computer, because root of the machine may not."""
        number = os.stat(self.loop).st_rdev
        node = ("mknod", DEVICE, "b", str(os.major(number)), str(os.minor(number)))
        as_root("nsenter", "--target", str(machine.pid), "--mount", *node)

    def grow(self, megabytes: int) -> None:
        as_root("truncate", "-s", f"{megabytes}M", str(self.file))
        as_root("losetup", "--set-capacity", self.loop)


@contextmanager
def blank_disk(machine: Machine, file: Path) -> Iterator[Disk]:
    """A disk that is attached to the machine, and must be unmounted at the end."""
    as_root("truncate", "-s", "64M", str(file))
    disk = Disk(file, as_root("losetup", "--find", "--show", str(file)).stdout.strip())
    try:
        disk.attach(machine)
        yield disk
    finally:
        as_root("losetup", "--detach", disk.loop)
        file.unlink()


@pytest.fixture
def disk(holder: Pair, tmp_path: Path) -> Iterator[Disk]:
    with blank_disk(holder.head, tmp_path / "disk") as disk:
        yield disk
        data_on_disk(holder, "undo")
        holder.head.run(f"rm {DEVICE}")


DEVICE = "/dev/disk-of-its-own"
CAP_SYS_RESOURCE = 1 << 24


def data_on_disk(pair: Pair, *arguments: str, check: bool = True, **changes: str) -> CompletedProcess[str]:
    variables = {"IDENTITY": pair.head.id, **pair.data_variables(pair.head, "/srv/daskdata"), "DEVICE": DEVICE}
    return pair.head.run(script("data", variables | changes), {}, *arguments, check=check)


def test_a_disk_keeps_its_files_when_it_moves_to_another_machine(holder: Pair, disk: Disk, stack: Stack) -> None:
    machine, before = holder.head, snapshot(holder.head)
    data_on_disk(holder)
    machine.ssh("echo kept >/srv/daskdata/kept && ls -A /srv/daskdata")
    assert machine.ssh("findmnt -no FSTYPE /var/lib/daskstack/data").stdout == "ext4\n"
    once = snapshot(machine)
    data_on_disk(holder)
    assert snapshot(machine) ^ once == set()
    machine.reboot()
    disk.attach(machine)
    stack.boot("disk")
    assert machine.ssh("ls -A /srv/daskdata && cat /srv/daskdata/kept").stdout == "kept\nkept\n"

    assert f"kept {DEVICE} on disk, because it contains files" in data_on_disk(holder, "undo").stderr
    assert snapshot(machine) ^ before == set()
    # As the next machine finds it, where the cluster user has another user ID.
    machine.run(f"mount {DEVICE} /mnt && chown -R 4242:4242 /mnt && umount /mnt")
    data_on_disk(holder)
    machine.ssh("sudo -u dask sh -c 'cd / && echo more >>/srv/daskdata/kept'")
    assert machine.ssh("cat /srv/daskdata/kept").stdout == "kept\nmore\n"
    assert data_on_disk(holder, "undo", DELETE="yes").stderr == ""
    assert machine.run(f"mount {DEVICE} /mnt && ls -A /mnt && umount /mnt").stdout == ""
    assert snapshot(machine) ^ before == set()


def test_setuid_programs_on_a_disk_have_no_effect(holder: Pair, disk: Disk) -> None:
    data_on_disk(holder)
    kept = "/var/lib/daskstack/data"
    holder.head.run(f"install -m 4755 /usr/bin/id {kept}/id")
    assert holder.head.ssh(f"sudo -u dask {kept}/id -un").stdout == "dask\n"
    options = holder.head.ssh(f"findmnt -no OPTIONS {kept}").stdout.strip().split(",")
    assert {"nosuid", "nodev"} <= set(options)


def test_a_resized_disk_is_used_to_its_full_size(holder: Pair, disk: Disk) -> None:
    data_on_disk(holder)
    disk.grow(128)
    done = data_on_disk(holder, check=False)
    if not int(holder.head.run("sed -n 's/^CapBnd:/0x/p' /proc/1/status | tr -d '\\t'").stdout, 16) & CAP_SYS_RESOURCE:
        # The kernel requires this to grow a mounted file system: here the step tries to, and reports why it failed.
        assert "cannot grow the file system on /dev/disk-of-its-own to the device's size" in done.stderr
        pytest.skip("this computer may not resize mounted file systems")
    assert done.returncode == 0, done.stderr
    assert int(holder.head.ssh("df --output=size -BM /srv/daskdata | tail -n 1 | tr -dc 0-9").stdout) > 100


PARTITION = bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (4096).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("offset", "content"),
    [(446, PARTITION + bytes(48) + b"\x55\xaa"), (0, b"LUKS\xba\xbe\0\1"), (5000, b"not blank")],
    ids=["a partition table", "an encrypted one", "no signature"],
)
def test_a_disk_with_other_contents_is_never_formatted(holder: Pair, disk: Disk, offset: int, content: bytes) -> None:
    octal = "".join(f"\\{byte:03o}" for byte in content)
    as_root("sh", "-c", f"printf '{octal}' | dd of={disk.loop} bs=1 seek={offset} conv=notrunc,fsync")
    before = as_root("sha256sum", disk.loop).stdout
    done = data_on_disk(holder, check=False)
    assert done.returncode == 1
    assert f"{DEVICE} has no file system but is not blank" in done.stderr
    assert as_root("sha256sum", disk.loop).stdout == before


def test_a_missing_disk_fails_the_step_with_a_remedy(holder: Pair) -> None:
    text = script("data", holder.data_variables(holder.head, "/srv/daskdata") | {"DEVICE": "/dev/missing"})
    done = holder.head.run(text.replace("wait_for 60", "wait_for 1"), check=False)
    assert done.returncode == 1
    assert "waiting for block device /dev/missing to appear; attach the disk" in done.stderr


def test_the_step_fails_if_a_disk_would_hide_files(holder: Pair, disk: Disk) -> None:
    holder.data(holder.head)
    holder.head.ssh("echo mine >/srv/daskdata/mine")
    done = data_on_disk(holder, check=False)
    assert done.returncode == 1
    assert "the shared directory would hide files in /srv/daskdata on this machine" in done.stderr
    assert holder.head.ssh("cat /srv/daskdata/mine").stdout == "mine\n"
    holder.head.ssh("mv /srv/daskdata/mine . && sudo chown root: /srv/daskdata")
    data_on_disk(holder)
    assert holder.head.ssh("mv mine /srv/daskdata && ls /srv/daskdata").stdout == "mine\n"


# Environment


def wheel(folder: Path, code: str, name: str = "tiny") -> str:
    """Writes a wheel with one module and returns its line of a lock. Wheels with code of equal size have equal size."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in {
            f"{name}.py": code,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n",
        }.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return f"{name}==1.0 --hash=sha256:{send_environment.sha256(folder / f'{name}-1.0-py3-none-any.whl')}\n"


@dataclass
class House:
    """A wheelhouse with one tiny package, which the machine `head` serves."""

    pair: Pair
    folder: Path

    def send(self) -> None:
        head = self.pair.head
        connection = {"host": head.address, "user": "admin", "host_key": head.host_key}
        send_environment.send(self.folder, connection | {"private_key": head.key.read_text()})

    def install(
        self, machine: Machine, *arguments: str, before: str = "", check: bool = True, **changes: str
    ) -> CompletedProcess[str]:
        head = self.pair.head
        [uv] = self.folder.glob("uv-*.whl")
        variables = {
            "IDENTITY": machine.id, "LOCK_SHA256": send_environment.sha256(self.folder / "environment.lock"),
            "PYTHON": "3.11",
            "SOURCE": "wheelhouse", "SYSTEM": "", "UV": uv.name, "UV_SHA256": send_environment.sha256(uv),
            "AUTHORITY_ADDRESS": "" if machine is head else head.address, "UV_ENV": "", "CERTIFICATES": "",
            "CHECK": "", "IMPORTS": "",
        }  # fmt: skip
        return machine.run(before + script("environment", variables | changes), {}, *arguments, check=check)


@pytest.fixture
def house(mesh: Pair, tmp_path: Path) -> Iterator[House]:
    folder = tmp_path / send_environment.FOLDER
    (folder / "wheels").mkdir(parents=True)
    collected = send_environment.collect(Path("environment.lock"), "3.11", "wheelhouse")
    shutil.copy(next(collected.glob("uv-*.whl")), folder)
    (folder / "environment.lock").write_text(wheel(folder / "wheels", "value = 'honest'\n"))
    house = House(mesh, folder)
    house.send()
    yield house
    for machine in (mesh.head, mesh.hand):
        house.install(machine, "undo")
    mesh.head.run(send_environment.REMOVE)


OWNED = "import os; os.system('id >/owned')"
IMPORT = "cd / && /opt/daskstack/environment/bin/python -c 'import tiny; print(tiny.value)'"


def test_root_installs_only_files_whose_hashes_it_verified(house: House, tmp_path: Path) -> None:
    """Replaces the SFTP server of the authority's machine, as if a task had managed to."""
    head, hand = house.pair.head, house.pair.hand
    honest, evil = next((house.folder / "wheels").iterdir()), tmp_path / "evil"
    evil.mkdir()
    wheel(evil, "value = 'evil!!'\n")
    assert (evil / honest.name).stat().st_size == honest.stat().st_size
    # uv would build this, and thereby run it, if the lock allowed it.
    with tarfile.open(evil / "source-1.0.tar.gz", "w:gz") as archive:
        for name, text in {"setup.py": OWNED, "pyproject.toml": "[build-system]\nrequires = []\n"}.items():
            (tmp_path / name).write_text(text)
            archive.add(tmp_path / name, f"source-1.0/{name}")
    source = "source @ file:///var/lib/daskstack/home/evil/source-1.0.tar.gz"
    (evil / "environment.lock").write_text(
        f"{source} --hash=sha256:{send_environment.sha256(evil / 'source-1.0.tar.gz')}\n"
    )
    [uv] = house.folder.glob("uv-*.whl")
    with zipfile.ZipFile(evil / uv.name, "w") as archive:
        archive.writestr("uv-1.data/scripts/uv", "#!/bin/sh\nid >/owned\n")
    evil_files = {each.name: base64.b64encode(each.read_bytes()).decode() for each in evil.iterdir()}
    server = base64.b64encode((Path(__file__).parent / "two_faced_sftp.py").read_bytes()).decode()
    plant = "cd /var/lib/daskstack/home && mkdir -p evil\n"
    plant += "".join(f"echo {text} | base64 -d >evil/{name}\n" for name, text in evil_files.items())
    plant += f"echo {server} | base64 -d >server.py\nchown -R dask: evil server.py\n"
    session = "/etc/daskstack/ssh/session"
    shell = f"#!/bin/sh\ncase $SSH_ORIGINAL_COMMAND in *sftp*) exec python3 -I ~/server.py ;; esac\nexec {session}.kept"
    head.run(f"{plant}mv {session} {session}.kept\ncat >{session} <<'END'\n{shell}\nEND\nchmod 755 {session}")
    try:
        said = house.install(hand, check=False)
        served = head.run("cat /var/lib/daskstack/home/served").stdout.split("\n")
    finally:
        head.run(f"mv {session}.kept {session}; cd /var/lib/daskstack/home && rm -rf evil server.py served")
    assert {f"open {name}" for name in ("environment.lock", uv.name, honest.name)} <= set(served)
    assert hand.run("ls /owned", check=False).returncode != 0
    assert said.returncode == 0 and hand.ssh(IMPORT).stdout == "honest\n", said.stderr
    assert not [line for line in served if line.startswith("evil")], "root has opened a file twice"


def test_machines_use_the_environment_of_an_archive_that_root_verified(house: House) -> None:
    """Made from the environment of a machine, in the form of conda-pack, whose paths a program in it corrects."""
    head, hand = house.pair.head, house.pair.hand
    house.install(head)
    fake = "import distributed\nopen('/opt/daskstack/environment/corrected', 'w')"
    pack = (
        "cd /opt/daskstack/environment; mkdir lib/python3.11/site-packages/distributed\n"
        "touch lib/python3.11/site-packages/distributed/__init__.py; printf '%s' \"$FAKE\" >bin/conda-unpack\n"
        "tar -czf /opt/daskstack/files/environment.tar.gz .; cd /opt/daskstack/files\n"
        "chmod 0644 environment.tar.gz; sha256sum environment.tar.gz; stat -c %s environment.tar.gz"
    )
    said = head.run(pack, {"FAKE": fake}).stdout.split()
    facts = {"SOURCE": "archive", "ARCHIVE_SHA256": said[0], "ARCHIVE_SIZE": said[2]}
    done = house.install(hand, check=False, **facts | {"ARCHIVE_SHA256": "0" * 64})
    assert f"environment.tar.gz from {head.address} differs from the file that up copied there" in done.stderr
    assert hand.run("ls /opt/daskstack/environment", check=False).returncode
    house.install(hand, **facts)
    assert hand.ssh(IMPORT).stdout == "honest\n"
    assert hand.run("stat -c %U:%a /opt/daskstack/environment/corrected").stdout == "root:644\n"
    # With another lock, nothing of the archive stays.
    hand.run("rm /opt/daskstack/installed")
    house.install(hand)
    assert hand.ssh(IMPORT).stdout == "honest\n"
    assert hand.run("ls /opt/daskstack/environment/corrected", check=False).returncode


def test_a_machine_that_cannot_import_a_package_fails_its_environment_whenever_the_step_runs(house: House) -> None:
    (house.folder / "environment.lock").write_text(
        wheel(house.folder / "wheels", "import ctypes\nctypes.CDLL('libmissing.so.1')\n")
    )
    house.send()
    told = {"CHECK": "import importlib, sys\nimportlib.import_module(sys.argv[1])", "IMPORTS": "tiny"}
    for _ in range(2):  # the second time, the packages are there already
        done = house.install(house.pair.hand, check=False, **told)
        assert done.returncode == 1
        assert "libmissing.so.1: cannot open shared object file" in done.stderr
    house.install(house.pair.hand, **told | {"IMPORTS": "json"})


def test_a_tampered_package_is_rejected_before_it_is_used(house: House) -> None:
    done = house.install(house.pair.hand, check=False, LOCK_SHA256="0" * 64)
    assert done.returncode == 1
    assert f"environment.lock from {house.pair.head.address} differs from the file that up copied there" in done.stderr
    assert house.pair.hand.run("findmnt /run/daskstack-files; ls -d /run/daskstack-files", check=False).stdout == ""


@pytest.mark.parametrize("lock", ["another hash", "no hash"])
def test_root_rejects_wheels_whose_hash_is_not_in_the_lock(house: House, lock: str) -> None:
    if lock == "no hash":
        (house.folder / "environment.lock").write_text("tiny==1.0\n")
    else:
        wheel(house.folder / "wheels", "value = 'evil!!'\n")
    house.send()
    done = house.install(house.pair.hand, check=False)
    assert done.returncode == 1
    assert "uv could not install the lock's packages" in done.stderr and "hash" in done.stderr.lower()
    assert house.pair.hand.ssh(IMPORT, check=False).returncode != 0


def test_root_never_builds_source_packages(house: House, tmp_path: Path) -> None:
    """Not even one that the lock names, because a build runs the package's code."""
    # The package contains its own build backend, so no index is needed.
    built = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    wheels = house.folder / "wheels"
    with tarfile.open(wheels / "source-1.0.tar.gz", "w:gz") as archive:
        for name, text in {"backend.py": OWNED, "pyproject.toml": built}.items():
            (tmp_path / name).write_text(text)
            archive.add(tmp_path / name, f"source-1.0/{name}")
    lock = house.folder / "environment.lock"
    lock.write_text(f"source==1.0 --hash=sha256:{send_environment.sha256(wheels / 'source-1.0.tar.gz')}\n")
    house.send()
    done = house.install(house.pair.head, check=False)
    assert done.returncode == 1
    assert "uv could not install the lock's packages" in done.stderr and "source" in done.stderr
    assert house.pair.head.run("ls /owned", check=False).returncode != 0


def test_a_strict_umask_does_not_lock_out_the_cluster_user(house: House) -> None:
    """A umask from hardening guides: other users cannot read files that root creates."""
    for machine in (house.pair.head, house.pair.hand):
        house.install(machine, before="umask 077\n")
        machine.ssh(f'sudo -u dask sh -c "{IMPORT}"')


@dataclass
class Private:
    """A package index that wants a password, has a certificate of its own authority, and is behind a proxy."""

    house: House
    authority: str
    proxy: str

    def install(self, password: str = private_index.PASSWORD, check: bool = True, **changes: str) -> str:
        """The messages of the step with this password."""
        variables = {"UV_DEFAULT_INDEX": private_index.url(password=password), "HTTPS_PROXY": self.proxy}
        variables |= dask_options.trusted(
            MachinesTarget.model_construct(environment=Environment(authority=self.authority))
        )
        given = {
            "SOURCE": "index",
            "UV_ENV": dask_options.exports(variables),
            "CERTIFICATES": self.authority,
            **changes,
        }
        done = self.house.install(self.house.pair.hand, check=check, **given)
        assert (done.returncode == 0) == check
        return done.stdout + done.stderr


@pytest.fixture
def private(house: House, stack: Stack, tmp_path: Path) -> Iterator[Private]:
    keys, wheels = tmp_path / "pki", tmp_path / "served"
    pki.make(keys, "", [private_index.HOST])
    pem = tmp_path / "pem"
    pem.write_text((keys / "server.crt").read_text() + (keys / "server.key").read_text())
    (house.folder / "wheels").rename(wheels)
    house.send()
    with private_index.running(wheels, pem, stack.gateway) as proxy:
        yield Private(house, (keys / "ca.crt").read_text(), proxy)


def test_machines_install_from_a_private_index_behind_a_proxy_and_keep_no_password(private: Private) -> None:
    hand = private.house.pair.hand
    with CommandLines() as seen:
        said = private.install()
    assert hand.ssh(IMPORT).stdout == "honest\n"
    traces = f"! grep -rlF {private_index.PASSWORD} / --exclude-dir=proc --exclude-dir=sys 2>/dev/null || exit 1\n"
    traces += f"journalctl --sync\n! journalctl -o json | grep -F {private_index.PASSWORD}"
    assert hand.run(traces).stdout == ""
    assert private_index.PASSWORD not in said + "".join(line for _, line in seen.lines)


@pytest.mark.parametrize(
    ("password", "changes", "text"),
    [
        ("wrong-word", {}, "the package index rejects the user name or the password; correct"),
        (
            private_index.PASSWORD,
            {"CERTIFICATES": ""},
            "an unknown authority signed the certificate of the package index",
        ),
    ],
)
def test_an_error_of_a_private_index_is_one_sentence_without_the_password(
    private: Private, password: str, changes: dict[str, str], text: str
) -> None:
    said = private.install(password, check=False, **changes)
    [error] = [line for line in said.splitlines() if line.startswith("error")]
    assert text in error
    assert password not in said and "cause" not in said
