"""The translation of firewall rules to nftables in a rehearsal."""

import subprocess

import pytest

from rehearsal.compute.rules import Machine, lines, ruleset

DOOR = Machine("net", "10.9.0.2", "198.18.0.2", frozenset({"door"}), "a@my-project")
WORKER = Machine("net", "10.9.0.3", account="a@my-project")
OTHER = Machine("other", "10.8.0.2", tags=frozenset({"door"}))
SSH = {"protocol": "tcp", "ports": ["22", "8000-8010"]}


def rule(**properties):
    return {"direction": "INGRESS", "priority": 1000, "sourceRanges": ["203.0.113.7/32"]} | properties


def rendered(properties, *machines):
    return [" ".join(line.split()) for line in lines(properties, list(machines))]


def test_rules_are_sorted_by_priority_and_denying_rules_come_first():
    rules = [
        rule(allows=[{"protocol": "udp"}]),
        rule(denies=[{"protocol": "tcp"}]),
        rule(allows=[{"protocol": "icmp"}], priority=10),
        rule(allows=[{"protocol": "sctp"}], priority=1, disabled=True),
    ]
    text = ruleset([DOOR], [("net", each) for each in rules])
    ingress = [line.split()[-2:] for line in text[text.index("chain ingress") :].splitlines() if "daddr" in line]
    assert ingress == [["icmp", "accept"], ["tcp", "drop"], ["udp", "accept"]]


def test_a_rule_applies_only_to_its_targets_in_its_network():
    text = ruleset([DOOR, WORKER, OTHER], [("net", rule(allows=[SSH], targetTags=["door"]))])
    [line] = [line for line in text.splitlines() if "8000" in line]
    assert line.strip().startswith("ip daddr { 10.9.0.2 } ip saddr { 203.0.113.7/32 } tcp")
    accounts = {"sourceServiceAccounts": ["a@my-project"], "targetServiceAccounts": ["a@my-project"]}
    [line] = rendered(rule(allows=[SSH], sourceRanges=[]) | accounts, DOOR, WORKER)
    assert line.startswith("ip daddr { 10.9.0.2, 10.9.0.3 } ip saddr { 10.9.0.2/31 } ")
    assert rendered(rule(allows=[SSH]), DOOR, WORKER)[0].startswith("ip daddr { 10.9.0.2, 10.9.0.3 } ")


@pytest.mark.parametrize(
    "properties",
    [{"sourceRanges": ["::/0"]}, {"sourceRanges": [], "sourceTags": ["nobodys"]}, {"targetTags": ["nobodys"]}],
    ids=["IPv6", "sources", "targets"],
)
def test_a_rule_without_sources_or_targets_has_no_effect(properties):
    assert rendered(rule(allows=[SSH]) | properties, DOOR, WORKER) == []


def test_egress_rules_drop_traffic_or_leave_it_to_the_ingress_rules():
    out = rule(direction="EGRESS", sourceRanges=[], destinationRanges=["10.9.0.0/24"])
    assert rendered(out | {"denies": [{"protocol": "all"}]}, WORKER) == [
        "ip saddr { 10.9.0.3 } ip daddr { 10.9.0.0/24 } drop"
    ]
    assert rendered(out | {"allows": [{"protocol": "all"}]}, WORKER)[0].endswith(" return")


def test_nftables_accepts_every_kind_of_rule():
    protocols = ["tcp", "udp", "sctp", "icmp", "esp", "ah", "ipip", "all", "89"]
    wide = rule(sourceRanges=["0.0.0.0/0", "10.0.0.0/8", "::/0"], allows=[{"protocol": each} for each in protocols])
    ports = [{"protocol": "tcp", "ports": ["22", "20-30", "8000-8010"]}]
    out = rule(direction="EGRESS", destinationRanges=["10.9.0.0/24"], denies=ports)
    for machines in ([], [WORKER], [DOOR, WORKER, OTHER]):
        text = ruleset(machines, [("net", wide), ("net", rule(denies=ports)), ("net", out)])
        command = ["unshare", "--user", "--map-root-user", "--net", "env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        done = subprocess.run(
            [*command, "nft", "--check", "--file", "-"],
            input=f"define machines = lo\n{text}",
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
