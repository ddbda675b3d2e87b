"""The firewall step on machines that are already in use: it closes ports without locking anyone out by surprise."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO

import pytest

from daskstack.engine import PROJECT
from on_this_computer import confirm_ssh_access
from rehearsal.machines import Machine, Stack, until
from tests.outside import Outside
from tests.scripts import script

# All state that the step can change, with every relevant attribute.
STATE = r"""
systemctl is-enabled firewalld; systemctl is-active firewalld
nft -s list ruleset
find /etc/firewalld /var/lib/daskstack /run/daskstack-firewall* -printf '%p %m %u %l\n' -type f -exec md5sum {} + \
  2>/dev/null | sort
systemctl list-units --all --no-legend 'daskstack*'
true
"""
RESTORE = r"""
systemctl stop 'listen-*' 2>/dev/null
systemctl disable --now firewalld nftables 2>/dev/null
nft flush ruleset
rm -rf /etc/ufw /etc/firewalld /run/daskstack-unfinished
cp -a /root/firewalld /etc/firewalld
"""
LOCAL = "nft add table inet mine; nft add chain inet mine in '{ type filter hook input priority 0; }'\n"


class Guest:
    """A machine with a firewall step."""

    def __init__(self, machine: Machine, network: str) -> None:
        self.machine, self.network = machine, network

    def text(self, **more: str) -> str:
        variables = {
            "IDENTITY": self.machine.id, "NETWORK": self.network, "SSH_PORT": "22", "SSH_SOURCES": "", "OPEN": "",
            "PORTS": "8786 8787 9000-9002", "LIBRARY_PORTS": "", "CLOSE_OTHERS": "no", "MANAGE": "yes",
        }  # fmt: skip
        return script("firewall", variables | more)

    def apply(self, **more: str) -> str:
        """Runs and confirms the step, and returns its messages."""
        said = self.machine.run(self.text(**more)).stderr
        self.machine.run(self.text(**more), {}, "confirm")
        return said

    def refuses(self, **more: str) -> str:
        """Runs the step, which must fail and change nothing, and returns the reason."""
        before = self.state()
        done = self.machine.run(self.text(**more), check=False)
        assert done.returncode == 1, done.stderr
        assert self.state() == before
        return done.stderr

    def undo(self) -> None:
        self.machine.run(self.text(), {}, "undo")

    def state(self) -> str:
        return self.machine.run(STATE).stdout


@pytest.fixture(scope="module")
def pair(boot: Callable[..., list[Machine]], stack: Stack) -> tuple[Guest, Guest]:
    one, other = (Guest(machine, stack.network) for machine in boot("guest", "beside"))
    for each in (one, other):
        each.machine.run("cp -a /etc/firewalld /root/firewalld")
    return one, other


@pytest.fixture
def guest(pair: tuple[Guest, Guest]) -> Iterator[Guest]:
    """A machine without a firewall, which is reset after the test."""
    yield pair[0]
    pair[0].undo()
    pair[0].machine.run(RESTORE)


def listens(machine: Machine, port: int, address: str = "0.0.0.0") -> None:
    """Starts a program that listens on the port."""
    machine.run(
        f"systemd-run -q -u listen-{port} python3 -m http.server {port} --bind {address} 2>/dev/null || true\n"
        f"for _ in $(seq 600); do (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null && exit; sleep 0.1; done\n"
        "exit 1"
    )


def listens_udp(machine: Machine, port: int) -> None:
    code = f"import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', {port})); time.sleep(600)"
    machine.run(
        f'systemd-run -q -u listen-udp-{port} python3 -c "{code}"\n'
        f"for _ in $(seq 600); do ss -Hlnu sport = :{port} | grep -q . && exit; sleep 0.1; done\nexit 1"
    )


def inside_connects(one: Machine, other: Machine, port: int) -> bool:
    return one.ssh(f"timeout 20 bash -c 'exec 3<>/dev/tcp/{other.address}/{port}'", check=False).returncode == 0


def gateway(guest: Guest) -> str:
    """This computer's address as the machine sees it."""
    return guest.network.replace(".0/24", ".1")


# Open ports


