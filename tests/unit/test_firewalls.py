"""The firewall step's readers of other programs' output, called with output of the programs themselves.

The files in tests/unit/firewalls were printed on Debian 12 by nftables 1.0.6, iptables 1.8.9, firewalld 1.3.3, ufw
0.36.2 and iproute2 6.1 in a network namespace. Those of ufw and firewalld.nft have fewer chains and zones than printed.
The rules of Docker, libvirt and fail2ban were loaded by hand from their documentation.
"""

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from on_this_computer.send_scripts import STEPS

FIREWALLS = Path(__file__).parent / "firewalls"
# The programs that the readers start. A test defines those that print something again.
NOTHING = """
fatal() { echo "$*"; exit 1; }
systemctl() { return 1; }
nft() { :; }
iptables-legacy-save() { return 1; }
ip6tables-legacy-save() { return 1; }
"""


def call(command: str, programs: str = "", folder: Path = Path("/nonexistent"), **options) -> str:
    """Prints of a function of the firewall step, with settings of firewalld and ufw in `folder`."""
    text = "\n".join((STEPS / f"firewall/{name}.sh").read_text() for name in ("read", "check", "apply"))
    assert "/etc/ufw/" in text and "/proc/sys/net/ipv4/ip_local_port_range" in text
    text = text.replace("/etc/ufw/", f"{folder}/").replace("/proc/sys/net/ipv4/ip_local_port_range", f"{folder}/ports")
    script = f"set -euo pipefail\nCONF={folder}/firewalld.conf UNMANAGED=\n{text}\n{NOTHING}\n{programs}\n{command}\n"
    return subprocess.run(["bash"], input=script, stdout=subprocess.PIPE, text=True, check=True, **options).stdout


def prints(*files: str) -> str:
    """A command that prints these files, whatever its arguments."""
    return f"cat {shlex.join(str(FIREWALLS / file) for file in files)}"


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("nftables", ["nftables table inet filter has rules"]),
        ("iptables", ["nftables table ip filter has rules"]),
        ("docker", ["nftables table ip filter has rules of Docker"]),
        ("ufw", ["nftables table ip filter has rules of ufw", "nftables table ip6 filter has rules of ufw"]),
        ("firewalld", []),
        ("masquerade", []),
        ("fail2ban-iptables", []),
        ("fail2ban-nftables", []),
    ],
)
def test_tables_that_reject_packets_are_other_firewalls(file: str, found: list[str]) -> None:
    assert call("other_firewalls", f"nft() {{ {prints(f'{file}.nft')}; }}").splitlines() == found


def test_each_of_several_firewalls_is_listed() -> None:
    nft = f"nft() {{ {prints('firewalld.nft', 'nftables.nft', 'masquerade.nft', 'docker.nft')}; }}"
    expected = ["nftables table inet filter has rules", "nftables table ip filter has rules of Docker"]
    assert call("other_firewalls", nft).splitlines() == expected


@pytest.mark.parametrize(("file", "found"), [("legacy", ["iptables (legacy) has rules"]), ("legacy-fail2ban", [])])
@pytest.mark.parametrize("family", ["iptables", "ip6tables"])
def test_legacy_rules_that_reject_packets_are_another_firewall(file: str, found: list[str], family: str) -> None:
    programs = "iptables-legacy-save() { :; }\nip6tables-legacy-save() { :; }\n"
    programs += f"{family}-legacy-save() {{ {prints(f'{file}.save')}; }}"
    assert call("other_firewalls", programs).splitlines() == found


@pytest.mark.parametrize(("enabled", "found"), [("yes", ["ufw is active; turn it off: ufw disable"]), ("no", [])])
def test_ufw_is_another_firewall_while_it_is_enabled(enabled: str, found: list[str], tmp_path: Path) -> None:
    tmp_path.joinpath("ufw.conf").write_text(f"# ENABLED=yes\nENABLED={enabled}\nLOGLEVEL=low\n")
    assert call("other_firewalls", folder=tmp_path).splitlines() == found


