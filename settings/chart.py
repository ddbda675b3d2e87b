"""Checks of a stack against its Helm chart: the chart's values, and the limits of the official chart."""

import difflib
import ipaddress
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from packaging.version import Version

from settings import lock
from settings.common import (
    WORLD_TOGETHER,
    Conflict,
    Place,
    covers_the_world,
    format_value,
    valid_network,
    valid_variable,
)
from settings.dask_arguments import PODS_ARGUMENTS, valid_argument

if TYPE_CHECKING:
    from settings.kubernetes import KubernetesTarget


CHARTS = Path(__file__).parents[1] / "charts"
# The official chart starts `dask-scheduler` and `dask-worker`, which distributed dropped in this version.
WITHOUT_COMMANDS = Version("2026.6.0")


def official_conflicts(cluster: "KubernetesTarget", folder: Path) -> Iterator[Conflict]:
    """Settings that the official chart cannot fulfil."""

    def unsupported(place: Place, feature: str) -> Conflict:
        return Conflict(place, f"the official chart does not support {feature}; remove it, or write chart: own")

    for name in ("dashboard", "jupyter"):
        if getattr(cluster.expose, name):
            yield unsupported(("expose", name), "source ranges for this service")
    if "tls" in cluster.dask.model_fields_set and cluster.dask.tls:
        yield unsupported(("dask", "tls"), "TLS")
    if cluster.jupyter.keep:
        yield unsupported(("jupyter", "keep"), "a volume for notebooks")
    if cluster.environment.system:
        yield Conflict(
            ("environment", "system"), "the official chart installs packages.apt; use that, or write chart: own"
        )
    if cluster.environment.authority:
        yield unsupported(("environment", "authority"), "a private authority")
    if cluster.data.size:
        yield unsupported(("data", "size"), "a shared directory")
    if cluster.data.buckets:
        yield unsupported(("data", "buckets"), "accounts for buckets")
    if "spill" in cluster.workers.model_fields_set:
        yield unsupported(("workers", "spill"), "a folder for spilled data")
    if cluster.limits.idle:
        yield unsupported(("limits", "idle"), "scaling to zero")
    if cluster.workers.bounds:
        yield unsupported(("workers", "max"), "bounds of the number of workers")
    if cluster.workers.groups:
        yield unsupported(("workers", "groups"), "groups of workers with settings of their own")
    if cluster.egress:
        yield unsupported(("egress",), "network policies")
    if cluster.dask.ports.libraries:
        yield unsupported(("dask", "ports", "libraries"), "network policies")
    try:
        locked = lock.read(folder / cluster.environment.lock, cluster.environment.python)
    except lock.LockError:
        return
    if locked.wheels:
        names = ", ".join(wheel.name for wheel in locked.wheels)
        yield unsupported(("environment", "lock"), f"packages that no index has: {names}")
    dask = locked.packages["dask"]
    if Version(dask) >= WITHOUT_COMMANDS:
        place = ("environment", "lock")
        text = (
            f"pins dask {dask}, but the official chart starts commands that Dask {WITHOUT_COMMANDS} removed; write"
            ' chart: own, or a lock with an older Dask, such as charts/official.lock with python: "3.10"'
        )
        yield Conflict(place, text)


# Chart values that the settings control, or that the check and `daskstack.connect` rely on: pattern and remedy.
RESERVED_VALUES = {
    r"tls|restart|secretEnv|environment\.(lock|uv|wheels)|jupyter\.(lock|passwordSecret)": "remove it",
    r"config": "use dask.config",
    r"idleTimeout": "use limits.idle",
    r"bounds\.\w+": "use workers.min and workers.max",
    r"(worker|additional_worker_groups\.\d+)\.bounds\..+": "use min and max of workers.groups",
    r"(full)?nameOverride|(scheduler|webUI|worker|jupyter)\.(name|servicePort)": "remove it",
    r"scheduler\.(enabled|replicas)": "remove it",
    r"(worker|additional_worker_groups\.\d+)\.custom_scheduler_url": "remove it",
    r"networkPolicy\.libraries": "use dask.ports.libraries",
    r"networkPolicy\.metadata": "use data.buckets or serviceAccount",
    r"environment\.authority": "use environment.authority",
    r"environment\.extra": "use packages.pip",
    r"environment\.system": "use environment.system",
    r"worker\.replicas": "use workers.replicas",
    r"jupyter\.enabled": "use jupyter.enabled",
    r"data\.\w+": "use data",
    r"worker\.spill\.\w+": "use workers.spill",
    r"jupyter\.storage\.(size|keep)": "use jupyter.storage and jupyter.keep",
    r"scheduler\.extraArgs": "use dask.schedulerArgs",
    r"worker\.extraArgs": "use dask.workerArgs",
    r"scheduler\.(serviceType|sourceRanges)": "use expose.scheduler",
    r"webUI\.(serviceType|sourceRanges)": "use expose.dashboard",
    r"jupyter\.(serviceType|sourceRanges)": "use expose.jupyter",
    r"webUI\.ingress\.enabled": "use expose.dashboard or a port-forward, because the dashboard has no login",
}


