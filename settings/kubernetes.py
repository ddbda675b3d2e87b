"""Settings of a stack with `target: kubernetes`."""

import ipaddress
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic.alias_generators import to_camel

from daskstack import kubeconfig
from settings import cost, lock
from settings.buckets import bucket_conflicts
from settings.chart import official_conflicts, value_conflicts
from settings.common import (
    LIBRARY_PORTS,
    Conflict,
    Credentials,
    Env,
    Environment,
    Limits,
    Networks,
    Place,
    PortRange,
    Prices,
    Section,
    jupyter_conflicts,
    lock_conflicts,
    memory,
    world_conflicts,
)
from settings.dask_arguments import KUBERNETES_CONFIG, config_conflicts
from settings.gke import GkeSource
from settings.gke_cost import bill, cost_conflicts
from settings.official_values import edits
from settings.pods import (
    Arguments,
    Expose,
    Jupyter,
    KubernetesData,
    KubernetesWorkers,
    Packages,
    Scheduler,
    WorkerGroup,
    valid_image,
    valid_label,
)
from settings.worker_nodes import WorkerNodes, worker_nodes


class KubeconfigSource(Section):
    """An existing Kubernetes cluster."""

    source: Literal["existing"] = Field(examples=["existing"])
    """An existing Kubernetes cluster that kubectl can reach."""
    kubeconfig: str | None = Field(None, examples=["~/.kube/config"])
    """The kubeconfig file; by default the one in `$KUBECONFIG`, or `~/.kube/config`, that has the context. A stack
    keeps the file of its first `up`.
    """
    context: str | None = Field(None, examples=["kind-kind"])
    """The context in the kubeconfig; by default the one that is current at the first `up`."""

    @property
    def files(self) -> list[Path]:
        return kubeconfig.files(self.kubeconfig)

    def conflicts(self) -> Iterator[Conflict]:
        """Missing files, and a context that needs several of them."""
        if not any(map(kubeconfig.is_file, self.files)):
            missing = self.kubeconfig or ", ".join(map(str, self.files))
            text = f"{missing} is not a file; write kubectl's configuration file, e.g. ~/.kube/config"
            yield Conflict(("cluster", "kubeconfig"), text)
            return
        try:
            kubeconfig.locate(self.files, self.context or "")
        except kubeconfig.KubeconfigError as error:
            yield Conflict(("cluster", "kubeconfig"), str(error))


class Namespace(Section):
    """The namespace of the Helm release."""

    name: Annotated[str, AfterValidator(valid_label)] | None = Field(None, examples=["dask"])
    """The namespace; `dask-<stack>` by default."""
    create: bool = True
    """Set it to `false` to use an existing namespace. `destroy` does not delete it."""


class KubernetesPorts(Section):
    """Ports on which pods reach each other."""

    libraries: PortRange | None = Field(None, examples=[LIBRARY_PORTS])
    """The ports for libraries that talk among workers, such as LightGBM, XGBoost and PyTorch. By default, pods of the
    stack reach each other on all ports. With a range, they reach each other only on these and on Dask's own ports;
    `none` leaves only Dask's. The kernel chooses from 32768-60999.
    """


