"""What a stack with `target: gke` may say."""

import difflib
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version
from pydantic import AfterValidator, Field

import lock
from settings import cost
from settings.common import (
    Conflict,
    Credentials,
    Environment,
    Limits,
    Listed,
    Networks,
    Place,
    Prices,
    Section,
    config_conflicts,
    lock_conflicts,
    memory,
    not_the_world,
    valid_argument,
    valid_memory,
)
from settings.google import GoogleCluster

JUPYTER_LOCK = "jupyter.lock"  # Jupyter's own packages, beside environment.lock's
CHARTS = Path(__file__).parents[1] / "charts"
# The official chart starts `dask-scheduler` and `dask-worker`, which distributed does not have any more from here on.
WITHOUT_COMMANDS = Version("2026.6.0")


def valid_cpu(found: float) -> float:
    # Kubernetes counts in thousandths; 16.1 * 1000 is not quite 16100.
    if not 0.001 <= found <= 10_000 or abs(round(found * 1000) - found * 1000) > 1e-6:
        raise ValueError(f"{found} is not a number of processors; write e.g. 1 or 0.5")
    return found


def valid_label(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError(f"{text!r} cannot be a name in Kubernetes; use up to 63 of a-z, 0-9 and -, e.g. dask")
    return text


def valid_size(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,4}[MGT]i", text):
        raise ValueError(f"{text!r} is not a volume's size; write e.g. 10Gi")
    return text


def valid_image(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._/:-]*(:[\w][\w.-]*|@sha256:[0-9a-f]{64})", text):
        raise ValueError(f"{text!r} is not an image with its tag; write e.g. ghcr.io/me/dask:1.4")
    return text


def valid_requirement(text: str) -> str:
    try:
        Requirement(text)
    except InvalidRequirement:
        raise ValueError(f"{text!r} is not a requirement; write e.g. dask-ml or dask-ml==2025.1.0") from None
    return text


def valid_package(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+._:=<>~-]*", text):
        raise ValueError(f"{text!r} is not a package's name; write e.g. libgomp1")
    return text


class ExistingCluster(Section):
    """A Kubernetes that is there already, found as kubectl finds it."""

    source: Literal["existing"] = Field(examples=["existing"])
    kubeconfig: str = "~/.kube/config"
    context: str | None = Field(None, examples=["kind-kind"])

    @property
    def path(self) -> Path:
        return Path(self.kubeconfig).expanduser().absolute()

    @property
    def is_there(self) -> bool:
        try:
            return self.path.is_file()
        except (OSError, RuntimeError):  # a name that is too long, or the home of a user who does not exist
            return False


class Pod(Section):
    """A kind of pod. `cpu` is in processors that it is sure to get; `memory` is its limit, too."""

    cpu: Annotated[float, Field(strict=False), AfterValidator(valid_cpu)] = Field(1.0, examples=[0.5])
    memory: Annotated[str, AfterValidator(valid_memory)] = "2 GiB"
    node_selector: dict[str, str] = Field({})
    tolerations: Annotated[tuple[dict[str, Any], ...], Listed] = Field((), examples=[[{"operator": "Exists"}]])
    service_account: Annotated[str, AfterValidator(valid_label)] | None = Field(None, examples=["dask"])


class Scheduler(Pod):
    cpu: Annotated[float, Field(strict=False), AfterValidator(valid_cpu)] = 0.5


class KubernetesWorkers(Pod):
    """`replicas` pods with one worker process each."""

    replicas: int = Field(3, ge=0, le=1000)
    threads: int | None = Field(None, ge=1, examples=[2])
    grace_period: int = Field(120, ge=30, le=3600)  # seconds to hand over tasks and results

    @property
    def threads_each(self) -> int:
        """Of each process; as many as it has processors where it is not said."""
        return self.threads or max(1, int(self.cpu))


class Jupyter(Pod):
    """A notebook server beside the cluster; `keep` leaves its volume when the stack is destroyed."""

    enabled: bool = True
    cpu: Annotated[float, Field(strict=False), AfterValidator(valid_cpu)] = 0.5
    storage: Annotated[str, AfterValidator(valid_size)] = "10Gi"
    keep: bool = False


class Packages(Section):
    """What scheduler, workers and Jupyter have beside the lock, which these cannot change."""

    pip: Annotated[tuple[Annotated[str, AfterValidator(valid_requirement)], ...], Listed] = Field(
        (), examples=[["dask-ml"]]
    )
    conda: Annotated[tuple[Annotated[str, AfterValidator(valid_package)], ...], Listed] = Field(
        (), examples=[["lightgbm"]]
    )
    apt: Annotated[tuple[Annotated[str, AfterValidator(valid_package)], ...], Listed] = Field(
        (), examples=[["libgomp1"]]
    )


class Exposure(Section):
    """A load balancer, for these networks alone; `internal`: without an address on the internet."""

    sources: Networks = Field(min_length=1, examples=[["203.0.113.0/24"]])
    internal: bool = False


class Expose(Section):
    """What can be reached without a port-forward."""

    scheduler: Exposure | None = Field(None, examples=[{"sources": ["203.0.113.0/24"]}])
    dashboard: Exposure | None = Field(None, examples=[{"sources": ["203.0.113.0/24"]}])
    jupyter: Exposure | None = Field(None, examples=[{"sources": ["203.0.113.0/24"]}])


class Namespace(Section):
    """Where the release is; without a name `dask-<stack>`. One that is there already is used with `create: false`."""

    name: Annotated[str, AfterValidator(valid_label)] | None = Field(None, examples=["dask"])
    create: bool = True


ARGUMENTS = {
    "--nthreads": "use workers.threads",
    "--memory-limit": "use workers.memory",
    "--protocol|--tls-.*": "use dask.tls",
    "--(port|dashboard-address|contact-address|host|interface|listen-address|local-directory|name|nworkers|pid-file"
    "|scheduler-file)": "leave it out",
}
Arguments = Annotated[tuple[Annotated[str, AfterValidator(partial(valid_argument, ARGUMENTS))], ...], Listed]


class KubernetesDask(Section):
    """Dask's own settings; `config` is what a YAML file of Dask's would hold."""

    scheduler_args: Arguments = Field((), examples=[["--preload", "my.module"]])
    worker_args: Arguments = Field((), examples=[["--preload", "my.module"]])
    config: dict[str, Any] = Field({})
    env: dict[str, str] = Field({})
    tls: bool = True


CONFIG = {r"distributed\.comm\.(default-scheme|require-encryption|tls(\..*)?)": "use dask.tls"}


class Gke(Section):
    """A cluster in Kubernetes, from a Helm release."""

    target: Literal["gke"] = Field(examples=["gke"])
    cluster: ExistingCluster | GoogleCluster = Field(discriminator="source", examples=[{"source": "existing"}])
    namespace: Namespace = Namespace()
    chart: Literal["own", "official"] = "own"
    image: Annotated[str, AfterValidator(valid_image)] | None = Field(None, examples=["ghcr.io/me/dask:1.4"])
    environment: Environment = Environment()
    packages: Packages = Packages()
    scheduler: Scheduler = Scheduler()
    workers: KubernetesWorkers = KubernetesWorkers()
    jupyter: Jupyter = Jupyter()
    expose: Expose = Expose()
    dask: KubernetesDask = KubernetesDask()
    credentials: Credentials = Credentials()
    limits: Limits = Limits()
    prices: Prices = Field({}, examples=[{"n1-standard-4": 0.15}])
    values: dict[str, Any] = Field({})
    wait: int = Field(600, ge=30, le=7200)  # seconds for all pods to be ready

    def completed(self) -> "Gke":
        """The official chart has no TLS, which `conflicts` refuses where it is asked for."""
        if self.chart == "own":
            return self
        return self.model_copy(update={"dask": self.dask.model_copy(update={"tls": False})})

    @property
    def nodes(self) -> int | None:
        """Nodes that the workers fill on a cluster of the stack's own, None where a node is too small for one."""
        pool, gib = self.cluster.workers, memory(self.workers.memory) / 2**30
        return cost.nodes(self.workers.replicas, self.workers.cpu, gib, cost.machine(pool.machine))

    @property
    def most_nodes(self) -> int:
        """Where it is not said, one for each worker, and one more while they are replaced."""
        return self.cluster.workers.max_nodes or self.workers.replicas + 1

    def bill(self) -> list[cost.Item]:
        """What a cluster of the stack's own costs, part by part."""
        pool, others = self.cluster.workers, cost.prices()["others"] | self.prices
        up = min(max(self.nodes or 0, pool.min_nodes), self.most_nodes)
        idle = pool.min_nodes if self.limits.idle else up
        items = [
            cost.Item("the cluster's fee", others["cluster"], others["cluster"]),
            *cost.pool("scheduler and Jupyter", self.cluster.system, 1, 1, self.prices),
            *cost.pool("workers", pool, up, idle, self.prices),
        ]
        if self.jupyter.enabled:
            volume = memory(self.jupyter.storage) / 2**30 * others["pd-balanced"] / cost.HOURS
            items.append(cost.Item(f"{self.jupyter.storage} for notebooks", volume, volume))
        if self.cluster.hardening.private_nodes and not self.cluster.network:
            way_out = [others["address"] + others["nat"] * (1 + count) for count in (up, idle)]
            items.append(cost.Item("the nodes' way out, Cloud NAT", *way_out))
        if balancers := sum(getattr(self.expose, name) is not None for name in Expose.model_fields):
            price = balancers * others["loadBalancer"]
            items.append(cost.Item(f"{balancers} load balancers", price, price))
        return items

    def conflicts(self, folder: Path) -> Iterator[Conflict]:
        """Where settings contradict each other, the lock or the chart."""
        place: Place
        if isinstance(self.cluster, GoogleCluster):
            yield from self.cluster.conflicts()
            yield from _cost_conflicts(self)
        elif not self.cluster.is_there:
            place = ("cluster", "kubeconfig")
            text = f"{self.cluster.kubeconfig} is not a file; write the one that kubectl uses, e.g. ~/.kube/config"
            yield place, [place], text
        exposures = {name: getattr(self.expose, name) for name in Expose.model_fields}
        yield from not_the_world({("expose", n, "sources"): each.sources for n, each in exposures.items() if each})
        if self.expose.jupyter and not self.jupyter.enabled:
            place = ("expose", "jupyter")
            yield place, [place, ("jupyter", "enabled")], "there is no Jupyter; set jupyter.enabled: true"
        if self.jupyter.keep and self.namespace.create:
            place = ("jupyter", "keep")
            text = (
                "the volume would go with its namespace, which this stack makes and removes; make one yourself, and"
                " write its name with namespace.create: false"
            )
            yield place, [place, ("namespace",)], text
        yield from config_conflicts(self.dask.config, CONFIG)
        yield from lock_conflicts(self.environment, folder)
        yield from unknown_values(self.values, chart_values(self.chart), ("values",))
        if self.chart == "official":
            yield from _official_conflicts(self, folder)
        else:
            yield from _own_conflicts(self, folder)


def _cost_conflicts(cluster: Gke) -> Iterator[Conflict]:
    """Nodes that are too small, prices of what there is not, and a stack that costs more than it may."""
    pool = cluster.cluster.workers
    if cluster.nodes is None:
        place: Place = ("workers",)
        cpus, gib = cost.allocatable(cost.machine(pool.machine))
        text = (
            f"one of {cluster.workers.cpu:g} processors and {cluster.workers.memory} does not fit on a"
            f" {pool.machine}, which has {cpus:.1f} and {gib:.1f} GiB for it; write less, or a larger"
            " cluster.workers.machine"
        )
        yield place, [place, ("cluster", "workers", "machine")], text
        return
    machines = {cluster.cluster.system.machine, pool.machine}
    if pool.accelerators:
        machines.add(pool.accelerators.type)
    yield from cost.conflicts(cluster.limits, cluster.bill(), cluster.prices, machines)


def _own_conflicts(cluster: Gke, folder: Path) -> Iterator[Conflict]:
    for kind in ("conda", "apt"):
        if getattr(cluster.packages, kind):
            place = ("packages", kind)
            text = (
                f"our chart's pods are not root, so {kind} cannot install anything in them; put it into an image of"
                " your own and name that as image, or write chart: official"
            )
            yield place, [place, ("chart",)], text
    if cluster.jupyter.enabled and not cluster.image:
        try:
            here = lock.read(folder / cluster.environment.lock, cluster.environment.python).packages
        except lock.LockError:
            return  # reported already
        try:
            jupyter = lock.read(folder / JUPYTER_LOCK, cluster.environment.python, dask=False).packages
        except lock.LockError as error:
            for setting, text in error.problems:
                place = ("environment", setting)
                yield place, [place, ("jupyter", "enabled")], f"{text}; or write jupyter: {{enabled: false}}"
            return
        if other := [name for name in jupyter if here.get(name, jupyter[name]) != jupyter[name]]:
            place = ("environment", "lock")
            text = f"{cluster.environment.lock} and {JUPYTER_LOCK} pin other versions of {', '.join(other)}; make lock"
            yield place, [place, ("jupyter", "enabled")], text


def _official_conflicts(cluster: Gke, folder: Path) -> Iterator[Conflict]:
    """What the official chart cannot do."""

    def refuse(place: Place, what: str) -> Conflict:
        return place, [place, ("chart",)], f"the official chart has no {what}; write chart: own, or leave it out"

    for name in ("dashboard", "jupyter"):
        if getattr(cluster.expose, name):
            yield refuse(("expose", name), "source ranges for it")
    if "tls" in cluster.dask.model_fields_set and cluster.dask.tls:
        yield refuse(("dask", "tls"), "TLS of its own")
    if cluster.jupyter.keep:
        yield refuse(("jupyter", "keep"), "volume for notebooks")
    if cluster.limits.idle:
        yield refuse(("limits", "idle"), "way to let workers go")
    try:
        dask = lock.read(folder / cluster.environment.lock, cluster.environment.python).packages["dask"]
    except lock.LockError:
        return
    if Version(dask) >= WITHOUT_COMMANDS:
        place = ("environment", "lock")
        text = (
            f"has dask {dask}, and the official chart starts commands that Dask {WITHOUT_COMMANDS} dropped; write"
            " chart: own, or a lock with an older Dask, such as official.lock with python: \"3.10\""
        )
        yield place, [place, ("chart",)], text


def unknown_values(values: dict[str, Any], known: dict[str, Any], place: Place) -> Iterator[Conflict]:
    """Keys that a chart does not know; `known` has those that it does, at `place`."""
    for key, value in values.items():
        here = (*place, key)
        if key not in known:
            nearest = difflib.get_close_matches(key, known, 1, 0.4)
            hint = f"did you mean {nearest[0]}?" if nearest else f"the keys here are {', '.join(known)}"
            yield here, [here, ("chart",)], f"is not a key of the chart; {hint}"
        elif isinstance(value, dict) and isinstance(known[key], dict) and key not in FREE:
            yield from unknown_values(value, known[key], here)


# Objects of Kubernetes' own in a chart's values: the API server knows what is in them.
FREE = {
    "affinity", "annotations", "config", "disruptionBudget", "livenessProbe", "nodeSelector", "podSecurityContext",
    "readinessProbe", "resources", "securityContext", "serviceAnnotations", "startupProbe", "strategy",
}  # fmt: skip


def chart_values(chart: str) -> dict[str, Any]:
    """Every key that a chart knows, with its default."""
    if chart == "own":
        return yaml.safe_load((CHARTS / "dask" / "values.yaml").read_text())
    return json.loads((CHARTS / "official.json").read_text())
