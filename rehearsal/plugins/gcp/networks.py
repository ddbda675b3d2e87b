"""Networks, subnetworks, routers, NAT, firewall rules and addresses."""

import ipaddress
import os
from collections.abc import Iterator
from typing import Any

from command import wire
from command.output import CommandError, Found
from gcp import checks
from gcp.checks import at, between, matching, network
from gcp.kinds import (
    NETWORK,
    SUBNETWORK,
    Kind,
    Link,
    State,
    always,
    fingerprint,
    label_fingerprint,
    link,
    moment,
    number,
)


def subnetwork_rules(inputs: dict[str, Any]) -> Iterator[Found]:
    if not {"ipCidrRange", "reservedInternalRange", "ipCollection"} & inputs.keys() and not ipv6_only(inputs):
        yield "ipCidrRange", "is required without reservedInternalRange"
    names = [value for _, value in checks.at(inputs, "secondaryIpRanges[].rangeName")]
    if len(names) != len(set(names)):
        yield "secondaryIpRanges", "two ranges have the same name"
    blocks = [checks.at(inputs, path) for path in ("ipCidrRange", "secondaryIpRanges[].ipCidrRange")]
    found = [(place, ipaddress.ip_network(value, strict=False)) for block in blocks for place, value in block]
    for position, (place, block) in enumerate(found):
        for other, earlier in found[:position]:
            if block.version == earlier.version and block.overlaps(earlier):
                yield place, f"{block} overlaps {earlier} of {other}"


def ipv6_only(inputs: dict[str, Any]) -> bool:
    return inputs.get("stackType") == "IPV6_ONLY"


def gateway(state: State) -> str:
    block = state.given.get("ipCidrRange")
    return str(ipaddress.ip_network(block)[1]) if block else ""


def router_rules(inputs: dict[str, Any]) -> Iterator[Found]:
    bgp = inputs.get("bgp", {})
    if isinstance(bgp, dict) and bgp.get("advertiseMode", "DEFAULT") == "DEFAULT":
        for name in ("advertisedGroups", "advertisedIpRanges"):
            if bgp.get(name):
                yield f"bgp.{name}", "needs advertiseMode CUSTOM"


def nat_rules(inputs: dict[str, Any]) -> Iterator[Found]:
    listed = "LIST_OF_SUBNETWORKS"
    if inputs.get("subnetworks") and inputs.get("sourceSubnetworkIpRangesToNat") not in (listed, wire.UNKNOWN):
        yield "subnetworks", f"needs sourceSubnetworkIpRangesToNat {listed}"
    if inputs.get("natIps") and inputs.get("natIpAllocateOption") not in ("MANUAL_ONLY", wire.UNKNOWN):
        yield "natIps", "needs natIpAllocateOption MANUAL_ONLY"
    if inputs.get("enableDynamicPortAllocation") is True and inputs.get("enableEndpointIndependentMapping") is True:
        yield "enableDynamicPortAllocation", "conflicts with enableEndpointIndependentMapping; use only one of them"


def private_asn(value: Any) -> str:
    found = int(value)
    return "" if 64512 <= found <= 65534 or 4200000000 <= found <= 4294967294 else "expected a private ASN (RFC 6996)"


def firewall_rules(inputs: dict[str, Any]) -> Iterator[Found]:
    sources = ("sourceRanges", "sourceTags", "sourceServiceAccounts")
    if ("allows" in inputs) == ("denies" in inputs):
        yield "allows", "set either allows or denies"
    if inputs.get("direction", "INGRESS") == "INGRESS":
        if not any(name in inputs for name in sources):
            yield "sourceRanges", f"one of {', '.join(sources)} is required for INGRESS"
        if "destinationRanges" in inputs and "sourceRanges" not in inputs:
            yield "destinationRanges", "requires sourceRanges for INGRESS"
    elif inputs.get("direction") == "EGRESS":
        for name in sources[1:]:
            if inputs.get(name):
                yield name, "is only for INGRESS"


OWN, INNER, PUBLIC = "address", "networkInterfaces[].networkIp", "networkInterfaces[].accessConfigs[].natIp"
DEFAULT_RANGE = "10.128.0.0/20"  # of a network in auto mode
TESTS = ipaddress.IPv4Network("198.18.0.0/15")  # reserved for tests of networks (RFC 2544), and not used elsewhere


def public_address(state: State) -> str:
    """An address that another rehearsal on this computer is unlikely to use."""
    start, size = int(state.number), TESTS.num_addresses
    return free(state, PUBLIC, (str(TESTS[(start + step) % size]) for step in range(size)))


def inner_address(state: State) -> str:
    ranges = (state.others.get(link, {}).get("ipCidrRange") for link in state.links)
    block = ipaddress.IPv4Network(next(filter(None, ranges), DEFAULT_RANGE))
    return free(state, INNER, (str(block[number]) for number in range(2, block.num_addresses - 2)))


def own_address(state: State) -> str:
    if OWN in state.before:
        return state.before[OWN]
    return inner_address(state) if state.given.get("addressType") == "INTERNAL" else public_address(state)


def free(state: State, path: str, candidates: Iterator[str]) -> str:
    """The resource's previous value, or the first candidate that is free."""
    taken = {value for each in state.others.values() for place in (OWN, INNER, PUBLIC) for _, value in at(each, place)}
    taken.add(os.environ.get("DASKSTACK_REHEARSAL_CALLER", ""))
    had = [value for _, value in at(state.before, path)]
    found = next((each for each in (*had, *candidates) if each not in taken), None)
    if found is None:
        raise CommandError(f"no address is left for {state.identity} (IP_SPACE_EXHAUSTED); use a larger range")
    return found