def test_only_the_cluster_reaches_dask_and_only_listed_networks_reach_ssh(
    guest: Guest, pair: tuple[Guest, Guest], outside: Outside
) -> None:
    head, hand = guest.machine, pair[1].machine
    for port in (8786, 9000, 9100, 9200):
        listens(head, port)
    assert outside.connects(head, 9200), "the way from outside must work for the test to mean something"
    guest.apply(CLOSE_OTHERS="yes")
    for machine in (head, hand):
        for port in (22, 8786, 9000):
            assert inside_connects(machine, head, port), f"{machine.name} to port {port}"
    assert not inside_connects(hand, head, 9200)
    for port in (22, 8786, 9000, 9100, 9200):
        assert not outside.connects(head, port), port

    guest.apply(SSH_SOURCES="198.51.100.0/24", OPEN="9100=198.51.100.1/32 9200=203.0.113.0/24")
    assert [port for port in (22, 8786, 9000, 9100, 9200) if outside.connects(head, port)] == [22, 9100]
    assert not inside_connects(hand, head, 9100)


def test_a_port_can_be_opened_to_a_machine_of_the_clusters_network(guest: Guest, pair: tuple[Guest, Guest]) -> None:
    head, hand = guest.machine, pair[1].machine
    for port in (9100, 9200):
        listens(head, port)
    guest.apply(CLOSE_OTHERS="yes", OPEN=f"9100={hand.address}/32")
    assert [port for port in (9100, 9200) if inside_connects(hand, head, port)] == [9100]


def test_the_firewall_holds_after_a_reboot(
    guest: Guest, pair: tuple[Guest, Guest], outside: Outside, stack: Stack
) -> None:
    guest.apply()
    guest.machine.reboot()
    stack.boot("guest")
    for port in (8786, 9200):
        listens(guest.machine, port)
    assert inside_connects(pair[1].machine, guest.machine, 8786)
    assert not inside_connects(pair[1].machine, guest.machine, 9200)
    assert not outside.connects(guest.machine, 22)
    assert not outside.connects(guest.machine, 8786)


# Other firewalls


@pytest.mark.parametrize(
    ("made_by", "named"),
    [
        ("mkdir -p /etc/ufw; echo ENABLED=yes >/etc/ufw/ufw.conf", "ufw is active; turn it off: ufw disable"),
        (
            "nft add table ip filter; nft add chain ip filter ufw-user-input; nft add chain ip filter INPUT"
            " '{ type filter hook input priority 0; policy drop; }'; nft add rule ip filter INPUT accept",
            "nftables table ip filter has rules of ufw",
        ),
        (
            "nft add table ip filter; nft add chain ip filter FORWARD '{ type filter hook forward priority 0; }';"
            " nft add chain ip filter DOCKER-USER; nft add rule ip filter FORWARD jump DOCKER-USER;"
            " nft add rule ip filter DOCKER-USER iifname br-1 drop",
            "nftables table ip filter has rules of Docker",
        ),
        (LOCAL + "nft add rule inet mine in tcp dport 23 reject", "nftables table inet mine has rules"),
        ("systemctl -q enable nftables", "turn it off: systemctl disable --now nftables"),
    ],
    ids=["ufw", "ufw's rules", "Docker", "nftables", "nftables.service"],
)  # fmt: skip
def test_with_another_firewall_the_step_changes_nothing_and_says_what_to_do(
    guest: Guest, made_by: str, named: str
) -> None:
    guest.machine.run(made_by)
    reason = guest.refuses(SSH_SOURCES="203.0.113.7/32")
    assert named in reason
    assert "firewall: {manage: false}" in reason
    assert f"TCP 22 8786 8787 9000-9002 to {guest.network}; 22 to 203.0.113.7/32" in reason


def test_rules_that_reject_nothing_do_not_count_as_a_firewall(guest: Guest) -> None:
    nat = "nft add table ip nat; nft add chain ip nat PREROUTING '{ type nat hook prerouting priority 0; }'"
    banned = "nft add chain inet mine f2b-sshd; nft add rule inet mine f2b-sshd ip saddr 192.0.2.1 reject"
    guest.machine.run(f"{nat}; nft add table ip filter\n{LOCAL}{banned}")
    guest.apply()