class KubernetesDask(Section):
    """Options of Dask itself."""

    ports: KubernetesPorts = KubernetesPorts()
    """Ports on which pods reach each other."""
    scheduler_args: Arguments = Field((), examples=[["--preload", "my.module"]])
    """Additional arguments for `dask scheduler`."""
    worker_args: Arguments = Field((), examples=[["--preload", "my.module"]])
    """Additional arguments for `dask worker`."""
    config: dict[str, Any] = Field({})
    """Dask configuration, in the format of Dask's YAML files. Unless `distributed.scheduler.no-workers-timeout` says
    otherwise, a task that no worker can run fails after 30 minutes.
    """
    env: Env = Field({}, examples=[{"OMP_NUM_THREADS": "1"}])
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
    data: KubernetesData = KubernetesData()
    """The shared directory."""
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
    schema, and rejects values that contradict a setting. An edited copy of the official chart's `values.yaml` is
    possible: only its edits count.
    """
    wait: int = Field(600, ge=30, le=7200)
    """The time in seconds that `up` waits for all pods to become ready."""

    @field_validator("values")
    @classmethod
    def _edits(cls, values: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return edits(values, info.data.get("chart", "own"))[0]

    def completed(self) -> "KubernetesTarget":
        """A copy with TLS off if the chart is the official one; `conflicts` rejects an explicit `tls: true`."""
        if self.chart == "own":
            return self
        return self.model_copy(update={"dask": self.dask.model_copy(update={"tls": False})})

    @property
    def replicas(self) -> int:
        """The number of workers in all groups; the largest one, if the running cluster sets it."""
        return (self.workers.bounds or [self.workers.replicas])[-1] + self.grouped[1]

    @property
    def grouped(self) -> tuple[int, int]:
        """The smallest and the largest number of workers in other groups than the main one."""
        groups = self.values.get("additional_worker_groups") or []
        # By default, a group of the chart has as many replicas as the main one.
        other = sum(group.get("replicas", self.workers.replicas) for group in groups)
        bounds = [group.bounds for group in self.workers.groups]
        return sum(low for low, _ in bounds) + other, sum(high for _, high in bounds) + other

    @property
    def gke(self) -> GkeSource:
        """The stack's own GKE cluster. Only stacks that have one ask for it."""
        assert isinstance(self.cluster, GkeSource)
        return self.cluster

    @property
    def worker_nodes(self) -> list[WorkerNodes]:
        """The node pools of the workers in the stack's own GKE cluster."""
        return worker_nodes(self)

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
        else:
            yield from self.cluster.conflicts()
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
        least = self.workers.at_least or 0
        if not values and least > self.replicas:
            text = f"{least} is more than the stack's {self.replicas} workers; write {self.replicas} or less"
            yield Conflict(("workers", "atLeast"), text)
        yield from _bucket_conflicts(self)
        yield from _data_conflicts(self)
        yield from _bounds_conflicts(self, self.values if not values else {})
        yield from _group_conflicts(self)
        if self.dask.ports.libraries and any(re.match("--(worker|nanny)-port", word) for word in self.dask.worker_args):
            place = ("dask", "ports", "libraries")
            yield Conflict(
                place, "sets the ports of workers; remove --worker-port and --nanny-port from dask.workerArgs"
            )
        yield from _exposure_conflicts(self)
        yield from config_conflicts(self.dask.config, KUBERNETES_CONFIG)
        yield from lock_conflicts(self.environment, folder)
        with suppress(lock.LockError):
            if lock.read(folder / self.environment.lock, self.environment.python).archive:
                text = (
                    "is an archive's, which pods cannot install; build an image that contains it, and write it as image"
                )
                yield Conflict(("environment", "lock"), text)
        yield from _package_conflicts(self, folder)
        if self.chart == "official":
            yield from official_conflicts(self, folder)
        else:
            yield from _own_conflicts(self, folder)


WHEELS_LIMIT = 1_000_000  # bytes of all wheels, because a ConfigMap holds at most 1 MiB


def _unreachable_packages(cluster: KubernetesTarget, folder: Path) -> Iterator[Conflict]:
    """Packages that no index has, and that pods cannot get in another way."""
    for index, text in enumerate(cluster.packages.pip):
        if "git+" in text:
            place = ("packages", "pip", index)
            remedy = "add it to environment.in, and run `daskstack lock`, which builds it on your computer"
            yield Conflict(place, f"{text} needs git, which pods do not have; {remedy}")
    with suppress(lock.LockError, OSError):  # lock_conflicts reports it
        wheels = lock.read(folder / cluster.environment.lock, cluster.environment.python).wheels
        size = sum(wheel.stat().st_size for wheel in wheels)
        if size > WHEELS_LIMIT:
            place = ("environment", "lock")
            names = ", ".join(wheel.name for wheel in wheels)
            yield Conflict(
                place,
                f"{cluster.environment.lock} needs {names} with {size:,} bytes, but pods can get {WHEELS_LIMIT:,} bytes"
                " of wheels that no index has; publish them on your index, or build an image that contains the lock's"
                " packages and write it as image",
            )


def _own_conflicts(cluster: KubernetesTarget, folder: Path) -> Iterator[Conflict]:
    for kind in ("conda", "apt"):
        if getattr(cluster.packages, kind):
            place = ("packages", kind)
            text = (
                f"{kind} cannot install packages in our chart's pods, which do not run as root; build an image that"
                " contains them and write it as image, or write chart: official"
            )
            yield Conflict(place, text)
    if not cluster.image:
        yield from _unreachable_packages(cluster, folder)
    if cluster.image and cluster.packages.pip:
        place = ("packages", "pip")
        text = "pods with your own image install no packages; add these to the image, or remove image"
        yield Conflict(place, text)
    if cluster.image and cluster.environment.system:
        place = ("environment", "system")
        text = "pods with your own image install no packages; add these to the image, or remove image"
        yield Conflict(place, text)
    if cluster.image and cluster.environment.authority:
        place = ("environment", "authority")
        yield Conflict(place, "pods with your own image install no packages; add it to the image, or remove image")
    if cluster.jupyter.enabled and not cluster.image:
        yield from jupyter_conflicts(cluster.environment, folder)


