"""A stack on existing machines with Debian 13, from the first contact to `destroy`."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

from components.machines.machine import STATES
from daskstack import engine
from on_this_computer import send_environment
from rehearsal.kubernetes import pki
from rehearsal.machines import Machine, Stack, as_root, call, run
from settings import HOST_KEY
from settings.common import JUPYTER_LOCK
from settings.machines import LOCAL_RELEASES
from tests import private_index
from tests.checkout import Checkout
from tests.machines.snapshots import snapshot

pytestmark = pytest.mark.timeout(1800)
PORT = 2222
PYTHON = "3.13"  # Debian 13's
JANE = r"CORP\jane"  # a login as directories have it
TOKEN = 'swordfish\'s "$HOME" `id` \\ %h #1'


@pytest.fixture(scope="module")
def agent(key: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket of an SSH agent that has the login key."""
    socket = tmp_path_factory.mktemp("agent") / "socket"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            assert process.poll() is None
            time.sleep(0.02)
        subprocess.run(["ssh-add", "-q", key], env={**os.environ, "SSH_AUTH_SOCK": str(socket)}, check=True)
        yield str(socket)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def lan(make_stack: Callable[[str], Stack], image: str) -> Stack:
    stack = make_stack("existing")
    stack.image = call("image.sh", CACHE=str(Path(image).parents[1]), RELEASE=LOCAL_RELEASES[PYTHON])
    return stack