@pytest.mark.parametrize("word", ["is-enabled", "is-active"])
def test_services_that_load_rules_are_other_firewalls(word: str) -> None:
    systemctl = f'systemctl() {{ [ "$2 $3" = "{word} nftables" ]; }}'
    expected = ["nftables.service loads rules; turn it off: systemctl disable --now nftables"]
    assert call("other_firewalls", systemctl).splitlines() == expected


@pytest.mark.parametrize(
    ("file", "protocol", "ports"),
    [
        ("nftables", "tcp", ["22", "80", "443", "8000-8010", "8786"]),
        ("nftables", "udp", ["53", "123"]),
        ("ufw", "tcp", ["22", "8786", "22"]),
        ("firewalld", "tcp", ["22", "9100", "5000-5010", "8786"]),
        ("firewalld", "udp", ["546", "514"]),
        ("fail2ban-nftables", "tcp", []),
    ],
)
def test_open_ports_are_those_that_rules_accept(file: str, protocol: str, ports: list[str]) -> None:
    assert call(f"open_ports {protocol} ruleset", f"nft() {{ {prints(f'{file}.nft')}; }}").splitlines() == ports


PORT = st.integers(0, 65535)
RANGE = st.tuples(PORT, PORT).map(lambda ports: tuple(sorted(ports)))


def words(ranges: list[tuple[int, int]]) -> list[str]:
    return [str(first) if first == last else f"{first}-{last}" for first, last in ranges]


@given(st.lists(RANGE | PORT.map(lambda port: (port, port)), min_size=1, max_size=6), st.lists(RANGE, max_size=3))
@settings(max_examples=10)
def test_any_set_of_accepted_ports_is_read_as_nft_prints_it(
    accepted: list[tuple[int, int]], dropped: list[tuple[int, int]]
) -> None:
    listed = ", ".join(words(accepted))
    one = [f"tcp dport {{ {listed} }} accept" if len(accepted) > 1 else f"tcp dport {listed} counter accept"]
    rules = one + [f"tcp dport {word} drop" for word in words(dropped)] + ["udp dport { 1, 2 } accept"]
    chain = "\n".join(f"\t\t{rule}" for rule in rules)
    nft = f"nft() {{ cat <<'END'\ntable inet filter {{\n\tchain input {{\n{chain}\n\t}}\n}}\nEND\n}}"
    assert call("open_ports tcp ruleset", nft).splitlines() == words(accepted)


@given(st.lists(st.lists(RANGE, min_size=1, max_size=3), min_size=10, max_size=20))
@settings(max_examples=5)
def test_a_port_is_listed_if_it_lies_in_a_range(lists: list[list[tuple[int, int]]]) -> None:
    cases = [(port, ranges) for ranges in lists for a, b in ranges for port in (a - 1, a, b, b + 1)]
    commands = (f"port_in {port} {shlex.join(words(ranges))} && echo yes || echo no" for port, ranges in cases)
    expected = ["yes" if any(a <= port <= b for a, b in ranges) else "no" for port, ranges in cases]
    assert call("\n".join(commands)).split() == expected


@pytest.mark.parametrize(
    ("zone", "is_running", "reached"),
    [
        ("public", True, ["22", "9100", "5000-5010", "8786"]),
        ("trusted", True, ["0-65535"]),
        ("public", False, ["0-65535"]),
    ],
)
def test_others_reach_the_ports_of_firewallds_default_zone(
    zone: str, is_running: bool, reached: list[str], tmp_path: Path
) -> None:
    tmp_path.joinpath("firewalld.conf").write_text(f"# DefaultZone=drop\nDefaultZone={zone}\nLogDenied=off\n")
    allow, chain = prints("firewalld-public-allow.nft"), prints(f"firewalld-{zone}.nft")
    nft = f"nft() {{ case $* in *_allow) {allow} ;; *) {chain} ;; esac; }}"
    systemctl = f"systemctl() {{ {str(is_running).lower()}; }}"
    assert call("reachable_ports tcp", f"{nft}\n{systemctl}", tmp_path).splitlines() == reached