def value_conflicts(cluster: "KubernetesTarget") -> Iterator[Conflict]:
    """Entries of `values` that the chart does not know, or that would bypass the settings."""
    unknown = list(unknown_values(cluster.values, default_values(cluster.chart), ("values",)))
    yield from unknown
    wrong = list(_schema_conflicts(cluster.values, cluster.chart))
    yield from wrong
    if unknown or wrong:
        return
    for place, value in _places(cluster.values):
        here = ("values", *place)
        name = ".".join(map(str, place))
        for pattern, remedy in RESERVED_VALUES.items():
            if re.fullmatch(pattern, name):
                yield Conflict(here, f"is set by this program; {remedy}")
        for problem in _value_problems(place, value, cluster.chart):
            yield Conflict(here, problem)
    ingress = cluster.values.get("jupyter", {}).get("ingress") or {}
    if ingress.get("enabled") and not ingress.get("tls"):
        place = ("values", "jupyter", "ingress")
        yield Conflict(place, "has no TLS, so the password would be sent in plain text; write tls: true with it")


# What installs packages instead of these variables, by chart.
PACKAGES = {
    "EXTRA_PIP_PACKAGES": {"own": "packages.pip", "official": "packages.pip"},
    "EXTRA_CONDA_PACKAGES": {"own": "environment.in and `daskstack lock`", "official": "packages.conda"},
    "EXTRA_APT_PACKAGES": {"own": "environment.system", "official": "packages.apt"},
}


def _value_problems(place: Place, value: Any, chart: str) -> Iterator[str]:
    """Reject values that open a port to the internet, change Dask's encryption, or disable Jupyter's login."""
    if isinstance(value, str) and place[:2] != ("networkPolicy", "sources"):
        try:
            for word in re.split(r"[\s,;]+", value):
                if re.fullmatch(r"[0-9.]+/\d+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*/\d+", word):
                    valid_network(word)
        except ValueError as error:
            yield str(error)
        login = re.search(r"password|token|allow_unauthenticated|identity_?provider", value, re.IGNORECASE)
        if login and place[0] == "jupyter" and place[1] in ("command", "args", "extraConfig"):
            yield "changes Jupyter's login, which this program sets; use the secret dask:jupyterPassword"
    match place:
        case (*_, "image", "dask_worker") if chart == "own" and value == "dask-worker":
            yield f"Dask {WITHOUT_COMMANDS} removed this command; write dask worker"
        case (*_, "env", int(), "name") if value in PACKAGES:
            yield f"{value} would install nothing, or others than the lock pins; use {PACKAGES[value][chart]}"
        case (*_, "env", int(), "name"):
            try:
                valid_variable(value)
            except ValueError as error:
                yield str(error)
        case ("additional_worker_groups", int(), "extraArgs", int()):
            try:
                valid_argument(PODS_ARGUMENTS, value)
            except ValueError as error:
                yield str(error)
        case ("networkPolicy", "sources"):
            try:
                world = covers_the_world([ipaddress.ip_network(valid_network(each)) for each in value or ()])
            except ValueError as error:
                yield str(error)
            else:
                if world:
                    yield WORLD_TOGETHER


def _places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every nested value with its place."""
    if place:
        yield place, value
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(inner, (*place, key))


def _schema_conflicts(values: dict[str, Any], chart: str) -> Iterator[Conflict]:
    """Values of the wrong type. `unknown_values` checks the keys.

    The official chart has no schema, so the parts that both charts share are checked against ours.
    """
    import jsonschema  # importing it takes 0.1 s

    schema = json.loads((CHARTS / "dask" / "values.schema.json").read_text())
    if chart == "official":
        schema = {"type": "object", "properties": {key: schema["properties"][key] for key in OFFICIAL_CHECKED}}
    for error in jsonschema.Draft7Validator(schema).iter_errors(values):
        if error.validator != "additionalProperties":
            here = ("values", *error.absolute_path)
            found = format_value(error.instance)
            yield Conflict(here, f"{found} does not match the chart's schema; correct it: {error.message}")


def unknown_values(values: dict[str, Any], known: dict[str, Any], place: Place) -> Iterator[Conflict]:
    """Keys in `values` that the chart does not have. `known` holds the chart's keys at `place`."""
    for key, value in values.items():
        here = (*place, key)
        if key not in known:
            nearest = difflib.get_close_matches(key, known, 1, 0.4)
            hint = f"did you mean {nearest[0]}?" if nearest else f"the keys here are {', '.join(known)}"
            yield Conflict(here, f"unknown key of the chart; {hint}")
        elif key == "additional_worker_groups" and isinstance(value, list):
            for index, group in enumerate(value):
                if isinstance(group, dict):
                    yield from unknown_values(group, known["worker"], (*here, index))
        elif isinstance(value, dict) and isinstance(known[key], dict) and key not in KUBERNETES_OBJECTS:
            yield from unknown_values(value, known[key], here)


# Values that have the same form in both charts.
OFFICIAL_CHECKED = ("additional_worker_groups", "worker")

# Values that hold Kubernetes objects; the API server validates their contents.
KUBERNETES_OBJECTS = {
    "affinity", "annotations", "config", "disruptionBudget", "livenessProbe", "nodeSelector", "podSecurityContext",
    "readinessProbe", "resources", "securityContext", "serviceAnnotations", "startupProbe", "strategy",
}  # fmt: skip


@cache
def default_values(chart: str) -> dict[str, Any]:
    """All keys of a chart with their defaults. Callers must not modify the result, which is cached."""
    if chart == "own":
        return yaml.safe_load((CHARTS / "dask" / "values.yaml").read_text())
    return json.loads((CHARTS / "official.json").read_text())
