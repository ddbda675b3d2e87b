"""Enforces NetworkPolicies on the node: python -m rehearsal.kubernetes.policies ADDRESS_OF_THE_API_SERVER

It watches pods, namespaces and policies, and maintains an nftables table of the allowed new connections from and to
pods. It supports the full NetworkPolicy specification for IPv4. As in most pod networks, forbidden connections are
rejected ("No route to host"), existing connections continue, the node can reach its pods, `ipBlock` compares the
addresses behind Services, including pods', and pods in the node's network are not restricted.
The packets of a new pod are dropped until its labels are known, and then retransmitted.
"""

import ipaddress
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

from rehearsal.kubernetes.api import Api
from rehearsal.kubernetes.components import PKI
from rehearsal.kubernetes.network import PODS

TABLE = "policies"
PATHS = {
    "pods": "/api/v1/pods",
    "namespaces": "/api/v1/namespaces",
    "policies": "/apis/networking.k8s.io/v1/networkpolicies",
}
# Direction -> its key for rules, its key for peers, and the field of the peer's address in a packet.
DIRECTIONS = {"Egress": ("egress", "to", "daddr"), "Ingress": ("ingress", "from", "saddr")}


def main(address: str) -> None:
    api, changed = Api(address, PKI), threading.Event()
    for path in PATHS.values():
        threading.Thread(target=watch, args=(api, path, changed), daemon=True).start()
    applied = ""
    while True:
        changed.clear()
        try:
            found = {kind: api.get(f"{path}?resourceVersion=0")["items"] for kind, path in PATHS.items()}
        except OSError as error:
            print(error, flush=True)
            time.sleep(1)
            continue
        rules = table(**found)
        if rules != applied:
            subprocess.run(["nft", "--file", "-"], input=rules, text=True, check=True)
            applied = rules
        changed.wait()


def watch(api: Api, path: str, changed: threading.Event) -> None:
    while True:
        try:
            url = f"{api.url}{path}?watch=true&resourceVersion=0&timeoutSeconds=300"
            with urllib.request.urlopen(url, timeout=330, context=api.context) as events:
                for _ in events:
                    changed.set()
        except OSError as error:
            print(error, flush=True)
            time.sleep(1)
        changed.set()


def table(pods: list[dict], namespaces: list[dict], policies: list[dict]) -> str:
    """nftables commands that replace the table atomically."""
    labels = {each["metadata"]["name"]: each["metadata"].get("labels", {}) for each in namespaces}
    known = {address: pod for pod in pods if (address := pod_address(pod))}
    chains, verdicts = [], {direction: [] for direction in DIRECTIONS}
    for address, pod in sorted(known.items()):
        for direction in DIRECTIONS:
            applied = [each for each in policies if selects(each, direction, pod)]
            chain = f"{direction.lower()}-{address}"
            verdicts[direction].append(f"{address} : " + (f"goto {chain}" if applied else "return"))
            if applied:
                lines = [f"ip {DIRECTIONS[direction][2]} {address} return"]  # a pod can always reach itself
                lines += [line for each in applied for line in allowed(each, direction, pod, known, labels)]
                # A packet that returns passes this direction's policies and continues with the other direction's.
                chains.append((chain, [*lines, "reject with icmp type admin-prohibited"]))
    for direction, field in (("Egress", "saddr"), ("Ingress", "daddr")):
        found = ", ".join(verdicts[direction])
        chains.append((direction.lower(), [*([f"ip {field} vmap {{ {found} }}"] if found else []), "drop"]))
    established = "ct state established,related accept"
    leaving, arriving = f"ip saddr {PODS} jump egress", f"ip daddr {PODS} jump ingress"
    for hook, rules in (("forward", [established, leaving, arriving]), ("input", [established, leaving])):
        chains.append((hook, [f"type filter hook {hook} priority 0; policy accept;", *rules]))
    text = "\n".join(f"chain {name} {{\n" + "\n".join(f"  {line}" for line in lines) + "\n}" for name, lines in chains)
    return f"table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n{text}\n}}\n"


