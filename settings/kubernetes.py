"""Settings of a stack with `target: kubernetes`."""

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
    Conflict,
    Credentials,
    Environment,
    Limits,
    Networks,
    Place,
    Prices,
    Section,
    lock_conflicts,
    memory,
    valid_variable,
    world_conflicts,
)
from settings.dask_arguments import KUBERNETES_CONFIG, config_conflicts
from settings.gke import GkeSource
from settings.gke_cost import bill, cost_conflicts
from settings.pods import Arguments, Expose, Jupyter, KubernetesWorkers, Packages, Scheduler, valid_image, valid_label

JUPYTER_LOCK = "charts/jupyter.lock"  # packages that Jupyter needs in addition to environment.lock


class KubeconfigSource(Section):
    """An existing Kubernetes cluster."""

    source: Literal["existing"] = Field(examples=["existing"])
    """An existing Kubernetes cluster that kubectl can reach."""
    kubeconfig: str = "~/.kube/config"
    """The kubeconfig file."""
    context: str | None = Field(None, examples=["kind-kind"])
    """The context in the kubeconfig; by default the one that is current at the first `up`."""

    @property
    def path(self) -> Path:
        return Path(self.kubeconfig).expanduser().absolute()

    @property
    def current(self) -> str:
        """The context that kubectl uses now, or an empty string if there is none."""
        try:
            found = yaml.safe_load(self.path.read_text())["current-context"]
        except (OSError, TypeError, KeyError, ValueError, yaml.YAMLError):
            return ""
        return found if isinstance(found, str) else ""

    @property
    def exists(self) -> bool:
        try:
            return self.path.is_file()
        except (OSError, RuntimeError):  # the name is too long, or its ~user does not exist
            return False


class Namespace(Section):
    """The namespace of the Helm release."""

    name: Annotated[str, AfterValidator(valid_label)] | None = Field(None, examples=["dask"])
    """The namespace; `dask-<stack>` by default."""
    create: bool = True
    """Set it to `false` to use an existing namespace. `destroy` does not delete it."""


class KubernetesDask(Section):
    """Options of Dask itself."""

    scheduler_args: Arguments = Field((), examples=[["--preload", "my.module"]])
    """Additional arguments for `dask scheduler`."""
    worker_args: Arguments = Field((), examples=[["--preload", "my.module"]])
    """Additional arguments for `dask worker`."""
    config: dict[str, Any] = Field({})
    """Dask configuration, in the format of Dask's YAML files."""
    env: dict[Annotated[str, AfterValidator(valid_variable)], str] = Field({}, examples=[{"OMP_NUM_THREADS": "1"}])
    """Environment variables for the scheduler, workers and notebooks."""
    tls: bool = True
    """Mutual TLS between the scheduler, workers and clients. The official chart does not support it."""


