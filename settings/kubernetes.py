"""What a stack with `target: kubernetes` may say."""

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import AfterValidator, Field

from settings import cost, lock
from settings.chart import official_conflicts, value_conflicts
from settings.common import (
    OPEN_CONFIG,
    Conflict,
    Credentials,
    Environment,
    Limits,
    Networks,
    Place,
    Prices,
    Section,
    config_conflicts,
    lock_conflicts,
    memory,
    not_the_world,
    valid_variable,
)
from settings.gke import GkeSource
from settings.gke_cost import cost_conflicts
from settings.pods import Arguments, Expose, Jupyter, KubernetesWorkers, Packages, Scheduler, valid_image, valid_label

JUPYTER_LOCK = "charts/jupyter.lock"  # Jupyter's own packages, beside environment.lock's


class KubeconfigSource(Section):
    """A Kubernetes that is there already, found as kubectl finds it."""

    source: Literal["existing"] = Field(examples=["existing"])
    """A Kubernetes that exists, found as kubectl finds it."""
    kubeconfig: str = "~/.kube/config"
    """The kubeconfig file."""
    context: str | None = Field(None, examples=["kind-kind"])
    """Its context; by default the one that is current at the first `up`."""

    @property
    def path(self) -> Path:
        return Path(self.kubeconfig).expanduser().absolute()

    @property
    def current(self) -> str:
        """The context that kubectl would choose now, empty where there is none."""
        try:
            found = yaml.safe_load(self.path.read_text())["current-context"]
        except (OSError, TypeError, KeyError, ValueError, yaml.YAMLError):
            return ""
        return found if isinstance(found, str) else ""

    @property
    def is_there(self) -> bool:
        try:
            return self.path.is_file()
        except (OSError, RuntimeError):  # a name that is too long, or the home of a user who does not exist
            return False


class Namespace(Section):
    """Where the release is; without a name `dask-<stack>`. One that is there already is used with `create: false`."""

    name: Annotated[str, AfterValidator(valid_label)] | None = Field(None, examples=["dask"])
    """The namespace; `dask-<stack>` by default."""
    create: bool = True
    """`false` uses a namespace that exists, and leaves it there."""


class KubernetesDask(Section):
    """Dask's own settings; `config` is what a YAML file of Dask's would hold."""

    scheduler_args: Arguments = Field((), examples=[["--preload", "my.module"]])
    """Further arguments of `dask scheduler`."""
    worker_args: Arguments = Field((), examples=[["--preload", "my.module"]])
    """Further arguments of `dask worker`."""
    config: dict[str, Any] = Field({})
    """Dask configuration, as in Dask's own YAML files."""
    env: dict[Annotated[str, AfterValidator(valid_variable)], str] = Field({}, examples=[{"OMP_NUM_THREADS": "1"}])
    """Environment variables of scheduler, workers and notebooks."""
    tls: bool = True
    """Mutual TLS between scheduler, workers and clients. The official chart has none."""


CONFIG = {r"(distributed\.comm\.)?(default-scheme|require-encryption|tls(\..*)?)": "use dask.tls", **OPEN_CONFIG}