@pytest.fixture(scope="module")
def index(lan: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A package index with a password: the proxy through which the machines reach it, and its authority."""
    folder = tmp_path_factory.mktemp("index")
    locks = {"path": Path("environment.lock"), "jupyter": Path(JUPYTER_LOCK)}
    wheels = send_environment.collect(python=PYTHON, source="wheelhouse", **locks) / "wheels"
    pki.make(folder / "pki", "", [private_index.HOST])
    server, authority = folder / "server", (folder / "pki/ca.crt").read_text()
    server.write_text((folder / "pki/server.crt").read_text() + (folder / "pki/server.key").read_text())
    with private_index.running(wheels, server, lan.gateway) as proxy:
        yield proxy, authority


def prepare(machine: Machine) -> Machine:
    """Configures sshd as administrators do, and another port. The machine cannot resolve its own name."""
    sshd = f"""Port {PORT}
        PermitRootLogin prohibit-password
        AllowUsers admin root *jane
        AllowGroups admin root
        DisableForwarding yes
        AllowTcpForwarding no
        PubkeyAcceptedAlgorithms ssh-ed25519
        CASignatureAlgorithms rsa-sha2-512
        KbdInteractiveAuthentication yes
        AuthenticationMethods publickey,keyboard-interactive
        Match User admin,root,*jane
            AuthenticationMethods publickey
    """
    machine.run(
        f"echo {shlex.quote(sshd)} >/etc/ssh/sshd_config.d/90-own.conf\n"
        "install -D -m 0600 /etc/machine/authorized_keys.admin /root/.ssh/authorized_keys\n"
        f"echo '{JANE}:x:4000:'$(id -g admin)'::/home/jane:/bin/bash' >>/etc/passwd\n"
        f"echo '{JANE}:*:20000::::::' >>/etc/shadow; echo '#4000 ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/jane\n"
        "chmod 0440 /etc/sudoers.d/jane\n"
        "install -d -o 4000 /home/jane /home/jane/.ssh; cp /home/admin/.bashrc /home/jane\n"
        "install -o 4000 /etc/machine/authorized_keys.admin /home/jane/.ssh/authorized_keys\n"
        "sed -i 's/ myhostname//' /etc/nsswitch.conf; echo 'OMP_NUM_THREADS=7' >>/etc/environment\n"
        "systemctl restart ssh"
    )
    return replace(machine, port=PORT)


def add_network(lan: Stack, machines: Iterable[Machine]) -> dict[str, str]:
    """Connects the machines by a second bridge. Returns their addresses there; no default route leads to them."""
    ip = ["ip", "-n", lan.bridge, "link"]
    as_root(*ip, "add", "second", "type", "bridge")
    as_root(*ip, "set", "second", "up")
    addresses = {}
    for number, machine in enumerate(machines, 1):
        peer = ["peer", "name", "lan1", "netns", str(machine.pid)]
        as_root(*ip, "add", f"second{number}", "up", "master", "second", "type", "veth", *peer)
        address = addresses[machine.name] = f"172.29.7.{number}"
        machine.run(f"ip address add {address}/24 dev lan1; ip link set lan1 up")
    return addresses


class Office:
    """Three machines with sshd on another port, one behind a fourth, one with root as its login; and a user's clone."""

    def __init__(self, lan: Stack, index: tuple[str, str], agent: str, folder: Path) -> None:
        self.lan = lan
        head, hand, spare, self.gate = lan.boot("head", "hand", "spare", "gate")
        self.machines = {machine.name: prepare(machine) for machine in (head, hand, spare)}
        self.inside = add_network(lan, self.machines.values())
        self.before = {machine.name: snapshot(machine) for machine in self.machines.values()}
        self.checkout = Checkout(folder, "mine")
        self.checkout.environ["SSH_AUTH_SOCK"] = agent
        host, root = {"user": "admin", "port": PORT}, {"user": "root", "port": PORT}
        self.cluster = {
            "target": "machines",
            "machines": {
                "source": "existing",
                "hosts": [
                    {"name": "head", "address": head.address, **host},
                    {"name": "hand", "address": hand.address, "bastion": "gate", **host, "user": JANE},
                    {"name": "spare", "address": spare.address, **root},
                ],
                "bastions": [
                    {"name": "gate", "address": self.gate.address, "user": "admin", "hostKey": self.gate.host_key}
                ],
                "schedulerWorks": True,
            },
            "firewall": {"ssh": [f"{lan.gateway}/32", f"{self.gate.address}/32"]},
            "environment": {"python": PYTHON, "authority": index[1]},
            "dask": {"env": {"HTTPS_PROXY": index[0]}},
        }
        for each in self.cluster["machines"]["hosts"]:
            each["privateAddress"] = self.inside[each["name"]]
        self.checkout.pulumi("stack", "init")
        for name, value in {"TOKEN": TOKEN, "UV_DEFAULT_INDEX": private_index.url()}.items():
            self.checkout.pulumi("config", "set", "--secret", "--path", f"dask:secretEnv.{name}", value)

    def write(self, **changes: object) -> None:
        """Changes settings permanently."""
        self.cluster |= changes
        path = self.checkout.file
        stack = yaml.safe_load(path.read_text())
        stack["config"]["dask:cluster"] = self.cluster
        path.write_text(yaml.safe_dump(stack))

    def up(self, succeeds: bool = True, **changes: object) -> str:
        self.write(**changes)
        return self.checkout.make("up", succeeds=succeeds)

    def hosts(self, **last: object) -> dict[str, object]:
        """The settings of the machines with these changes to the last host, or without that host."""
        *others, spare = self.cluster["machines"]["hosts"]
        return {**self.cluster["machines"], "hosts": [*others, *([{**spare, **last}] if last else [])]}


def sessions(machine: Machine) -> list[str]:
    """The source address of each login of `up`, including the login that reads them."""
    look = "sudo journalctl --sync && sudo journalctl -o cat -t sshd -t sshd-session -g 'Accepted publickey for'"
    logged = machine.ssh(look).stdout
    return re.findall(r"for (?:admin|root|CORP\\+jane) from (\S+)", logged)


# The lifecycle of a stack on these machines. Each fixture is a stage: it follows the stage that it takes as an
# argument, and returns observations, so that tests can check them in any order.


@pytest.fixture(scope="module")
def office(lan: Stack, index: str, agent: str, tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(lan, index, agent, tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def made(office: Office) -> SimpleNamespace:
    hand = office.machines["hand"]
    before = len(sessions(hand))
    machines = office.machines.values()
    for machine in machines:  # login shells print this during `up`
        machine.run("sed -i '1i echo {welcome}' /home/{admin,jane}/.bashrc /root/.bashrc")
    seen = SimpleNamespace(printed=office.up())
    for machine in machines:
        machine.run("sed -i 1d /home/{admin,jane}/.bashrc /root/.bashrc")
    seen.sessions = sessions(hand)[before + 1 : -1]
    seen.state = office.checkout.pulumi("stack", "export")
    seen.revealed = office.checkout.pulumi("stack", "export", "--show-secrets")
    unit = "$(systemctl show -p MainPID --value dask-worker@1)"
    look = f"grep -rlE 'swordfish|{private_index.PASSWORD}' /etc /opt /var/lib /var/log /home /run/systemd || true"
    seen.environments = [machine.run(f"cat /proc/{unit}/environ").stdout.split("\0") for machine in machines]
    seen.modes = [machine.run("stat -c %a:%U /etc/daskstack/secret.env").stdout for machine in machines]
    seen.places = [machine.run(look).stdout.split() for machine in machines]
    return seen


@pytest.fixture(scope="module")
def preflight(made: SimpleNamespace, office: Office) -> list[str]:
    """The output of `daskstack preflight` on the running cluster, with and without a fault on one machine."""
    hand = office.machines["hand"]
    command = [".venv/bin/daskstack", "preflight", "--stack", "mine"]
    environ = office.checkout.environ

    def said() -> str:
        return run(command, cwd=office.checkout.folder, env=environ, seconds=300, together=True, check=False).stdout

    late = "printf '#!/bin/sh\\nexec /usr/bin/date --date=yesterday \"$@\"\\n' >/usr/local/bin/date"
    hand.run(f"{late}; chmod 0755 /usr/local/bin/date")
    try:
        bad = said()
    finally:
        hand.run("rm /usr/local/bin/date")
    return [bad, said()]


@pytest.fixture(scope="module")
def reinstalled_machine(preflight: list[str], made: SimpleNamespace, office: Office) -> set[str]:
    """The steps that `up` would run again if the last machine had a new host key in the settings."""
    settings = office.cluster["machines"]
    office.write(machines=office.hosts(hostKey=HOST_KEY))
    steps = json.loads(office.checkout.pulumi("preview", "--json"))["steps"]
    office.write(machines=settings)
    return {step["urn"].rsplit("::", 1)[1] for step in steps if step["op"] == "update"}


@pytest.fixture(scope="module")
def changed_key(reinstalled_machine: set[str], office: Office) -> str:
    """The output of `up` if the last machine has a new host key that the settings do not contain."""
    machine, keys = office.machines["spare"], "/etc/ssh/ssh_host_ed25519_key{,.pub}"
    machine.run(
        f"mkdir /root/kept && mv {keys} /root/kept && ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key\n"
        "systemctl restart ssh"
    )
    try:
        return office.up(succeeds=False, credentials={"renewal": 2})
    finally:
        back = "mv /root/kept/* /etc/ssh && rmdir /root/kept && systemctl restart ssh"
        as_root("nsenter", "--target", str(machine.pid), "--all", "bash", "-c", back)


@pytest.fixture(scope="module")
def moved(changed_key: str, office: Office) -> SimpleNamespace:
    """Scheduler and data move to another machine, as `moves` allows, and TLS is disabled."""
    head, hand = office.machines["head"], office.machines["hand"]
    seen = SimpleNamespace(before={name: len(sessions(machine)) for name, machine in office.machines.items()})
    seen.refusal = office.up(succeeds=False, machines={**office.cluster["machines"], "scheduler": "hand"})
    seen.after_refusal = {name: len(sessions(machine)) - 1 for name, machine in office.machines.items()}
    head.ssh("echo old >/srv/daskdata/old")
    seen.printed = office.up(moves=["scheduler", "data"], dask={**office.cluster["dask"], "tls": False})
    seen.files = hand.ssh("sudo ls /srv/daskdata").stdout
    head.ssh("echo new >/srv/daskdata/new")
    seen.new = hand.ssh("sudo cat /srv/daskdata/new").stdout
    seen.former_scheduler = head.ssh("systemctl is-active dask-scheduler", check=False).stdout
    seen.former_authority = head.ssh("sudo ls -d /etc/daskstack/authority", check=False).returncode
    ask = "systemctl is-active dask-jupyter"
    seen.notebook_servers = [machine.ssh(ask, check=False).stdout for machine in (head, hand)]
    # This computer's Python differs from the machines'. `sum` is the same in both.
    program = (
        "import daskstack.connection; daskstack.connection.differences = lambda *versions: []\n"
        "print(daskstack.connect('mine').submit(sum, [1, 2]).result(120))"
    )
    environ = office.checkout.environ | engine.variables("mine", office.checkout.environ)
    run_there = {"cwd": office.checkout.folder, "env": environ, "seconds": 200}
    seen.connected = run([".venv/bin/python", "-c", program], **run_there).stdout
    ask = "import sys; from distributed import Client; print(Client(sys.argv[1]).submit(sum, [3, 4]).result(120))"
    python = f"cd / && sudo -u dask env -i /opt/daskstack/environment/bin/python -c {shlex.quote(ask)}"
    seen.within = head.ssh(f"{python} tcp://{office.inside['hand']}:8786").stdout
    seen.listening = hand.ssh("ss -Hltn | awk '{ print $4 }' | grep -E ':(8786|8787|9000|9001|9002)$'").stdout.split()
    seen.status = office.checkout.make("status")
    office.cluster.pop("moves")
    seen.before_second_up = {name: len(sessions(machine)) for name, machine in office.machines.items()}
    seen.second_up = office.up()
    seen.after_second_up = {name: len(sessions(machine)) - 1 for name, machine in office.machines.items()}
    return seen


@pytest.fixture(scope="module")
def lost(moved: SimpleNamespace, office: Office) -> SimpleNamespace:
    """The last machine is marked gone, then removed from the settings; TLS is enabled again."""
    office.cluster["dask"].pop("tls")
    office.lan.remove("spare")
    seen = SimpleNamespace(printed=office.up(machines=office.hosts(gone=True)))
    zone = "sudo cat /etc/firewalld/zones/dask.xml"
    seen.zones = [office.machines[name].ssh(zone).stdout for name in ("head", "hand")]
    office.up(machines=office.hosts())
    seen.state = office.checkout.pulumi("stack", "export")
    return seen


@pytest.fixture(scope="module")
def destroyed(lost: SimpleNamespace, office: Office) -> SimpleNamespace:
    head, hand = office.machines["head"], office.machines["hand"]
    head.ssh("echo mine >/srv/daskdata/mine")
    office.checkout.make("destroy")
    mine = hand.ssh("sudo -u '#4000' cat /srv/daskdata/mine").stdout
    seen = SimpleNamespace(mine=mine, old=head.ssh("cat /srv/daskdata/old").stdout)
    for machine in (head, hand):
        machine.ssh("sudo rm -r /srv/daskdata")
    seen.left = [snapshot(machine) ^ office.before[machine.name] for machine in (head, hand)]
    return seen


def test_up_builds_and_checks_a_cluster_on_existing_machines(office: Office, made: SimpleNamespace) -> None:
    """Their sshd is hardened, and their login shells print a greeting."""
    assert "workers      3 running" in made.printed, "the scheduler's machine works too"
    assert "correct for 26 names" in made.printed
    assert "OMP_NUM_THREADS=7" not in "".join(map("".join, made.environments)), "that is for logins"
    for machine in office.machines.values():
        digest = subprocess.run(["ssh-keygen", "-lf", "-"], input=machine.host_key, capture_output=True, text=True)
        first_contact = f"first contact: {machine.address} port {PORT} has the host key {digest.stdout.split()[1]}"
        assert first_contact in made.printed


def test_preflight_asks_the_machines_of_a_running_cluster_again(preflight: list[str]) -> None:
    bad, good = preflight
    assert re.search(r"hand \(\S+\):\n\s*- the clock differs from your computer's by 86\d+ seconds", bad)
    assert "these 1 of 3 machines cannot join the cluster" in bad
    assert "replaced" in good and "error" not in good


def test_a_worker_may_use_all_memory_of_its_machine(moved: SimpleNamespace) -> None:
    whole = psutil.virtual_memory().total / 2**30  # these machines see all memory of this computer
    assert set(re.findall(r"of (\S+) GiB", moved.status)) == {f"{whole:.1f}"}


def test_a_machine_behind_a_bastion_is_reached_only_through_it(office: Office, made: SimpleNamespace) -> None:
    *of_up, look = made.sessions
    assert set(of_up) == {office.gate.address} != {look}


def test_secret_variables_are_visible_to_tasks_and_nowhere_else(made: SimpleNamespace) -> None:
    assert "swordfish" not in made.state
    assert hashlib.sha256(TOKEN.encode()).hexdigest() not in made.state
    assert [f"TOKEN={TOKEN}" in environment for environment in made.environments] == [True] * 3
    assert made.modes == ["600:root\n"] * 3
    assert made.places == [["/etc/daskstack/secret.env"]] * 3


def test_the_password_of_a_package_index_is_in_no_output_state_or_task(made: SimpleNamespace) -> None:
    assert private_index.PASSWORD in made.revealed
    shown = made.printed + made.state + "".join(map("".join, made.environments))
    assert private_index.PASSWORD not in shown
    assert all("HTTPS_PROXY=" in "\n".join(environment) for environment in made.environments)


def test_the_agents_key_is_not_in_the_state(office: Office, made: SimpleNamespace, key: Path) -> None:
    """Only the client's own key is in the state; it can open a tunnel but no session."""
    assert office.machines["head"].host_key in made.revealed
    *_, secret, _end = key.read_text().splitlines()
    assert secret not in made.revealed
    assert "privateKey" not in made.revealed


def test_a_reinstalled_machine_gets_all_steps_again(reinstalled_machine: set[str]) -> None:
    assert {
        f"dask-spare-{state}" for state in STATES if state not in ("authority", "jupyter", "jobs")
    } <= reinstalled_machine
    assert not [name for name in reinstalled_machine if name.startswith(("dask-head-", "dask-hand-"))]


def test_a_changed_host_key_fails_with_both_fingerprints_and_a_remedy(changed_key: str) -> None:
    assert len(set(re.findall("SHA256:[A-Za-z0-9+/]{43}", changed_key))) == 2
    assert "set its new host key" in changed_key


def test_scheduler_and_data_do_not_move_unless_moves_allows_it(moved: SimpleNamespace) -> None:
    said = moved.refusal
    assert "scheduler would move from head to hand: running work ends" in said
    assert "data would move from head to hand: the files stay on the old machine's disk and are not copied" in said
    assert "moves: [scheduler, data]" in said
    assert "Traceback" not in said
    assert moved.after_refusal == moved.before


def test_scheduler_and_data_move_if_moves_allows_it(office: Office, moved: SimpleNamespace) -> None:
    assert f"scheduler    tcp://{office.inside['hand']}:8786" in moved.printed
    assert "workers      3 running" in moved.printed
    assert "correct for 26 names" in moved.printed
    assert moved.files == "notebooks\n"
    assert moved.new == "new\n"
    assert moved.former_scheduler == "inactive\n"
    assert moved.former_authority
    assert moved.notebook_servers == ["inactive\n", "active\n"]


def test_without_tls_clients_need_no_certificate(office: Office, moved: SimpleNamespace) -> None:
    """Hosts outside of the cluster can still reach only SSH."""
    assert not re.search("^tls ", moved.printed, re.MULTILINE)
    assert moved.connected == "3\n"
    assert moved.within == "7\n"
    scheduler = f"tcp://{office.inside['hand']}:8786"
    assert re.search(rf"^scheduler +{scheduler}, 3 workers$", moved.status, re.MULTILINE)


def test_dask_listens_only_in_the_clusters_network(office: Office, moved: SimpleNamespace) -> None:
    """It is not the network of the default route, nor the one in which `up` connects."""
    assert len(moved.listening) == 5
    assert {each.rpartition(":")[0] for each in moved.listening} == {office.inside["hand"]}


def test_a_second_up_after_a_move_opens_no_ssh_session_and_changes_nothing(moved: SimpleNamespace) -> None:
    assert re.search(r"Resources:\n +\d+ unchanged\n", moved.second_up)
    assert moved.after_second_up == moved.before_second_up


def test_a_machine_marked_gone_does_not_block_up_or_destroy(
    office: Office, lost: SimpleNamespace, destroyed: SimpleNamespace
) -> None:
    assert "workers      2 running" in lost.printed
    assert [office.inside["spare"] in zone for zone in lost.zones] == [False, False]
    assert "spare" not in lost.state


def test_destroy_restores_machines_and_keeps_data_files(destroyed: SimpleNamespace) -> None:
    assert (destroyed.mine, destroyed.old) == ("mine\n", "old\n"), "the login user's own again"
    assert destroyed.left == [set(), set()]
