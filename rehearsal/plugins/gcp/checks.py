"""Validates a resource's arguments like the official plugin does in a preview."""

import difflib
import ipaddress
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from command import wire
from command.output import Found
from values import has_unknown

Check = Callable[[Any], str]  # the problem with a value, or an empty string

KNOWN = json.loads(Path(__file__).with_name("arguments.json").read_text())
PRIMITIVES = {"str", "int", "float", "bool"}
# Corrections of wrong or incomplete facts in the package's documentation: type, argument, facts, reason.
FILLED = "Google sets it, so removing it from the program changes nothing"
WIDER = "the plugin also accepts these values"
CORRECTIONS: list[tuple[str, str, dict[str, Any], str]] = [
    ("Cluster", "loggingService", {"default": None}, FILLED),
    ("Cluster", "monitoringService", {"default": None}, FILLED),
    (
        "ClusterLoggingConfig",
        "enableComponents",
        {
            "of": [
                *("SYSTEM_COMPONENTS", "APISERVER", "CONTROLLER_MANAGER", "KCP_CONNECTION", "KCP_SSHD", "KCP_HPA"),
                *("KCP_VPA", "SCHEDULER", "WORKLOADS"),
            ]
        },
        WIDER,
    ),
    ("ClusterNodeConfig", "diskSizeGb", {"default": None}, FILLED),
    ("ClusterNodeConfig", "localSsdCount", {"default": None}, FILLED),
    ("ClusterNodeConfig", "machineType", {"default": None}, FILLED),
    ("ClusterNodeConfigBootDisk", "sizeGb", {"default": None}, FILLED),
    ("ClusterNodePoolUpgradeSettings", "maxSurge", {"default": None}, FILLED),
    ("ClusterNodePoolUpgradeSettings", "maxUnavailable", {"default": None}, FILLED),
    ("ClusterNodePoolPlacementPolicy", "type", {"of": None}, "the documentation is that of clusterTelemetry"),
    ("ClusterNodeConfigKubeletConfig", "cpuManagerPolicy", {"of": ["", "none", "static"]}, WIDER),
    (
        "ClusterNodeConfigWorkloadMetadataConfig",
        "mode",
        {"of": ["GCE_METADATA", "GKE_METADATA", "MODE_UNSPECIFIED"]},
        "the API uses MODE_UNSPECIFIED instead of UNSPECIFIED",
    ),
    (
        "ClusterSecurityPostureConfig",
        "mode",
        {"of": ["BASIC", "DISABLED", "ENTERPRISE", "MODE_UNSPECIFIED"]},
        WIDER,
    ),
    (
        "ClusterSecurityPostureConfig",
        "vulnerabilityMode",
        {
            "of": [
                *("VULNERABILITY_BASIC", "VULNERABILITY_DISABLED", "VULNERABILITY_ENTERPRISE"),
                "VULNERABILITY_MODE_UNSPECIFIED",
            ]
        },
        WIDER,
    ),
    ("Firewall", "direction", {"default": None}, FILLED),
    ("InstanceBootDiskInitializeParams", "architecture", {"of": ["ARM64", "X86_64"]}, "the API uses X86_64"),
    (
        "InstanceNetworkInterface",
        "name",
        {"fixed": None},
        "the documentation is that of another name; the plugin sets this one itself",
    ),
    ("Network", "mtu", {"default": None}, FILLED),
    ("Subnetwork", "purpose", {"default": None}, FILLED),
]


