"""Machines that somebody has already: a whole stack on them, from the first contact to its last trace."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from checkout import Checkout
from fleet import Machine, Stack, as_root, run
from snapshots import snapshot

from components.machines.dask_on_machines import STATES
from daskstack import engine
from on_this_computer import send_environment
from settings import HOST_KEY

pytestmark = pytest.mark.timeout(1800)
PORT = 2222
INDEX_PORT = 8080
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
def lan(make_stack: Callable[[str], Stack]) -> Stack:
    return make_stack("existing")


@pytest.fixture(scope="module")
def index(lan: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A package index that the machines reach: its URL."""
    root = tmp_path_factory.mktemp("index")
    for wheel in send_environment.collect(Path("environment.lock"), "3.11", "wheelhouse").glob("wheels/*.whl"):
        project = root / "simple" / wheel.name.split("-")[0].lower().replace("_", "-")
        project.mkdir(parents=True, exist_ok=True)
        (project / wheel.name).symlink_to(wheel)
    command = [sys.executable, "-m", "http.server", str(INDEX_PORT), "--bind", lan.gateway, "--directory", root]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://{lan.gateway}:{INDEX_PORT}/simple"
    finally:
        server.terminate()
        server.wait()


def prepare(machine: Machine, index: str) -> Machine:
    """Gives a machine an sshd of its own mind."""
    machine.run(
        f"echo Port {PORT} >/etc/ssh/sshd_config.d/10-own.conf\n"
        "echo PermitRootLogin prohibit-password >>/etc/ssh/sshd_config.d/10-own.conf\n"
        "install -D -m 0600 /etc/machine/authorized_keys.admin /root/.ssh/authorized_keys\n"
        f"mkdir /etc/uv && printf '[[index]]\\nurl = \"{index}\"\\ndefault = true\\n' >/etc/uv/uv.toml\n"
        "systemctl restart ssh"
    )
    return replace(machine, port=PORT)