def test_with_manage_false_the_step_changes_nothing_and_lists_the_required_ports(guest: Guest) -> None:
    accepts = "nft add rule inet mine in tcp dport { 22, 9000-9010 } accept\n"
    guest.machine.run(LOCAL + accepts + "nft add rule inet mine in drop")
    before = guest.state()
    said = guest.machine.run(guest.text(MANAGE="no")).stderr
    assert f"they must accept TCP 22 8786 8787 9000-9002 to {guest.network}" in said
    assert "found no rule that accepts TCP 8786 8787" in said
    guest.machine.run(guest.text(MANAGE="no"), {}, "undo")
    assert guest.state() == before


def test_switching_to_manage_false_restores_the_former_firewall(guest: Guest) -> None:
    before = guest.state()
    guest.apply()
    assert guest.machine.run(guest.text(MANAGE="no")).stderr == ""
    assert guest.state() == before


# Other services


def test_the_step_fails_if_it_would_close_a_service_and_shows_the_setting_that_opens_it(guest: Guest) -> None:
    for port in (9200, 9300, 9001):
        listens(guest.machine, port)
    listens(guest.machine, 9400, address="127.0.0.1")
    for port in (53, 68, 45000):
        listens_udp(guest.machine, port)
    reason = guest.refuses(OPEN="9300=203.0.113.0/24")
    assert "  53/udp  python3\n  9200/tcp  python3\n" in reason
    assert "firewall: {open: [{port: 9200, sources: [203.0.113.0/24]}]}" in reason
    assert "firewall: {closeOthers: true}" in reason
    assert not [port for port in ("9300/", "9001/", "9400/", "68/", "45000/", "22/") if f"  {port}" in reason]

    said = guest.apply(OPEN="9300=203.0.113.0/24", CLOSE_OTHERS="yes")
    assert "  9200/tcp  python3\n" in said
    # The settings now define the open ports, so the step does not ask again.
    assert guest.apply() == ""


def test_services_that_firewalld_already_blocks_do_not_fail_the_step(guest: Guest) -> None:
    guest.machine.run("firewall-offline-cmd -q --add-port=9200/tcp; systemctl start firewalld")
    for port in (9200, 9300):
        listens(guest.machine, port)
    reason = guest.refuses()
    assert "  9200/tcp  python3\n" in reason
    assert "9300" not in reason


# Access


def test_the_step_fails_before_it_would_shut_out_your_address(guest: Guest) -> None:
    here = gateway(guest)
    assert f"firewall: {{ssh: [{here}/32]}}" in guest.refuses(NETWORK="192.0.2.0/24")
    guest.apply(NETWORK="192.0.2.0/24", SSH_SOURCES=f"{here}/32")


def test_the_step_fails_before_it_would_close_the_ssh_port_in_use(guest: Guest) -> None:
    assert "this connection uses port 22" in guest.refuses(SSH_PORT="2222")


ROLLBACK = "daskstack-firewall-rollback"


def minute_passes(guest: Guest) -> None:
    """Triggers the rollback of an unconfirmed change, which its timer would start after a minute."""
    set_to = guest.machine.run(f"systemctl show -P TimersMonotonic -P Unit {ROLLBACK}.timer").stdout
    assert "OnActiveUSec=1min " in set_to and f"{ROLLBACK}.service" in set_to
    guest.machine.run(f"systemctl start {ROLLBACK}.service; systemctl stop {ROLLBACK}.timer")
    until(lambda: guest.machine.run("ls /run/daskstack-firewall.sh", check=False).returncode != 0)


def test_an_unconfirmed_change_is_rolled_back(guest: Guest, outside: Outside) -> None:
    before = guest.state()
    guest.machine.run(guest.text())
    minute_passes(guest)
    assert guest.state() == before
    assert guest.machine.run(guest.text(), {}, "confirm", check=False).returncode == 3

    guest.apply(SSH_SOURCES="198.51.100.0/24")
    before = guest.state()
    guest.machine.run(guest.text())
    assert not outside.connects(guest.machine, 22)
    minute_passes(guest)
    assert outside.connects(guest.machine, 22)
    assert guest.state() == before