def _bucket_conflicts(cluster: KubernetesTarget) -> Iterator[Conflict]:
    place = ("data", "buckets")
    if not cluster.data.buckets:
        return
    if not isinstance(cluster.cluster, GkeSource):
        text = (
            "is only possible with cluster.source: gke; remove it, and give each kind of pods a serviceAccount with"
            " access, or pass credentials to the library that reads the bucket (storage_options)"
        )
        yield Conflict(place, text)
        return
    if not cluster.cluster.hardening.workload_identity:
        yield Conflict(place, "requires Workload Identity; remove cluster.hardening.workloadIdentity: false")
    yield from bucket_conflicts(cluster.data.buckets)


def _bounds_conflicts(cluster: KubernetesTarget, values: dict[str, Any]) -> Iterator[Conflict]:
    """Bounds of the number of workers that contradict each other or the chart's `values`."""
    workers = cluster.workers
    if workers.bounds:
        low, high = workers.bounds
        if low > high:
            yield Conflict(("workers", "min"), f"{low} is more than the maximum, {high}; write {high} or less")
        if "replicas" in workers.model_fields_set:
            text = "the running cluster sets the number of workers within workers.min and workers.max; remove it"
            yield Conflict(("workers", "replicas"), text)
    elif workers.min is not None:
        yield Conflict(("workers", "max"), "is missing; write the largest number of workers, or remove workers.min")
    for index, group in enumerate(workers.groups):
        yield from _group_bounds_conflicts(("workers", "groups", index), group)
    if not workers.scales:
        return
    own = values.get("worker") or {}
    given: dict[Place, bool] = {
        ("worker", "readinessProbe"): "readinessProbe" in own,
        ("worker", "image", "dask_worker"): (own.get("image") or {}).get("dask_worker", "dask worker") != "dask worker",
    }
    for place in (place for place, found in given.items() if found):
        text = "is not available with workers.min and workers.max, or those of groups; remove it, or write replicas"
        yield Conflict(("values", *place), text)


def _group_bounds_conflicts(place: Place, group: WorkerGroup) -> Iterator[Conflict]:
    if group.max is None:
        if group.min:
            yield Conflict((*place, "max"), "is missing; write the largest number of workers, or remove min")
        return
    if group.min > group.max:
        yield Conflict((*place, "min"), f"{group.min} is more than max, {group.max}; write {group.max} or less")
    if "replicas" in group.model_fields_set:
        yield Conflict((*place, "replicas"), "the running cluster sets the number within min and max; remove it")
    if not group.resources:
        text = 'is missing; write e.g. {"BIG": 1}, because only tasks that ask for resources of the group start workers'
        yield Conflict((*place, "resources"), text)


def _group_conflicts(cluster: KubernetesTarget) -> Iterator[Conflict]:
    groups, source = cluster.workers.groups, cluster.cluster
    names = [group.name for group in groups]
    for index, group in enumerate(groups):
        place: Place = ("workers", "groups", index)
        if (first := names.index(group.name)) < index:
            text = f"is the same name as that of workers.groups[{first}]; use each name once"
            yield Conflict((*place, "name"), text)
        if group.pool and isinstance(source, GkeSource):
            yield from source.pool_conflicts((*place, "pool"), group.pool)
        elif group.pool:
            text = "is only possible with cluster.source: gke; remove it, and write the nodes' labels as nodeSelector"
            yield Conflict((*place, "pool"), text)
    if groups and cluster.values.get("additional_worker_groups"):
        text = "cannot be used together with workers.groups; write all groups there, or all here"
        yield Conflict(("values", "additional_worker_groups"), text)


def _data_conflicts(cluster: KubernetesTarget) -> Iterator[Conflict]:
    data = cluster.data
    if not data.size:
        for name in sorted(data.model_fields_set - {"size", "buckets"}):
            yield Conflict(("data", to_camel(name)), "requires data.size; write it, e.g. size: 100Gi, or remove this")
        return
    if isinstance(cluster.cluster, GkeSource):
        if cluster.cluster.network and cluster.cluster.network.project:
            text = (
                "is not available in a Shared VPC, where Filestore needs private service access; remove it, and use"
                " data.buckets, or another network"
            )
            yield Conflict(("data", "size"), text)
        if data.class_name:
            yield Conflict(
                ("data", "className"), "is not available with cluster.source: gke, which uses Filestore; remove it"
            )
        if memory(data.size) < 100 * 2**30:
            yield Conflict(
                ("data", "size"), f"{data.size} is less than Filestore's smallest volume; write 100Gi or more"
            )
    if cluster.namespace.create and not data.delete:
        place = ("data", "delete")
        text = (
            "`destroy` deletes the stack's own namespace with the shared directory; write true if it may, or create a"
            " namespace, and set namespace.name and namespace.create: false"
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