@pytest.fixture(scope="module")
def place(lan: Stack, index: str, agent: str, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Three machines with an sshd of their own mind, one reached through a fourth, one as root; and a user's clone."""
    head, hand, spare, gate = lan.boot("head", "hand", "spare", "gate")
    machines = {machine.name: prepare(machine, index) for machine in (head, hand, spare)}
    before = {machine.name: snapshot(machine) for machine in machines.values()}

    checkout = Checkout(tmp_path_factory.mktemp("user"), "mine")
    checkout.environ["SSH_AUTH_SOCK"] = agent
    host = {"user": "admin", "port": PORT}
    root = {"user": "root", "port": PORT}
    cluster = {
        "target": "machines",
        "machines": {
            "source": "existing",
            "hosts": [
                {"name": "head", "address": head.address, **host},
                {"name": "hand", "address": hand.address, "bastion": "gate", **host},
                {"name": "spare", "address": spare.address, **root},
            ],
            "bastions": [{"name": "gate", "address": gate.address, "user": "admin", "hostKey": gate.host_key}],
            "schedulerWorks": True,
        },
        "firewall": {"ssh": [f"{lan.gateway}/32", f"{gate.address}/32"]},
    }
    checkout.pulumi("stack", "init")
    checkout.pulumi("config", "set", "--secret", "--path", "dask:secretEnv.TOKEN", TOKEN)
    place = SimpleNamespace(
        checkout=checkout, settings=cluster, cluster=cluster, machines=machines, gate=gate, before=before,
        sessions=len(sessions(machines["hand"])), first_up="", is_up_with=None,
    )  # fmt: skip
    return place


@pytest.fixture
def whole(place: SimpleNamespace, lan: Stack, index: str) -> SimpleNamespace:
    """A cluster of all three machines, the first of which is the scheduler's; some settings may be others than ours."""
    there = place.is_up_with or {}
    machines = there.get("machines", {})
    if len(machines.get("hosts", [])) == 3 and "scheduler" not in machines:
        place.cluster = {name: value for name, value in there.items() if name != "up"}
        return place
    if not place.machines["spare"].is_on():
        place.machines["spare"] = prepare(*lan.boot("spare"), index)
    place.cluster = {}
    # Neither moves back without the word.
    printed = up(place, **place.settings, **({"moves": ["scheduler", "data"]} if there else {}))
    place.cluster.pop("moves", None)
    place.is_up_with = dict(place.cluster)
    if not place.first_up:
        place.first_up = printed
        place.first_sessions = sessions(place.machines["hand"])[place.sessions :]
    return place


@pytest.fixture
def office(whole: SimpleNamespace) -> SimpleNamespace:
    """The same, with our settings."""
    whole.cluster = dict(whole.settings)
    if whole.is_up_with != whole.settings:
        up(whole)
    return whole


def up(office: SimpleNamespace, succeeds: bool = True, **changes) -> str:
    """Runs `make up` on the office's machines with these changes of the settings, which stay."""
    write(office, **changes)
    office.is_up_with = {**(office.is_up_with or office.settings), "up": "failed"}
    printed = office.checkout.make("up", succeeds=succeeds)
    if succeeds:
        office.is_up_with = dict(office.cluster)
    return printed


def write(office: SimpleNamespace, **changes) -> None:
    office.cluster |= changes
    path = office.checkout.file
    stack = yaml.safe_load(path.read_text())
    stack["config"]["dask:cluster"] = office.cluster
    path.write_text(yaml.safe_dump(stack))


def sessions(machine: Machine) -> list[str]:
    """Where each login of `up` came from, this look at it included."""
    look = "sudo journalctl --sync && sudo journalctl -o cat -t sshd -g 'Accepted publickey for admin'"
    logged = machine.ssh(look).stdout
    return re.findall(r"admin from (\S+)", logged)


def test_up_makes_a_checked_cluster_of_machines_that_are_there(office: SimpleNamespace) -> None:
    printed = office.first_up
    assert "workers      3 running" in printed, "the scheduler's machine works too"
    assert "right for 26 names" in printed
    for machine in office.machines.values():
        digest = subprocess.run(["ssh-keygen", "-lf", "-"], input=machine.host_key, capture_output=True, text=True)
        assert f"first contact: {machine.address} port {PORT} has the host key {digest.stdout.split()[1]}" in printed


def test_a_machine_behind_a_bastion_is_reached_through_it_alone(office: SimpleNamespace) -> None:
    *of_up, look = office.first_sessions
    assert set(of_up) == {office.gate.address} != {look}


def test_tasks_see_secret_variables_which_are_nowhere_else(office: SimpleNamespace) -> None:
    exported = office.checkout.pulumi("stack", "export")
    assert "swordfish" not in exported
    assert hashlib.sha256(TOKEN.encode()).hexdigest() not in exported
    for machine in office.machines.values():
        unit = "$(systemctl show -p MainPID --value dask-worker@1)"
        assert f"TOKEN={TOKEN}" in machine.run(f"cat /proc/{unit}/environ").stdout.split("\0")
        assert machine.run("stat -c %a:%U /etc/daskstack/secret.env").stdout == "600:root\n"
        found = machine.run("grep -rl swordfish /etc /var/lib /var/log /home /run/systemd || true").stdout
        assert found.split() == ["/etc/daskstack/secret.env"]


def test_the_key_that_the_agent_has_is_nowhere_in_the_state(office: SimpleNamespace, key: Path) -> None:
    """The client's own key is, which opens a tunnel and no session."""
    exported = office.checkout.pulumi("stack", "export", "--show-secrets")
    assert office.machines["head"].host_key in exported
    *_, secret, _end = key.read_text().splitlines()
    assert secret not in exported
    assert "privateKey" not in exported


def test_a_second_up_opens_no_ssh_session(office: SimpleNamespace) -> None:
    before = {name: len(sessions(machine)) for name, machine in office.machines.items()}
    assert re.search(r"Resources:\n +\d+ unchanged\n", up(office))
    assert {name: len(sessions(machine)) - 1 for name, machine in office.machines.items()} == before


def test_a_machine_that_was_made_anew_gets_all_its_steps_again(office: SimpleNamespace) -> None:
    """Its new host key, written into the settings, says so."""
    *others, spare = office.cluster["machines"]["hosts"]
    write(office, machines={**office.cluster["machines"], "hosts": [*others, {**spare, "hostKey": HOST_KEY}]})
    steps = json.loads(office.checkout.pulumi("preview", "--json"))["steps"]
    again = {step["urn"].rsplit("::", 1)[1] for step in steps if step["op"] == "update"}
    write(office, machines={**office.cluster["machines"], "hosts": [*others, spare]})
    assert {f"spare-{state}" for state in STATES if state != "authority"} <= again
    assert not [name for name in again if name.startswith(("head-", "hand-"))]


def test_a_changed_host_key_fails_with_both_fingerprints_and_what_to_do(office: SimpleNamespace) -> None:
    machine = office.machines["spare"]
    key = "/etc/ssh/ssh_host_ed25519_key"
    machine.run(
        f"cp -a {key} {key}.old && ssh-keygen -q -t ed25519 -N '' -f {key} <<<y >/dev/null && systemctl reload ssh"
    )
    try:
        printed = up(office, succeeds=False, credentials={"renewal": 2})
    finally:
        as_root(
            "nsenter",
            "--target",
            str(machine.pid),
            "--all",
            "bash",
            "-c",
            f"mv {key}.old {key} && systemctl reload ssh",
        )
    assert len(set(re.findall("SHA256:[A-Za-z0-9+/]{43}", printed))) == 2
    assert "give its new host key" in printed


def test_neither_scheduler_nor_data_moves_without_a_word_and_with_it_both_do_and_tls_can_be_off(
    whole: SimpleNamespace,
) -> None:
    office, elsewhere = whole, {**whole.settings["machines"], "scheduler": "hand"}
    before = {name: len(sessions(machine)) for name, machine in office.machines.items()}
    printed = up(office, succeeds=False, machines=elsewhere)
    assert "scheduler would move from head to hand: running work ends" in printed
    assert "data would move from head to hand: the files stay on the old machine's disk and are not copied" in printed
    assert "moves: [scheduler, data]" in printed
    assert "Traceback" not in printed
    assert {name: len(sessions(machine)) - 1 for name, machine in office.machines.items()} == before

    head, hand = office.machines["head"], office.machines["hand"]
    head.ssh("echo old >/srv/daskdata/old")
    printed = up(office, moves=["scheduler", "data"], dask={"tls": False})
    assert f"scheduler    tcp://{hand.address}:8786" in printed
    assert "workers      3 running" in printed
    assert "right for 26 names" in printed
    assert not re.search("^tls ", printed, re.MULTILINE)
    assert hand.ssh("ls /srv/daskdata").stdout == ""
    head.ssh("echo new >/srv/daskdata/new")
    assert hand.ssh("cat /srv/daskdata/new").stdout == "new\n"
    assert head.ssh("systemctl is-active dask-scheduler", check=False).stdout == "inactive\n"
    assert head.ssh("sudo ls -d /etc/daskstack/authority", check=False).returncode
    # Nobody needs a certificate now, and whoever is no machine of the cluster still gets in through SSH alone.
    program = "import daskstack; print(daskstack.connect('mine').submit(sum, [1, 2]).result(120))"
    environ = office.checkout.environ | engine.variables("mine", office.checkout.environ)
    run_there = {"cwd": office.checkout.folder, "env": environ, "seconds": 200}
    assert run([".venv/bin/python", "-c", program], **run_there).stdout == "3\n"
    ask = "import sys; from distributed import Client; print(Client(sys.argv[1]).submit(sum, [3, 4]).result(120))"
    python = f"cd / && sudo -u dask env -i /opt/daskstack/environment/bin/python -c {shlex.quote(ask)}"
    assert head.ssh(f"{python} tcp://{hand.address}:8786").stdout == "7\n"
    assert re.search(
        rf"^scheduler +tcp://{hand.address}:8786, 3 workers$", office.checkout.make("status"), re.MULTILINE
    )
    office.cluster.pop("moves")
    assert re.search(r"Resources:\n +\d+ unchanged\n", up(office)), "without the word they stay"


@pytest.fixture
def known(place: SimpleNamespace, request: pytest.FixtureRequest) -> SimpleNamespace:
    """A cluster that includes all three machines, with whatever settings."""
    there = (place.is_up_with or {}).get("machines", {})
    if len(there.get("hosts", [])) < 3:
        return request.getfixturevalue("whole")
    place.cluster = dict(place.is_up_with)
    place.cluster.pop("up", None)
    return place


def test_a_machine_that_is_gone_blocks_neither_up_nor_its_removal_nor_destroy(
    known: SimpleNamespace, lan: Stack
) -> None:
    office = known
    office.cluster.pop("dask", None)  # and all have certificates again
    lan.remove("spare")
    machines = office.cluster["machines"]
    *others, spare = machines["hosts"]
    printed = up(office, machines={**machines, "hosts": [*others, {**spare, "gone": True}]})
    assert "workers      2 running" in printed
    for machine in (office.machines["head"], office.machines["hand"]):
        assert spare["address"] not in machine.ssh("sudo cat /etc/firewalld/zones/dask.xml").stdout
    up(office, machines={**machines, "hosts": others})
    assert "spare" not in office.checkout.pulumi("stack", "export")


def test_destroy_leaves_machines_as_they_were_and_keeps_the_files(
    place: SimpleNamespace, request: pytest.FixtureRequest
) -> None:
    if not place.is_up_with:
        request.getfixturevalue("whole")
    head, hand = place.machines["head"], place.machines["hand"]
    head.ssh("echo mine >/srv/daskdata/mine")
    moved = "scheduler" in place.is_up_with["machines"]
    place.checkout.make("destroy")
    place.is_up_with = None
    assert (hand if moved else head).ssh("cat /srv/daskdata/mine").stdout == "mine\n", "the login user's own again"
    if moved:
        assert head.ssh("cat /srv/daskdata/old").stdout == "old\n"
    for machine in (head, hand):
        machine.ssh("rm -rf /srv/daskdata/* && sudo rmdir /srv/daskdata")
        assert snapshot(machine) ^ place.before[machine.name] == set()