def pod_address(pod: dict) -> str:
    """The pod's own address; empty if it has none, or if it has ended and another pod may have the address."""
    over = pod["status"].get("phase") in ("Succeeded", "Failed")
    return "" if over or pod["spec"].get("hostNetwork") else pod["status"].get("podIP", "")


def selects(policy: dict, direction: str, pod: dict) -> bool:
    same = policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
    spec = policy["spec"]
    return same and direction in spec["policyTypes"] and matches(spec.get("podSelector", {}), pod["metadata"])


def matches(selector: dict, metadata: dict) -> bool:
    """Whether a label selector matches this metadata. An empty one matches everything."""
    labels = metadata.get("labels", {})

    def holds(expression: dict) -> bool:
        value, values = labels.get(expression["key"]), expression.get("values", [])
        match expression["operator"]:
            case "In":
                return value in values
            case "NotIn":
                return value not in values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
        raise ValueError(f"unknown operator of a label selector: {expression['operator']}")

    expressions = selector.get("matchExpressions", [])
    return selector.get("matchLabels", {}).items() <= labels.items() and all(map(holds, expressions))


def allowed(policy: dict, direction: str, pod: dict, known: dict[str, dict], labels: dict[str, dict]) -> Iterator[str]:
    """The lines that let a packet pass."""
    rules, peers, field = DIRECTIONS[direction]
    for rule in policy["spec"].get(rules, []):
        for peer in rule.get(peers) or [None]:
            for port in rule.get("ports") or [None]:
                named = isinstance((port or {}).get("port"), str)
                if named and direction == "Egress":  # a named port can have a different number in each pod
                    there = [each for each in known if peer is None or meets(each, peer, policy, known, labels)]
                    pairs = [(f"ip {field} {each}", known[each]) for each in there]
                else:
                    pairs = [(condition, pod) for condition in conditions(peer, field, policy, known, labels)]
                for condition, target in pairs:
                    for ports in numbers(port, target):
                        yield f"{condition} {ports} return".strip()


def conditions(
    peer: dict | None, field: str, policy: dict, known: dict[str, dict], labels: dict[str, dict]
) -> Iterator[str]:
    """nftables conditions for a packet's peer; none if no pod matches."""
    if peer is None:
        yield ""
    elif block := peer.get("ipBlock"):
        if ipaddress.ip_network(block["cidr"], strict=False).version == 4:
            excepted = ", ".join(block.get("except", []))
            yield f"ip {field} {block['cidr']}" + (f" ip {field} != {{ {excepted} }}" if excepted else "")
    elif there := [each for each in known if meets(each, peer, policy, known, labels)]:
        yield f"ip {field} {{ {', '.join(sorted(there))} }}"


def meets(address: str, peer: dict, policy: dict, known: dict[str, dict], labels: dict[str, dict]) -> bool:
    if block := peer.get("ipBlock"):
        inside = [ipaddress.ip_address(address) in ipaddress.ip_network(each, strict=False)
                  for each in (block["cidr"], *block.get("except", []))]  # fmt: skip
        return inside[0] and not any(inside[1:])
    metadata = known[address]["metadata"]
    if "namespaceSelector" in peer:
        there = matches(peer["namespaceSelector"], {"labels": labels.get(metadata["namespace"], {})})
    else:
        there = metadata["namespace"] == policy["metadata"]["namespace"]
    return there and matches(peer.get("podSelector", {}), metadata)


def numbers(port: dict | None, target: dict) -> Iterator[str]:
    """nftables conditions for a rule's port, if `target` has it. Without a port, any protocol matches."""
    if port is None:
        yield ""
        return
    protocol, number = port.get("protocol", "TCP"), port.get("port")
    if number is None:
        yield f"meta l4proto {protocol.lower()}"
    elif isinstance(number, int):
        yield f"{protocol.lower()} dport {number}" + (f"-{port['endPort']}" if "endPort" in port else "")
    else:
        for container in target["spec"]["containers"]:
            for each in container.get("ports", []):
                if (each.get("name"), each.get("protocol", "TCP")) == (number, protocol):
                    yield f"{protocol.lower()} dport {each['containerPort']}"


if __name__ == "__main__":
    main(sys.argv[1])