ADDRESS_FIXED = (
    "address",
    "addressType",
    "description",
    "ipCollection",
    "ipVersion",
    "ipv6EndpointType",
    "name",
    "network",
)
ADDRESS_FIXED += ("networkTier", "prefixLength", "project", "purpose", "region", "subnetwork")
PORTS = matching(r"\d{1,5}(-\d{1,5})?", "a port or a range of them, such as 22 or 8000-9000")


NETWORKS = {
    "compute/network:Network": Kind(
        NETWORK.replace("{}", "{name}"),
        checks={
            "name": checks.NAME,
            "project": checks.PROJECT,
        },
        fixed=(
            "autoCreateSubnetworks",
            "internalIpv6Range",
            "name",
            "params",
            "project",
        ),
        defaults={
            "autoCreateSubnetworks": True,
        },
        filled={
            "bgpBestPathSelectionMode": always("LEGACY"),
            "gatewayIpv4": always(""),
            "mtu": always(1460),
            "networkId": number,
            "numericId": number,
            "routingMode": always("REGIONAL"),
            "selfLink": link,
        },
    ),
    "compute/subnetwork:Subnetwork": Kind(
        SUBNETWORK.replace("{}", "{name}"),
        checks={
            "name": checks.NAME,
            "ipCidrRange": checks.SUBNETWORK,
            "secondaryIpRanges[].ipCidrRange": checks.SUBNETWORK,
            "secondaryIpRanges[].rangeName": checks.NAME,
            "logConfig.flowSampling": between(0, 1),
            "region": checks.REGION,
            "project": checks.PROJECT,
        },
        rules=subnetwork_rules,
        growing=("ipCidrRange",),
        fixed=("name", "network", "project", "purpose", "region", "reservedInternalRange", "params"),
        filled={
            "creationTimestamp": moment,
            "fingerprint": lambda state: fingerprint(state.given),
            "gatewayAddress": gateway,
            "privateIpGoogleAccess": always(False),
            "selfLink": link,
            "stackType": always("IPV4_ONLY"),
            "subnetworkId": lambda state: int(state.number),
        },
        links={"network": Link(NETWORK)},
    ),
    "compute/router:Router": Kind(
        "projects/{project}/regions/{region}/routers/{name}",
        checks={
            "name": checks.NAME,
            "bgp.asn": private_asn,
            "region": checks.REGION,
            "project": checks.PROJECT,
        },
        apart=(("nccGateway", "network"),),
        rules=router_rules,
        fixed=("encryptedInterconnectRouter", "name", "nccGateway", "network", "params", "project", "region"),
        filled={"creationTimestamp": moment, "selfLink": link},
        links={"network": Link(NETWORK)},
    ),
    "compute/routerNat:RouterNat": Kind(
        "{project}/{region}/{router}/{name}",
        checks={
            "name": matching(
                "[a-z]([-a-z0-9]{0,61}[a-z0-9])",
                "2 to 63 lower-case letters, digits and -, starting with a letter and not ending with -",
            ),
            "region": checks.REGION,
            "project": checks.PROJECT,
        },
        apart=(("initialNatIps", "natIps"), ("initialNatIps", "drainNatIps")),
        rules=nat_rules,
        fixed=("endpointTypes", "initialNatIps", "name", "project", "region", "router", "type"),
        defaults={
            "icmpIdleTimeoutSec": 30,
            "tcpEstablishedIdleTimeoutSec": 1200,
            "tcpTimeWaitTimeoutSec": 120,
            "tcpTransitoryIdleTimeoutSec": 30,
            "udpIdleTimeoutSec": 30,
        },
        filled={"endpointTypes": always(["ENDPOINT_TYPE_VM"]), "autoNetworkTier": always("PREMIUM")},
        links={"router": Link("projects/{project}/regions/{region}/routers/{}", part=True)},
    ),
    "compute/firewall:Firewall": Kind(
        "projects/{project}/global/firewalls/{name}",
        checks={
            "name": checks.NAME,
            "priority": between(0, 65535),
            "sourceRanges[]": network(0, 128),
            "destinationRanges[]": network(0, 128),
            "sourceTags[]": checks.NAME,
            "targetTags[]": checks.NAME,
            "allows[].ports[]": PORTS,
            "denies[].ports[]": PORTS,
            "project": checks.PROJECT,
        },
        apart=(
            ("sourceServiceAccounts", "sourceTags"),
            ("sourceServiceAccounts", "targetTags"),
            ("targetServiceAccounts", "sourceTags"),
            ("targetServiceAccounts", "targetTags"),
        ),
        rules=firewall_rules,
        fixed=("direction", "name", "params", "project"),
        defaults={"priority": 1000},
        filled={"creationTimestamp": moment, "direction": always("INGRESS"), "selfLink": link},
        links={"network": Link(NETWORK)},
    ),
    "compute/address:Address": Kind(
        "projects/{project}/regions/{region}/addresses/{name}",
        checks={
            "name": checks.NAME,
            "region": checks.REGION,
            "project": checks.PROJECT,
        },
        fixed=ADDRESS_FIXED,
        filled={
            "address": own_address,
            "addressId": lambda state: int(state.number),
            "creationTimestamp": moment,
            "labelFingerprint": label_fingerprint,
            "selfLink": link,
            "users": always([]),
        },
        links={"network": Link(NETWORK), "subnetwork": Link(SUBNETWORK)},
        labels="labels",
    ),
}