def test_a_failing_step_rolls_its_change_back_immediately(guest: Guest) -> None:
    guest.machine.run("firewall-offline-cmd -q --zone=trusted --add-interface=host0")
    assert "host0 (zone trusted)" in guest.refuses()


def prove(guest: Guest, **more: str) -> subprocess.CompletedProcess[str]:
    machine = guest.machine
    connection = {
        "host": machine.address, "user": "admin", "host_key": machine.host_key, "private_key": machine.key.read_text(),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "on_this_computer.confirm_ssh_access"],
        cwd=PROJECT,
        env=os.environ | {"CONNECTION": json.dumps(connection | more), "COMMAND": "sudo -n bash -s"},
        input=guest.text(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_new_connection_confirms_the_change_or_applies_it_again(guest: Guest) -> None:
    guest.machine.run(guest.text())
    assert prove(guest).returncode == 0
    kept = guest.state()
    assert "rollback" not in kept

    guest.undo()
    assert prove(guest).returncode == 0
    assert guest.state() == kept


def test_up_fails_if_a_machine_accepts_no_new_connection(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = {"host": guest.machine.address, "port": 23, "user": "admin", "host_key": guest.machine.host_key}
    monkeypatch.setenv("CONNECTION", json.dumps(closed))
    monkeypatch.setenv("COMMAND", "bash -s")
    monkeypatch.setattr("sys.stdin", StringIO(guest.text()))
    monkeypatch.setattr(confirm_ssh_access, "WAIT", 1)
    with pytest.raises(SystemExit, match=r"a new SSH connection to .* failed .* rolls back"):
        confirm_ssh_access.main()


# An existing firewalld


def test_an_existing_firewalld_keeps_its_settings_and_undo_restores_the_rest(guest: Guest) -> None:
    guest.machine.run(
        "firewall-offline-cmd -q --set-default-zone=work; firewall-offline-cmd -q --zone=work --add-service=http\n"
        "firewall-offline-cmd -q --zone=internal --add-source=192.0.2.0/24; systemctl -q enable --now firewalld"
    )
    before = guest.state()
    guest.apply()
    zones = guest.machine.run("firewall-cmd --get-active-zones; cd /etc/firewalld; ls zones").stdout
    assert "internal\n  sources: 192.0.2.0/24" in zones
    assert "work.xml" in zones
    guest.undo()
    assert guest.state() == before
    guest.undo()
    assert guest.state() == before


@pytest.mark.parametrize(
    ("made_by", "named"),
    [
        ("firewall-cmd -q --add-port=9300/tcp", "firewall-cmd --runtime-to-permanent"),
        ("firewall-cmd -q --zone=trusted --change-interface=host0", "host0 (zone trusted)"),
        (
            "firewall-cmd -q --permanent --zone=internal --add-source=NETWORK; firewall-cmd -q --reload",
            "already has sources in the cluster's network",
        ),
    ],
    ids=["not permanent", "interface", "source"],
)
def test_a_firewalld_that_would_override_the_rules_is_left_unchanged(guest: Guest, made_by: str, named: str) -> None:
    guest.machine.run("systemctl start firewalld\n" + made_by.replace("NETWORK", guest.network))
    assert named in guest.refuses()


def test_undo_works_after_firewalld_was_removed(guest: Guest) -> None:
    guest.apply()
    program, unit = "/usr/bin/firewall-cmd", "/usr/lib/systemd/system/firewalld.service"
    guest.machine.run("systemctl -q disable --now firewalld")
    guest.machine.run(f"mv {program} {program}.away; mv {unit} {unit}.away; systemctl daemon-reload")
    try:
        guest.undo()
    finally:
        guest.machine.run(f"mv {program}.away {program}; mv {unit}.away {unit}; systemctl daemon-reload")
    assert guest.machine.run("ls -A /etc/firewalld/zones /var/lib/daskstack 2>/dev/null; true").stdout == (
        "/etc/firewalld/zones:\n"
    )
