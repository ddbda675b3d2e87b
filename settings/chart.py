"""What a stack may say to the charts: their values, and what the official one cannot do."""

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
    Conflict,
    Place,
    is_world,
    shown,
    valid_argument,
    valid_network,
    valid_variable,
)
from settings.pods import ARGUMENTS

if TYPE_CHECKING:
    from settings.kubernetes import KubernetesTarget


CHARTS = Path(__file__).parents[1] / "charts"
# The official chart starts `dask-scheduler` and `dask-worker`, which distributed does not have any more from here on.
WITHOUT_COMMANDS = Version("2026.6.0")


def official_conflicts(cluster: "KubernetesTarget", folder: Path) -> Iterator[Conflict]:
    """What the official chart cannot do."""

    def refuse(place: Place, what: str) -> Conflict:
        return Conflict(place, f"the official chart has no {what}; write chart: own, or leave it out")

    for name in ("dashboard", "jupyter"):
        if getattr(cluster.expose, name):
            yield refuse(("expose", name), "source ranges for it")
    if "tls" in cluster.dask.model_fields_set and cluster.dask.tls:
        yield refuse(("dask", "tls"), "TLS of its own")
    if cluster.jupyter.keep:
        yield refuse(("jupyter", "keep"), "volume for notebooks")
    if cluster.limits.idle:
        yield refuse(("limits", "idle"), "way to let workers go")
    if cluster.egress:
        yield refuse(("egress",), "network policies")
    try:
        dask = lock.read(folder / cluster.environment.lock, cluster.environment.python).packages["dask"]
    except lock.LockError:
        return
    if Version(dask) >= WITHOUT_COMMANDS:
        place = ("environment", "lock")
        text = (
            f"has dask {dask}, and the official chart starts commands that Dask {WITHOUT_COMMANDS} dropped; write"
            ' chart: own, or a lock with an older Dask, such as charts/official.lock with python: "3.10"'
        )
        yield Conflict(place, text)


# What a stack says elsewhere, or what the check and `daskstack.connect` rely on. Patterns of values' places.
VALUES = {
    r"tls|restart|secretEnv|environment\.(lock|uv)|jupyter\.(lock|passwordSecret)": "leave it out",
    r"config": "use dask.config",
    r"idleTimeout": "use limits.idle",
    r"(full)?nameOverride|(scheduler|webUI|worker|jupyter)\.(name|servicePort)": "leave it out",
    r"scheduler\.(enabled|replicas)": "leave it out",
    r"(worker|additional_worker_groups\.\d+)\.custom_scheduler_url": "leave it out",
    r"environment\.extra": "use packages.pip",
    r"worker\.replicas": "use workers.replicas",
    r"jupyter\.enabled": "use jupyter.enabled",
    r"jupyter\.storage\.(size|keep)": "use jupyter.storage and jupyter.keep",
    r"scheduler\.extraArgs": "use dask.schedulerArgs",
    r"worker\.extraArgs": "use dask.workerArgs",
    r"scheduler\.(serviceType|sourceRanges)": "use expose.scheduler",
    r"webUI\.(serviceType|sourceRanges)": "use expose.dashboard",
    r"jupyter\.(serviceType|sourceRanges)": "use expose.jupyter",
    r"webUI\.ingress\.enabled": "the dashboard has no login, so use expose.dashboard or a port-forward",
}


def value_conflicts(cluster: "KubernetesTarget") -> Iterator[Conflict]:
    """`values` that the chart does not know, or that would get round the settings."""
    unknown = list(unknown_values(cluster.values, default_values(cluster.chart), ("values",)))
    yield from unknown
    wrong = list(_schema_conflicts(cluster.values, cluster.chart))
    yield from wrong
    if unknown or wrong:
        return
    for place, value in _places(cluster.values):
        here = ("values", *place)
        name = ".".join(map(str, place))
        for pattern, remedy in VALUES.items():
            if re.fullmatch(pattern, name):
                yield Conflict(here, f"is set by the cluster; {remedy}")
        for problem in _value_problems(place, value):
            yield Conflict(here, problem)
    ingress = cluster.values.get("jupyter", {}).get("ingress") or {}
    if ingress.get("enabled") and not ingress.get("tls"):
        place = ("values", "jupyter", "ingress")
        yield Conflict(place, "has no TLS, so the password would cross the network as text; write tls: true with it")