class KubernetesTarget(Section):
    """A Dask cluster in Kubernetes, installed with Helm."""

    target: Literal["kubernetes"] = Field(examples=["kubernetes"])
    """A Dask cluster in Kubernetes, installed with Helm."""
    cluster: KubeconfigSource | GkeSource = Field(discriminator="source", examples=[{"source": "existing"}])
    """The Kubernetes cluster."""
    namespace: Namespace = Namespace()
    """The namespace of the Helm release."""
    chart: Literal["own", "official"] = "own"
    """The Helm chart. `own` is this project's chart. `official` is `dask/dask` from https://helm.dask.org, which cannot
    run Dask 2026.6 or newer.
    """
    image: Annotated[str, AfterValidator(valid_image)] | None = Field(None, examples=["ghcr.io/me/dask:1.4"])
    """A container image, with its tag, that already contains the packages. By default, pods run a slim Python image and
    install the packages of the lock when they start.
    """
    environment: Environment = Environment()
    """The Python packages that all processes use."""
    packages: Packages = Packages()
    """Packages in addition to the lock."""
    scheduler: Scheduler = Scheduler()
    """The scheduler's pod."""
    workers: KubernetesWorkers = KubernetesWorkers()
    """The workers' pods."""
    jupyter: Jupyter = Jupyter()
    """The notebook server's pod."""
    expose: Expose = Expose()
    """Services that can be reached without a port-forward."""
    egress: Networks = Field((), examples=[["10.2.0.0/24"]])
    """Private networks that pods can reach in addition to the internet, such as that of a package index."""
    dask: KubernetesDask = KubernetesDask()
    """Options of Dask itself."""
    credentials: Credentials = Credentials()
    """Keys and certificates."""
    limits: Limits = Limits()
    """Limits on idle time and on cost."""
    prices: Prices = Field({}, examples=[{"n1-standard-4": 0.15}])
    """Your own prices in US dollars per hour, by name; Google's list prices by default."""
    values: dict[str, Any] = Field({})
    """Additional chart values, which override those that this program sets. `up` checks them against the chart's
    schema, and rejects values that contradict a setting.
    """
    wait: int = Field(600, ge=30, le=7200)
    """The time in seconds that `up` waits for all pods to become ready."""

    def completed(self) -> "KubernetesTarget":
        """A copy with TLS off if the chart is the official one; `conflicts` rejects an explicit `tls: true`."""
        if self.chart == "own":
            return self
        return self.model_copy(update={"dask": self.dask.model_copy(update={"tls": False})})

    @property
    def replicas(self) -> int:
        """The number of workers in all groups."""
        groups = self.values.get("additional_worker_groups") or []
        # By default, a group has as many replicas as the main one.
        return self.workers.replicas + sum(group.get("replicas", self.workers.replicas) for group in groups)

    @property
    def gke(self) -> GkeSource:
        """The stack's own GKE cluster. Only stacks that have one ask for it."""
        assert isinstance(self.cluster, GkeSource)
        return self.cluster

    @property
    def nodes(self) -> int | None:
        """The number of GKE nodes that the workers need, or None if a node is too small for one."""
        pool, gib = self.gke.workers, memory(self.workers.memory) / 2**30
        gpus = pool.accelerators.count if pool.accelerators else None
        return cost.nodes(self.replicas, self.workers.cpu, gib, cost.machine(pool.machine), gpus)

    @property
    def max_worker_nodes(self) -> int:
        """The largest number of worker nodes: by default one per worker, and a spare one for rolling updates."""
        return self.gke.workers.max_nodes or max(self.replicas + 1, self.gke.workers.min_nodes)

    def bill(self) -> list[cost.Item]:
        """The cost of the GKE cluster, item by item."""
        return bill(self)

    def conflicts(self, folder: Path) -> Iterator[Conflict]:
        """Settings that contradict each other, the lock or the chart."""
        place: Place
        values = list(value_conflicts(self))
        yield from values
        if isinstance(self.cluster, GkeSource):
            yield from self.cluster.conflicts()
            if not values:  # valid values can add workers
                yield from cost_conflicts(self)
        elif not self.cluster.exists:
            place = ("cluster", "kubeconfig")
            text = f"{self.cluster.kubeconfig} is not a file; write kubectl's configuration file, e.g. ~/.kube/config"
            yield Conflict(place, text)
        exposures = {name: getattr(self.expose, name) for name in Expose.model_fields}
        yield from world_conflicts({("expose", n, "sources"): each.sources for n, each in exposures.items() if each})
        if self.expose.jupyter and not self.jupyter.enabled:
            place = ("expose", "jupyter")
            yield Conflict(place, "requires Jupyter, which is disabled; remove it, or set jupyter.enabled: true")
        if self.jupyter.keep and self.namespace.create:
            place = ("jupyter", "keep")
            text = (
                "requires an existing namespace, because `destroy` deletes the stack's own with the volume; create one,"
                " and set namespace.name and namespace.create: false"
            )
            yield Conflict(place, text)
        yield from _exposure_conflicts(self)
        yield from config_conflicts(self.dask.config, KUBERNETES_CONFIG)
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
                f"{kind} cannot install packages in our chart's pods, which do not run as root; build an image that"
                " contains them and write it as image, or write chart: official"
            )
            yield Conflict(place, text)
    if cluster.image and cluster.packages.pip:
        place = ("packages", "pip")
        text = "pods with your own image install no packages; add these to the image, or remove image"
        yield Conflict(place, text)
    if cluster.jupyter.enabled and not cluster.image:
        try:
            here = lock.read(folder / cluster.environment.lock, cluster.environment.python).packages
        except lock.LockError:
            return  # lock_conflicts reports it
        try:
            jupyter = lock.read(folder / JUPYTER_LOCK, cluster.environment.python, dask=False).packages
        except lock.LockError as error:
            for setting, text in error.problems:
                place = ("environment", setting)
                yield Conflict(place, f"{text}, or disable Jupyter with jupyter: {{enabled: false}}")
            return
        if other := [name for name in jupyter if here.get(name, jupyter[name]) != jupyter[name]]:
            place = ("environment", "lock")
            text = (
                f"{cluster.environment.lock} and {JUPYTER_LOCK} pin different versions of {', '.join(other)}; update"
                " both with `make lock`"
            )
            yield Conflict(place, text)


def _exposure_conflicts(cluster: KubernetesTarget) -> Iterator[Conflict]:
    """Services without TLS must not be exposed to the internet. Pods must not reach a cloud's metadata server."""
    reasons = {
        "dashboard": "has neither a login nor TLS",
        "jupyter": "has no TLS, so its password would cross the internet in plain text",
        **({} if cluster.completed().dask.tls else {"scheduler": "has no TLS, so eavesdroppers could run code"}),
    }
    for name, reason in reasons.items():
        exposure = getattr(cluster.expose, name)
        if exposure and not exposure.internal:
            place: Place = ("expose", name)
            other = ", or values.jupyter.ingress with tls: true" if name == "jupyter" else ""
            remedy = "write internal: true, or remove it and use a port-forward (`daskstack.connect`)"
            text = f"{reason}; {remedy}{other}"
            yield Conflict(place, text)
    for index, network in enumerate(cluster.egress):
        if ipaddress.ip_network(network).overlaps(LINK_LOCAL[6 if ":" in network else 4]):
            place = ("egress", index)
            text = f"{network} contains the metadata servers of clouds; remove it, and set serviceAccount for access"
            yield Conflict(place, text)


LINK_LOCAL = {4: ipaddress.ip_network("169.254.0.0/16"), 6: ipaddress.ip_network("fe80::/10")}


def _package_conflicts(cluster: KubernetesTarget, folder: Path) -> Iterator[Conflict]:
    """Packages that contradict the lock, or that the official chart would split at spaces."""
    try:
        locked = lock.read(folder / cluster.environment.lock, cluster.environment.python).packages
    except lock.LockError:
        locked = {}  # lock_conflicts reports it
    for index, text in enumerate(cluster.packages.pip):
        wanted, place = Requirement(text), ("packages", "pip", index)
        version = locked.get(canonicalize_name(wanted.name))
        if version and not wanted.specifier.contains(version, prereleases=True):
            text = f"{text} contradicts {cluster.environment.lock}, which pins {version}; change one of them"
            yield Conflict(place, text)
        elif cluster.chart == "official" and re.search(r"\s", text):
            text = f"{text!r} contains a space, at which the official chart would split it; remove the space"
            yield Conflict(place, text)
