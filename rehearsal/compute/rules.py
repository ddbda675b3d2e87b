"""Translates a network's firewall rules to nftables."""

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# The bridge drops traffic between machines, so that they can only reach each other through the rules of `forward`.
RULESET = """
table bridge vpc
delete table bridge vpc
table bridge vpc {{
    chain forward {{
        type filter hook forward priority 0; policy drop;
    }}
}}
table ip vpc
delete table ip vpc
table ip vpc {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        {to_machines}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        {from_machines}
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname != $machines ct original ip daddr != {{ {external} }} drop
        iifname $machines jump egress
        oifname $machines jump ingress
        oifname != $machines ip saddr {{ {having_external} }} accept
    }}
    chain output {{
        type filter hook output priority filter;
        ct state established,related accept
        oifname $machines jump ingress
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        ip protocol icmp accept
        iifname $machines tcp dport {{ 80, 8001, 8002 }} accept
    }}
    chain egress {{
        {egress}
    }}
    chain ingress {{
        {ingress}
        drop
    }}
}}
"""
NOBODY = "0.0.0.0"  # nftables does not support empty sets
EVERYBODY = "0.0.0.0/0"
NUMBERS = {"ipip": "4"}  # protocols that nftables does not know by name


@dataclass(frozen=True)
class Machine:
    network: str
    address: str
    external: str = ""
    tags: frozenset[str] = frozenset()
    account: str = ""


def ruleset(machines: list[Machine], firewalls: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """nftables rules for the machines. Firewall rules are pairs of network and rule; `$machines` is the interface."""
    pairs = [(machine.external, machine.address) for machine in machines if machine.external]
    # Of two rules with the same priority, the one that denies takes precedence.
    found = sorted(firewalls, key=lambda pair: (pair[1]["priority"], "allows" in pair[1]))
    chains: dict[str, list[str]] = {"INGRESS": [], "EGRESS": []}
    for network, rule in found:
        if rule.get("disabled") is not True:
            own = [machine for machine in machines if machine.network == network]
            chains[rule["direction"]] += lines(rule, own)
    return RULESET.format(
        to_machines=translation("iifname != $machines dnat to ip daddr", pairs),
        from_machines=translation("oifname != $machines snat to ip saddr", [(inner, outer) for outer, inner in pairs]),
        external=", ".join(outer for outer, _ in pairs) or NOBODY,
        having_external=", ".join(inner for _, inner in pairs) or NOBODY,
        ingress="\n        ".join(chains["INGRESS"]),
        egress="\n        ".join(chains["EGRESS"]),
    )


def translation(words: str, pairs: list[tuple[str, str]]) -> str:
    return f"{words} map {{ {', '.join(f'{one} : {other}' for one, other in pairs)} }}" if pairs else ""


def lines(rule: dict[str, Any], machines: list[Machine]) -> Iterator[str]:
    """The lines of a rule for the machines of its network; none if it applies to no machine."""
    tags, accounts = set(rule.get("targetTags", [])), set(rule.get("targetServiceAccounts", []))
    targets = [each.address for each in machines if matches(each, tags, accounts) or not (tags or accounts)]
    tags, accounts = set(rule.get("sourceTags", [])), set(rule.get("sourceServiceAccounts", []))
    fellows = [each.address for each in machines if matches(each, tags, accounts)]
    ranges = {name: rule.get(f"{name}Ranges", []) for name in ("source", "destination")}
    if rule["direction"] == "INGRESS":
        ends = {"saddr": [*ranges["source"], *fellows], "daddr": ranges["destination"] or [EVERYBODY]}
        target, allow = "daddr", "accept"
    else:
        ends = {"saddr": ranges["source"] or [EVERYBODY], "daddr": ranges["destination"] or [EVERYBODY]}
        target, allow = "saddr", "return"  # continue with the ingress rules of the destination
    blocks = {name: addresses(values) for name, values in ends.items()}
    if not targets or not all(blocks.values()):
        return
    found = {target: ", ".join(targets)}, blocks
    where = " ".join(f"ip {name} {{ {text} }}" for each in found for name, text in each.items() if text != EVERYBODY)
    for verdict, what in ((allow, rule.get("allows", [])), ("drop", rule.get("denies", []))):
        for each in what:
            yield f"{where} {protocol(each)} {verdict}"


def matches(machine: Machine, tags: set[str], accounts: set[str]) -> bool:
    return bool(tags & machine.tags) or machine.account in accounts


def addresses(values: list[str]) -> str:
    """IPv4 addresses and networks, without those that are part of others."""
    found = [ipaddress.ip_network(value) for value in values]
    return ", ".join(map(str, ipaddress.collapse_addresses(each for each in found if each.version == 4)))


def protocol(what: dict[str, Any]) -> str:
    name = what["protocol"].lower()
    if ports := what.get("ports"):
        return f"{name} dport {{ {', '.join(ports)} }}"
    return "" if name == "all" else f"ip protocol {NUMBERS.get(name, name)}"