class KubernetesTarget(Section):
    """A cluster in Kubernetes, from a Helm release."""

    target: Literal["kubernetes"] = Field(examples=["kubernetes"])
    """A cluster in Kubernetes, from a Helm release."""
    cluster: KubeconfigSource | GkeSource = Field(discriminator="source", examples=[{"source": "existing"}])
    """Which Kubernetes."""
    namespace: Namespace = Namespace()
    """Where the release is installed."""
    chart: Literal["own", "official"] = "own"
    """`own`: this project's chart; `official`: `dask/dask` from https://helm.dask.org, which cannot run Dask 2026.6 or
    newer.
    """
    image: Annotated[str, AfterValidator(valid_image)] | None = Field(None, examples=["ghcr.io/me/dask:1.4"])
    """An image, with its tag, that has the environment already. By default a slim Python image that installs the lock
    at start.
    """
    environment: Environment = Environment()
    """The Python packages of every process."""
    packages: Packages = Packages()
    """Packages in addition to the lock."""
    scheduler: Scheduler = Scheduler()
    """The scheduler's pod."""
    workers: KubernetesWorkers = KubernetesWorkers()
    """The workers' pods."""
    jupyter: Jupyter = Jupyter()
    """The notebook server's pod."""
    expose: Expose = Expose()
    """What can be reached without a port-forward."""
    egress: Networks = Field((), examples=[["10.2.0.0/24"]])
    """Private networks that pods may reach besides the internet, such as a package index's."""
    dask: KubernetesDask = KubernetesDask()
    """Dask's own settings."""
    credentials: Credentials = Credentials()
    """Keys and certificates."""
    limits: Limits = Limits()
    """When workers stop, and what the stack may cost."""
    prices: Prices = Field({}, examples=[{"n1-standard-4": 0.15}])
    """Your own prices in US dollars per hour, by name; list prices by default."""
    values: dict[str, Any] = Field({})
    """Further values of the chart, merged last. They are checked against its schema, and refused where they contradict
    a setting.
    """
    wait: int = Field(600, ge=30, le=7200)
    """Seconds for all pods to become ready."""

    def completed(self) -> "KubernetesTarget":
        """The official chart has no TLS, which `conflicts` refuses where it is asked for."""
        if self.chart == "own":
            return self
        return self.model_copy(update={"dask": self.dask.model_copy(update={"tls": False})})

    @property
    def replicas(self) -> int:
        """Workers of all groups."""
        groups = self.values.get("additional_worker_groups") or []
        # A group without a number has as many as the workers.
        return self.workers.replicas + sum(group.get("replicas", self.workers.replicas) for group in groups)

    @property
    def nodes(self) -> int | None:
        """Nodes that the workers fill on a cluster of the stack's own, None where a node is too small for one."""
        pool, gib = self.cluster.workers, memory(self.workers.memory) / 2**30
        gpus = pool.accelerators.count if pool.accelerators else None
        return cost.nodes(self.replicas, self.workers.cpu, gib, cost.machine(pool.machine), gpus)

    @property
    def most_nodes(self) -> int:
        """Where it is not said, one for each worker, and one more while they are replaced."""
        return self.cluster.workers.max_nodes or max(self.replicas + 1, self.cluster.workers.min_nodes)

    def bill(self) -> list[cost.Item]:
        """What a cluster of the stack's own costs, part by part."""
        pool, system, others = self.cluster.workers, self.cluster.system, cost.prices()["others"] | self.prices
        up = min(max(self.nodes or 0, pool.min_nodes), self.most_nodes)
        idle = pool.min_nodes if self.limits.idle else up
        most = system.most + self.most_nodes
        items = [
            cost.Item("the cluster's fee", others["cluster"], others["cluster"]),
            *cost.pool("scheduler and Jupyter", system, 1, 1, self.prices, most=system.most),
            *cost.pool("workers", pool, up, idle, self.prices, most=self.most_nodes),
        ]
        if self.jupyter.enabled:
            volume = memory(self.jupyter.storage) / 2**30 * others["pd-balanced"] / cost.HOURS
            items.append(cost.Item(f"{self.jupyter.storage} for notebooks", volume, volume))
        if self.cluster.hardening.private_nodes and not self.cluster.network:
            way_out = [others["address"] + others["nat"] * count for count in (1 + up, 1 + idle, most)]
            items.append(cost.Item("the nodes' way out, Cloud NAT", *way_out))
        if balancers := sum(getattr(self.expose, name) is not None for name in Expose.model_fields):
            price = balancers * others["loadBalancer"]
            items.append(cost.Item(f"{balancers} load balancers", price, price))
        return items

    def conflicts(self, folder: Path) -> Iterator[Conflict]:
        """Where settings contradict each other, the lock or the chart."""
        place: Place
        values = list(value_conflicts(self))
        yield from values
        if isinstance(self.cluster, GkeSource):
            yield from self.cluster.conflicts()
            if not values:  # they have workers, too
                yield from cost_conflicts(self)
        elif not self.cluster.is_there:
            place = ("cluster", "kubeconfig")
            text = f"{self.cluster.kubeconfig} is not a file; write the one that kubectl uses, e.g. ~/.kube/config"
            yield Conflict(place, text)
        exposures = {name: getattr(self.expose, name) for name in Expose.model_fields}
        yield from not_the_world({("expose", n, "sources"): each.sources for n, each in exposures.items() if each})
        if self.expose.jupyter and not self.jupyter.enabled:
            place = ("expose", "jupyter")
            yield Conflict(place, "there is no Jupyter; set jupyter.enabled: true")
        if self.jupyter.keep and self.namespace.create:
            place = ("jupyter", "keep")
            text = (
                "the volume would go with its namespace, which this stack makes and removes; make one yourself, and"
                " write its name with namespace.create: false"
            )
            yield Conflict(place, text)
        yield from _exposure_conflicts(self)
        yield from config_conflicts(self.dask.config, CONFIG)
        yield from lock_conflicts(self.environment, folder)
        yield from _package_conflicts(self, folder)
        if self.chart == "official":
            yield from official_conflicts(self, folder)
        else:
            yield from _own_conflicts(self, folder)