def test_zones_that_differ_only_in_what_is_bound_to_them_are_the_same() -> None:
    now = (FIREWALLS / "firewalld-permanent.zones").read_text()
    bound = now.replace("public\n", "public (default, active)\n").replace("interfaces: \n", "interfaces: eth0\n")
    assert bound != now
    programs = f"now={shlex.quote(now)}\nbound={shlex.quote(bound)}"
    assert call('[ "$(permanent_part "$now")" = "$(permanent_part "$bound")" ] && echo same', programs) == "same\n"


def test_settings_of_zones_that_are_not_permanent_make_a_difference() -> None:
    assert "9100/tcp" in call(f'permanent_part "$({prints("firewalld.zones")})"')
    files = [f'"$(permanent_part "$({prints(file)})")"' for file in ("firewalld.zones", "firewalld-permanent.zones")]
    assert call(f"[ {files[0]} = {files[1]} ] || echo different") == "different\n"


@pytest.mark.parametrize(("zone", "refused"), [("public", "wg0 (zone trusted)"), ("trusted", "eth0 (zone public)")])
def test_interfaces_in_other_zones_than_the_default_one_are_refused(zone: str, refused: str, tmp_path: Path) -> None:
    tmp_path.joinpath("firewalld.conf").write_text(f"DefaultZone={zone}\n")
    said = call(f'(check_bound "$({prints("firewalld.zones")})") || true', folder=tmp_path)
    assert f"network interfaces outside its default zone: {refused} ;" in said
    assert call(f'check_bound "$({prints("firewalld-permanent.zones")})"', folder=tmp_path) == ""


def test_programs_that_others_can_reach_are_listening(tmp_path: Path) -> None:
    tmp_path.joinpath("ports").write_text("32768\t60999\n")
    assert call("listening", f"ss() {{ {prints('listening.ss')}; }}", tmp_path).splitlines() == [
        "22 tcp sshd",
        "123 udp chronyd",
        "5355 tcp systemd-resolve",
        "9200 tcp java",
        "40001 tcp my program",
    ]


def test_a_socket_of_the_kernel_is_listening_but_none_that_is_bound_to_loopback(tmp_path: Path) -> None:
    """Written by hand: for WireGuard, ss prints no program."""
    tmp_path.joinpath("ports").write_text("32768\t60999\n")
    ss = "ss() { echo 'udp UNCONN 0 0 0.0.0.0:51820 0.0.0.0:*'; echo 'udp UNCONN 0 0 0.0.0.0%lo:5353 0.0.0.0:*'; }"
    assert call("listening", ss, tmp_path) == "51820 udp the-kernel\n"


@pytest.mark.parametrize(
    ("one", "other", "overlapping"),
    [
        ("10.1.0.5", "10.1.0.0/24", True),
        ("10.1.1.5", "10.1.0.0/24 10.1.1.5", True),
        ("10.1.1.5", "10.1.0.0/24", False),
        ("10.0.0.0/8", "192.0.2.0/24 10.1.0.0/24", True),
        ("fe80::1%eth0", "fe80::/64", True),
        ("::1", "0.0.0.0/0", False),
        ("10.1.0.5/24", "10.1.0.77", True),
        ("10.1.0.5", "ipset:allowed", False),
        ("10.1.0.5", "ipset:allowed 10.1.0.0/24", True),
        ("10.1.0.5", "", False),
    ],
)
def test_networks_overlap_if_they_share_an_address(one: str, other: str, overlapping: bool) -> None:
    said = call(f"overlap {shlex.quote(one)} {shlex.quote(other)} && echo yes || echo no")
    assert said == ("yes\n" if overlapping else "no\n")


def test_the_ssh_connection_is_that_of_the_nearest_parent_that_has_one() -> None:
    inner = 'env -u SSH_CONNECTION bash -c "$(declare -f connection); connection"'
    outer = {"PATH": "/usr/bin:/bin", "SSH_CONNECTION": "203.0.113.7 50000 10.1.0.5 22"}
    assert call(inner, env=outer) == "203.0.113.7 50000 10.1.0.5 22\n"
    nearer = "export SSH_CONNECTION='203.0.113.8 50001 10.1.0.5 22'; bash -c \"$(declare -f connection); connection\""
    assert call(nearer, env=outer) == "203.0.113.8 50001 10.1.0.5 22\n"