def _value_problems(place: Place, value: Any) -> Iterator[str]:
    """What no value may do: open something to the world, change how Dask encrypts, or take Jupyter's login away."""
    if isinstance(value, str) and place[:2] != ("networkPolicy", "sources"):
        try:
            for word in re.split(r"[\s,;]+", value):
                if re.fullmatch(r"[0-9.]+/\d+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*/\d+", word):
                    valid_network(word)
        except ValueError as error:
            yield str(error)
        login = re.search(r"password|token|allow_unauthenticated|identity_?provider", value, re.IGNORECASE)
        if login and place[0] == "jupyter" and place[1] in ("command", "args", "extraConfig"):
            yield "is about Jupyter's login, which the cluster sets; use the secret dask:jupyterPassword"
    match place:
        case (*_, "env", int(), "name"):
            try:
                valid_variable(value)
            except ValueError as error:
                yield str(error)
        case ("additional_worker_groups", int(), "extraArgs", int()):
            try:
                valid_argument(ARGUMENTS, value)
            except ValueError as error:
                yield str(error)
        case ("networkPolicy", "sources"):
            try:
                world = is_world([ipaddress.ip_network(valid_network(each)) for each in value or ()])
            except ValueError as error:
                yield str(error)
            else:
                if world:
                    yield "these cover half of the world or more together; name only the networks that need it"


def _places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Everything in `value`, with its place."""
    if place:
        yield place, value
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(inner, (*place, key))


def _schema_conflicts(values: dict[str, Any], chart: str) -> Iterator[Conflict]:
    """Values of wrong types; keys that are not known are not judged here. The official chart has no schema."""
    import jsonschema  # takes a tenth of a second

    schema = json.loads((CHARTS / "dask" / "values.schema.json").read_text())
    if chart == "official":
        schema = {"type": "object", "properties": {key: schema["properties"][key] for key in OFFICIAL_CHECKED}}
    for error in jsonschema.Draft7Validator(schema).iter_errors(values):
        if error.validator != "additionalProperties":
            here = ("values", *error.absolute_path)
            yield Conflict(here, f"{shown(error.instance)} is not what the chart takes here: {error.message}")


def unknown_values(values: dict[str, Any], known: dict[str, Any], place: Place) -> Iterator[Conflict]:
    """Keys that a chart does not know; `known` has those that it does, at `place`."""
    for key, value in values.items():
        here = (*place, key)
        if key not in known:
            nearest = difflib.get_close_matches(key, known, 1, 0.4)
            hint = f"did you mean {nearest[0]}?" if nearest else f"the keys here are {', '.join(known)}"
            yield Conflict(here, f"is not a key of the chart; {hint}")
        elif key == "additional_worker_groups" and isinstance(value, list):
            for index, group in enumerate(value):
                if isinstance(group, dict):
                    yield from unknown_values(group, known["worker"], (*here, index))
        elif isinstance(value, dict) and isinstance(known[key], dict) and key not in FREE:
            yield from unknown_values(value, known[key], here)


# Of the official chart's values, those that ours takes in the same form.
OFFICIAL_CHECKED = ("additional_worker_groups", "worker")

# Objects of Kubernetes' own in a chart's values: the API server knows what is in them.
FREE = {
    "affinity", "annotations", "config", "disruptionBudget", "livenessProbe", "nodeSelector", "podSecurityContext",
    "readinessProbe", "resources", "securityContext", "serviceAnnotations", "startupProbe", "strategy",
}  # fmt: skip


@cache
def default_values(chart: str) -> dict[str, Any]:
    """Every key that a chart knows, with its default; not to be changed."""
    if chart == "own":
        return yaml.safe_load((CHARTS / "dask" / "values.yaml").read_text())
    return json.loads((CHARTS / "official.json").read_text())