def corrected(documented: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    changed = {name: {key: dict(facts) for key, facts in arguments.items()} for name, arguments in documented.items()}
    for kind, argument, instead, _ in CORRECTIONS:
        # A node's configuration occurs in three places with the same meaning.
        for name in {kind, kind.replace("Cluster", "NodePool", 1)} & changed.keys():
            if argument in changed[name]:
                changed[name][argument] |= instead
    return changed


DOCUMENTED = corrected(KNOWN["said"])


def shape(token: str, inputs: dict[str, Any]) -> list[Found]:
    """Unknown arguments, missing ones, and those of the wrong type."""
    return list(_shape(KNOWN["resources"][token], inputs, ""))


def _shape(kind: str, value: Any, path: str) -> Iterator[Found]:
    if value == wire.UNKNOWN:
        return
    if kind in PRIMITIVES:
        if not _is_primitive(kind, value):
            yield path, f"expected a value of type {kind}, found {json.dumps(value)}"
    elif kind.startswith("["):
        if not isinstance(value, list):
            yield path, f"expected a list, found {json.dumps(value)}"
            return
        for number, item in enumerate(value):
            yield from _shape(kind[1:-1], item, f"{path}[{number}]")
    elif not isinstance(value, dict):
        yield path, f"expected an object, found {json.dumps(value)}"
    elif kind.startswith("{"):
        for key, item in value.items():
            yield from _shape(kind[1:-1], item, f"{path}.{key}")
    else:
        yield from _members(KNOWN["types"][kind], DOCUMENTED.get(kind, {}), value, path)


def _members(
    known: dict[str, str], documented: dict[str, dict[str, Any]], value: dict[str, Any], path: str
) -> Iterator[Found]:
    for key in sorted(value.keys() - known.keys()):
        like = difflib.get_close_matches(key, known, 1)
        yield _below(path, key), "unknown argument" + (f"; did you mean {like[0]}?" if like else "")
    for key, kind in known.items():
        if key in value:
            wrong = list(_shape(kind.lstrip("!"), value[key], _below(path, key)))
            yield from wrong or _documented_problems(documented.get(key, {}), value, key, _below(path, key))
        elif kind.startswith("!"):
            yield _below(path, key), "is required"


def _documented_problems(facts: dict[str, Any], around: dict[str, Any], key: str, path: str) -> Iterator[Found]:
    """Violations of an argument's documentation."""
    wanted = [one_of(*facts["of"])] if facts.get("of") else []
    wanted += [between(facts["least"], facts["most"])] if "least" in facts else []
    value = around[key]
    for place, item in (
        [(f"{path}[{number}]", item) for number, item in enumerate(value)]
        if isinstance(value, list)
        else [(path, value)]
    ):
        if not has_unknown(item):
            yield from ((place, f"{wrong}, found {json.dumps(item)}") for check in wanted if (wrong := check(item)))
    for other in facts.get("apart", []):
        if other in around:
            yield path, f"conflicts with {path.removesuffix(key)}{other}; use only one of them"


def with_defaults(token: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with the documented defaults in existing blocks."""
    return _with_defaults(KNOWN["resources"][token], inputs)


def _with_defaults(kind: str, value: Any) -> Any:
    if kind.startswith("[") and isinstance(value, list):
        return [_with_defaults(kind[1:-1], item) for item in value]
    known = KNOWN["types"].get(kind)
    if known is None or not isinstance(value, dict):
        return value
    defaults = {
        key: facts["default"] for key, facts in DOCUMENTED.get(kind, {}).items() if facts.get("default") is not None
    }
    return defaults | {
        key: _with_defaults(known[key].lstrip("!"), item) if key in known else item for key, item in value.items()
    }


def fixed(token: str, path: str) -> bool:
    """Whether a change at a path replaces the resource, according to the documentation."""
    kind = KNOWN["resources"][token]
    for key in re.sub(r"\[\d+\]", "", path).split("."):
        if DOCUMENTED.get(kind, {}).get(key, {}).get("fixed"):
            return True
        kind = KNOWN["types"].get(kind, {}).get(key, "").strip("!{}[]")
    return False


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _is_primitive(kind: str, value: Any) -> bool:
    """Whether a value has this type, or is a string that can be converted to it."""
    match kind:
        case "bool":
            return value in (True, False, "true", "false")
        case "str":
            return isinstance(value, str | int | float)
        case "int":
            return not isinstance(value, bool) and re.fullmatch(r"-?\d+", str(value)) is not None
        case _:
            return not isinstance(value, bool) and isinstance(value, int | float)


def at(inputs: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The known values at a path of the inputs, with their places. `[]` in the path stands for each item of a list."""
    first, _, rest = path.partition(".")
    key, each = first.removesuffix("[]"), first.endswith("[]")
    if not isinstance(inputs, dict) or key not in inputs or inputs[key] == wire.UNKNOWN:
        return
    found = inputs[key]
    pairs = [(f"{key}[{number}]", item) for number, item in enumerate(found)] if each else [(key, found)]
    for place, value in pairs:
        if rest:
            yield from ((f"{place}.{below}", item) for below, item in at(value, rest))
        elif not has_unknown(value):
            yield place, value


def has(inputs: Any, path: str) -> bool:
    """Whether the program sets the argument, even if its value is not known yet."""
    first, _, rest = path.partition(".")
    if not isinstance(inputs, dict) or first not in inputs:
        return False
    return has(inputs[first], rest) if rest else True


def failing(inputs: dict[str, Any], checks: dict[str, Check]) -> Iterator[Found]:
    for path, check in checks.items():
        for place, value in at(inputs, path):
            if wrong := check(value):
                yield place, f"{wrong}, found {json.dumps(value)}"


def colliding(inputs: dict[str, Any], apart: tuple[tuple[str, str], ...]) -> Iterator[Found]:
    for one, other in apart:
        if has(inputs, one) and has(inputs, other):
            yield one, f"conflicts with {other}; use only one of them"


def matching(pattern: str, what: str) -> Check:
    return lambda value: "" if re.fullmatch(pattern, str(value)) else f"expected {what}"


def one_of(*words: str) -> Check:
    return lambda value: "" if value in words else f"expected one of {', '.join(words)}"


def between(least: float, most: float = float("inf")) -> Check:
    what = f"at least {least:g}" if most == float("inf") else f"{least:g} to {most:g}"
    return lambda value: "" if least <= float(value) <= most else f"expected {what}"


def network(least: int = 0, most: int = 32, *, private: bool = False) -> Check:
    """A check for networks such as "10.0.0.0/20", with limits on the prefix length."""
    size = f"/{least}" if least == most else f"/{least} to /{most}"

    def check(value: Any) -> str:
        try:
            found = ipaddress.ip_network(value)
        except ValueError as error:
            return f"expected a network such as 10.0.0.0/20 ({error})"
        if "/" not in value:
            return "expected a network such as 10.0.0.0/20"
        if private and not any(found.subnet_of(block) for block in PRIVATE if found.version == 4):
            return "expected a network within 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16"
        return "" if least <= found.prefixlen <= most else f"expected a network of {size}"

    return check


PRIVATE = [ipaddress.IPv4Network(block) for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
SUBNETWORK = network(4, 29)


def network_or_size(value: Any) -> str:
    """A network, only its size such as "/14", or an empty string for the default size."""
    return "" if re.fullmatch(r"(/\d\d?)?", value) else network()(value)


def labels(value: dict[str, Any]) -> str:
    """Google Cloud labels, which differ from Kubernetes labels."""
    for key, text in value.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key) or not re.fullmatch(r"[a-z0-9_-]{0,63}", str(text)):
            return "expected up to 63 lower-case letters, digits, _ and - in keys and values; keys start with a letter"
    return "" if len(value) <= 64 else "expected at most 64 labels"


def node_labels(value: dict[str, Any]) -> str:
    part = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
    for key, text in value.items():
        if not re.fullmatch(rf"([a-z0-9.-]{{1,253}}/)?{part}", key) or not re.fullmatch(rf"({part})?", str(text)):
            return "expected Kubernetes labels: up to 63 letters, digits, ., _ and -"
    return ""


NAME = matching(
    r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?",
    "1 to 63 lower-case letters, digits and -, starting with a letter and not ending with -",
)
SHORT_NAME = matching(
    r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?",
    "1 to 40 lower-case letters, digits and -, starting with a letter and not ending with -",
)
ACCOUNT = matching(
    r"[a-z]([-a-z0-9]{4,28}[a-z0-9])",
    "6 to 30 lower-case letters, digits and -, starting with a letter and not ending with -",
)
PROJECT = matching(r"([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]", "a project ID, such as my-project")
REGION = matching(r"(.*/)?[a-z]+-[a-z]+\d+", "a region, such as us-central1")
ZONE = matching(r"(.*/)?[a-z]+-[a-z]+\d+-[a-z]", "a zone, such as us-central1-a")
LOCATION = matching(r"[a-z]+-[a-z]+\d+(-[a-z])?", "a region or a zone, such as us-central1 or us-central1-a")
MACHINE = matching(r"(.*/)?[a-z][a-z0-9]*(-[a-z0-9]+)+", "a machine type, such as e2-standard-4")
SERVICE = matching(r"[a-z0-9-]+(\.[a-z0-9-]+)+", "the name of an API, such as compute.googleapis.com")
ROLE = matching(
    r"(roles|(projects|organizations)/[^/]+/roles)/[A-Za-z0-9_.]+",
    "a role, such as roles/viewer or projects/my-project/roles/mine",
)
ROLE_ID = matching(r"[a-zA-Z0-9_.]{3,64}", "3 to 64 letters, digits, _ and .")
MEMBER = matching(
    r"(allUsers|allAuthenticatedUsers|[a-zA-Z]+:\S+)",
    "a member, such as serviceAccount:name@my-project.iam.gserviceaccount.com",
)
EMAIL = matching(r"default|[^@\s]+@[^@\s]+", "the e-mail address of a service account")
