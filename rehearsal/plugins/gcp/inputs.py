"""Inputs of the provider and of resources: validation, defaults and changes."""

import ipaddress
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

import values
from command import wire
from command.output import CommandError, Found, refusal
from gcp import checks, cloud
from gcp.kinds import CLUSTER, VM, Kind, last
from gcp.machines import not_heeded
from gcp.table import KINDS

DEFAULTS = "__defaults"  # lists the inputs that the plugin generated
HEEDED = {
    "accessToken",
    "addPulumiAttributionLabel",
    "credentials",
    "defaultLabels",
    "project",
    "region",
    "zone",
}
# Options of the engine, and options that have no effect without a network.
IGNORED = {
    "disableGlobalProjectWarning",
    "disableGooglePartnerName",
    "pluginDownloadURL",
    "requestReason",
    "requestTimeout",
    "skipRegionValidation",
    "userProjectOverride",
    "version",
    "__internal",
}


not_done = refusal("gcp", "use a real project with the official plugin")


def config_problems(config: dict[str, Any]) -> list[Found]:
    found = [(name, not_done(f"{name} of the provider")) for name in sorted(config.keys() - HEEDED - IGNORED)]
    wanted = {"project": checks.PROJECT, "region": checks.REGION, "zone": checks.ZONE, "defaultLabels": checks.labels}
    return [*found, *checks.failing(config, wanted)]


def configured(raw: wire.Properties) -> dict[str, Any]:
    """A provider's inputs. Values other than strings arrive as JSON."""
    config = wire.plain(raw)
    if isinstance(config.get("defaultLabels"), str) and config["defaultLabels"] != wire.UNKNOWN:
        config["defaultLabels"] = json.loads(config["defaultLabels"])
    return config


def problems(token: str, inputs: dict[str, Any], config: dict[str, Any]) -> list[Found]:
    """Problems with a resource's plain inputs, as (property, reason)."""
    if found := checks.shape(token, inputs):
        return found
    kind = KINDS[token]
    of_labels = {kind.labels: checks.labels} if kind.labels else {}
    found = [*checks.failing(inputs, kind.checks | of_labels), *checks.colliding(inputs, kind.apart)]
    if found:
        return found
    found += kind.rules(inputs)
    if inputs.get("cluster") != wire.UNKNOWN:
        for name in cloud.missing_places(kind, cloud.places(inputs, config)):
            found.append((name, f"is missing; set {name} here, or with `pulumi config set gcp:{name}`"))
    return found or list(refused(token, inputs))


def refused(token: str, inputs: dict[str, Any]) -> Iterator[Found]:
    """Inputs that are valid in a real project, but that a rehearsal does not support."""
    if token == VM and os.environ.get("DASKSTACK_REHEARSAL_MACHINES"):
        yield from ((place, not_done(what)) for place, what in not_heeded(inputs))
    if token != CLUSTER:
        return
    if "nodePools" in inputs:
        yield "nodePools", not_done("nodePools of a cluster (use container.NodePool)")
    elif inputs.get("removeDefaultNodePool") is not True and inputs.get("enableAutopilot") is not True:
        yield (
            "removeDefaultNodePool",
            not_done("a cluster that keeps its default pool (removeDefaultNodePool is not true)"),
        )
    for place, value in checks.at(inputs, "masterAuth.clientCertificateConfig.issueClientCertificate"):
        if value is True:
            yield place, not_done("client certificates of a cluster")


def complete(kind: Kind, raw: wire.Properties, old: wire.Properties, name: str) -> wire.Properties:
    """The inputs with a name, which is generated once if the program sets none."""
    if not kind.named or kind.named in raw or "namePrefix" in raw:
        return raw | {DEFAULTS: []}
    if kind.named in old.get(DEFAULTS, []):
        made = old[kind.named]
    else:
        made = f"{name.lower()[: kind.longest - 8]}-{secrets.token_hex(4)[:7]}"
    return raw | {kind.named: made, DEFAULTS: [kind.named]}


def changes(kind: Kind, old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, str], list[str], bool]:
    """Differences between plain inputs, those that replace, and whether to delete the old resource first."""
    was, then = given(cloud.over(old, kind.reported(old))), given(new)
    # Add blocks that exist on only one side to the other one with their defaults.
    before, after = comparable(kind, with_blocks(was, then)), comparable(kind, with_blocks(then, was))
    even = values.differences(with_blocks(before, after), with_blocks(after, before))
    found = {re.sub(r'\["(\[\d+\])"\]', r"\1", path): what for path, what in even.items()}
    fixed = [*kind.fixed, *(path for path in kind.growing if not is_growth(before.get(path), after.get(path)))]
    replacing = [
        path for path in found if values.touches(re.sub(r"\[\d+\]", "", path), fixed) or checks.fixed(kind.token, path)
    ]
    for name in kind.counted:
        if len(before.get(name, {})) != len(after.get(name, {})):
            replacing += [path for path in found if path.startswith(f"{name}[") and path not in replacing]
    named = bool(kind.named) and kind.named not in new.get(DEFAULTS, [])
    return found, replacing, bool(replacing) and named and old.get(kind.named) == new.get(kind.named)


def comparable(kind: Kind, inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs with defaults, with names instead of links, and with list items by index, so that equal inputs match."""

    def bare(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {key: bare(item, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return {f"[{number}]": bare(item, f"{path}[]") for number, item in enumerate(value)}
        return last(value) if path in kind.links and isinstance(value, str) else value

    return bare(cloud.whole(kind, inputs), "")


def with_blocks(inputs: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Add missing blocks of `like` as empty ones, so that their arguments are compared one by one."""
    blocks = {key: value for key, value in like.items() if value and isinstance(value, dict)}
    return {
        key: with_blocks(inputs.get(key, {}), blocks[key]) if isinstance(inputs.get(key, {}), dict) else inputs[key]
        for key in blocks
    } | {key: value for key, value in inputs.items() if key not in blocks}


def is_growth(old: Any, new: Any) -> bool:
    """Whether the new address range contains the old one, or the new size is larger."""
    if isinstance(old, int) and isinstance(new, int):
        return new >= old
    if not (isinstance(old, str) and isinstance(new, str)) or wire.UNKNOWN in (old, new):
        return False
    return ipaddress.ip_network(old).subnet_of(ipaddress.ip_network(new))


def refuse_to_stop(token: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Fail if a change requires stopping the machine, and the program does not allow it."""
    places = stops(token, changes(KINDS[token], old, new)[0])
    if places and new.get("allowStoppingForUpdate") is not True and new.get("desiredStatus") != "TERMINATED":
        raise CommandError(f"cannot change {places[0]} while the machine runs; set allowStoppingForUpdate to true")


def stops(token: str, found: Iterable[str]) -> list[str]:
    """The differences that require stopping the machine."""
    return [path for path in found if values.touches(re.sub(r"\[\d+\]", "", path), KINDS[token].stopping)]


def given(inputs: dict[str, Any]) -> dict[str, Any]:
    """Only the arguments, without the plugin's own keys."""
    return {key: value for key, value in inputs.items() if key != DEFAULTS}