def _own_conflicts(cluster: KubernetesTarget, folder: Path) -> Iterator[Conflict]:
    for kind in ("conda", "apt"):
        if getattr(cluster.packages, kind):
            place = ("packages", kind)
            text = (
                f"our chart's pods are not root, so {kind} cannot install anything in them; put it into an image of"
                " your own and name that as image, or write chart: official"
            )
            yield Conflict(place, text)
    if cluster.image and cluster.packages.pip:
        place = ("packages", "pip")
        text = "nothing is installed in pods of an image of your own; put these packages into it, or leave image out"
        yield Conflict(place, text)
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
                yield Conflict(place, f"{text}; or write jupyter: {{enabled: false}}")
            return
        if other := [name for name in jupyter if here.get(name, jupyter[name]) != jupyter[name]]:
            place = ("environment", "lock")
            text = f"{cluster.environment.lock} and {JUPYTER_LOCK} pin other versions of {', '.join(other)}; make lock"
            yield Conflict(place, text)


def _exposure_conflicts(cluster: KubernetesTarget) -> Iterator[Conflict]:
    """What is not encrypted must not cross the internet; and no pod may get to a metadata server by its network."""
    reasons = {
        "dashboard": "has neither a login nor TLS",
        "jupyter": "has no TLS, so its password would cross the internet as text",
        **({} if cluster.completed().dask.tls else {"scheduler": "has no TLS, so whoever listens can run code"}),
    }
    for name, reason in reasons.items():
        exposure = getattr(cluster.expose, name)
        if exposure and not exposure.internal:
            place: Place = ("expose", name)
            other = ", or values.jupyter.ingress with tls: true" if name == "jupyter" else ""
            remedy = "write internal: true, or leave it out and use a port-forward (`daskstack.connect`)"
            text = f"{reason}; {remedy}{other}"
            yield Conflict(place, text)
    for index, network in enumerate(cluster.egress):
        if ipaddress.ip_network(network).overlaps(LINK_LOCAL[6 if ":" in network else 4]):
            place = ("egress", index)
            text = f"{network} has the metadata servers of clouds in it; leave it out: a serviceAccount opens the way"
            yield Conflict(place, text)


LINK_LOCAL = {4: ipaddress.ip_network("169.254.0.0/16"), 6: ipaddress.ip_network("fe80::/10")}


def _package_conflicts(cluster: KubernetesTarget, folder: Path) -> Iterator[Conflict]:
    """Packages that contradict the lock, or that the official chart would take for several."""
    try:
        locked = lock.read(folder / cluster.environment.lock, cluster.environment.python).packages
    except lock.LockError:
        locked = {}  # reported already
    for index, text in enumerate(cluster.packages.pip):
        wanted, place = Requirement(text), ("packages", "pip", index)
        version = locked.get(canonicalize_name(wanted.name))
        if version and not wanted.specifier.contains(version, prereleases=True):
            text = f"{text} contradicts {cluster.environment.lock}, which pins {version}; change the lock, or this"
            yield Conflict(place, text)
        elif cluster.chart == "official" and re.search(r"\s", text):
            text = f"{text!r} has a blank, and the official chart takes it for several packages; write it without"
            yield Conflict(place, text)
