"""Settings of pods, and of the services that expose them."""

import re
from functools import partial
from typing import Annotated, Any

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import AfterValidator, BeforeValidator, Field

from settings.buckets import BUCKETS_EXAMPLE, Buckets
from settings.common import (
    GroupName,
    Listed,
    Networks,
    Resources,
    Section,
    valid_amount,
    valid_memory,
)
from settings.dask_arguments import PODS_ARGUMENTS, valid_argument
from settings.folders import NO_POD_DATA, valid_folder
from settings.gke import LABEL_NAME, LABEL_VALUE, WORKERS, Labels, WorkerPool, object_matching


def valid_cpu(found: float) -> float:
    # Kubernetes counts CPUs in thousandths. In floating point, 16.1 * 1000 is not exactly 16100.
    if not 0.001 <= found <= 10_000 or abs(round(found * 1000) - found * 1000) > 1e-6:
        raise ValueError(f"{found} is not a number of CPUs; write e.g. 1 or 0.5")
    return found


Cpu = Annotated[float, BeforeValidator(valid_amount), Field(strict=False), AfterValidator(valid_cpu)]


def valid_label(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError(f"{text!r} is not a Kubernetes name; write up to 63 of a-z, 0-9 and -, e.g. dask")
    return text


def valid_size(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,4}[MGT]i", text):
        raise ValueError(f"{text!r} is not the size of a volume; write e.g. 10Gi")
    return text


def valid_class(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", text):
        raise ValueError(f"{text!r} is not the name of a StorageClass; write e.g. standard-rwx")
    return text


def valid_image(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._/:-]*(:[\w][\w.-]*|@sha256:[0-9a-f]{64})", text):
        raise ValueError(f"{text!r} is not an image with a tag; write e.g. ghcr.io/me/dask:1.4")
    return text


def valid_requirement(text: str) -> str:
    try:
        Requirement(text)
    except InvalidRequirement:
        raise ValueError(f"{text!r} is not a requirement; write e.g. dask-ml or dask-ml==2025.1.0") from None
    return text


def valid_package(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+._:=<>~-]*", text):
        raise ValueError(f"{text!r} is not the name of a package; write e.g. libgomp1")
    return text


Toleration = Annotated[
    dict[str, Any],
    object_matching(
        {
            "key": LABEL_NAME,
            "operator": "Exists|Equal",
            "value": LABEL_VALUE,
            "effect": "NoSchedule|PreferNoSchedule|NoExecute",
            "tolerationSeconds": "-?[0-9]{1,9}",
        },
        set(),
        'a toleration; write e.g. {"key": "team", "operator": "Exists", "effect": "NoSchedule"}',
    ),
]
Tolerations = Annotated[tuple[Toleration, ...], Listed]
Memory = Annotated[str, AfterValidator(valid_memory)]
ServiceAccount = Annotated[str, AfterValidator(valid_label)]
Arguments = Annotated[tuple[Annotated[str, AfterValidator(partial(valid_argument, PODS_ARGUMENTS))], ...], Listed]


class Pod(Section):
    """Settings that all kinds of pods share."""

    cpu: Cpu = Field(1.0, examples=[0.5])
    """The pod's CPU request."""
    memory: Memory = "2 GiB"
    """The pod's memory request and limit."""
    node_selector: Labels = Field({})
    """Labels of the nodes on which the pod may run."""
    tolerations: Tolerations = Field((), examples=[[{"operator": "Exists"}]])
    """The pod's tolerations of node taints."""
    service_account: ServiceAccount | None = Field(None, examples=["dask"])
    """The pod's ServiceAccount. With one, the pod can reach the cloud's metadata server, which grants it the account's
    permissions.
    """


class Scheduler(Pod):
    cpu: Cpu = 0.5
    """The pod's CPU request."""


Size = Annotated[str, AfterValidator(valid_size)]
StorageClass = Annotated[str, AfterValidator(valid_class)]


class Spill(Section):
    """Each worker's folder for data that does not fit into memory."""

    size: Size = "20Gi"
    """Size of the folder. A worker stops spilling before it is full."""
    class_name: StorageClass | None = Field(None, examples=["fast-ssd"])
    """The StorageClass of a separate volume for each worker, which is deleted with its pod. By default, the folder is
    on the node's own disk.
    """


class WorkerGroup(Section):
    """Workers that differ from the others. What a group does not say is like `workers`."""

    name: GroupName = Field(examples=["big"])
    """The group's name, which is part of the names of its pods and of its Deployment, such as dask-worker-big."""
    replicas: int = Field(1, ge=0, le=1000)
    """Number of worker pods."""
    min: int = Field(0, ge=0, le=1000)
    """The smallest number of worker pods. Only with `max`."""
    max: int | None = Field(None, ge=1, le=1000, examples=[4])
    """The largest number of worker pods. With it, their number follows the tasks that ask for the group's `resources`.
    """
    cpu: Cpu | None = Field(None, examples=[4])
    """The pods' CPU request."""
    memory: Memory | None = Field(None, examples=["16 GiB"])
    """The pods' memory request and limit."""
    threads: int | None = Field(None, ge=1, examples=[2])
    """Threads per worker."""
    resources: Resources = Field({}, examples=[{"BIG": 1}])
    """Dask resources of each worker of the group, which tasks ask for with `resources=`."""
    node_selector: Labels | None = Field(None, examples=[{"disk": "ssd"}])
    """Labels of the nodes on which the pods may run. Those of `workers` do not apply to a group with its own `pool`."""
    tolerations: Tolerations | None = Field(None, examples=[[{"operator": "Exists"}]])
    """The pods' tolerations of node taints. Those of `workers` do not apply to a group with its own `pool`."""
    service_account: ServiceAccount | None = Field(None, examples=["dask"])
    """The pods' ServiceAccount."""
    pool: WorkerPool | None = Field(None, examples=[{"machine": "n2-highmem-8"}])
    """Nodes for this group alone. Otherwise its pods share the nodes of the other workers. Only with
    `cluster.source: gke`.
    """

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest number of workers."""
        return (self.replicas, self.replicas) if self.max is None else (self.min, self.max)

    @property
    def pool_name(self) -> str:
        """The name of the node pool on which its pods run."""
        return f"{WORKERS}-{self.name}" if self.pool else WORKERS

    def workers(self, main: "KubernetesWorkers") -> "KubernetesWorkers":
        """The settings of its workers; those that the group does not have are the main group's."""
        names = ("cpu", "memory", "threads", "node_selector", "tolerations", "service_account")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.pool:
            given = {"node_selector": {}, "tolerations": ()} | given
        return main.model_copy(update={**given, "replicas": self.replicas, "min": None, "max": None, "groups": ()})


class KubernetesWorkers(Pod):
    """The workers' pods."""

    replicas: int = Field(3, ge=0, le=1000)
    """Number of worker pods. Each runs one worker process."""
    min: int | None = Field(None, ge=0, le=1000, examples=[1])
    """The smallest number of worker pods. With `min` and `max`, the running cluster sets the number within these bounds
    (`cluster.scale`, `daskstack scale`), and `up` keeps it. The default is 1 if `max` is set.
    """
    max: int | None = Field(None, ge=1, le=1000, examples=[8])
    """The largest number of worker pods. Required if `min` is set."""
    at_least: int | None = Field(None, ge=1, examples=[2])
    """`up` succeeds as soon as this many workers run, of all groups, and says which are missing and why. They join
    later. By default, it waits for all of them.
    """
    threads: int | None = Field(None, ge=1, examples=[2])
    """Threads per worker; by default the number of its CPUs, rounded down, but at least 1."""
    spill: Spill = Spill()
    """Each worker's folder for data that does not fit into memory."""
    grace_period: int = Field(120, ge=30, le=3600)
    """The time in seconds that a stopping worker has to hand over its tasks and results."""
    groups: Annotated[tuple[WorkerGroup, ...], Listed] = Field(
        (), examples=[[{"name": "big", "memory": "16 GiB", "resources": {"BIG": 1}}]]
    )
    """More workers, which differ from these. `replicas`, `min` and `max` do not include them."""

    @property
    def scales(self) -> bool:
        """Whether the running cluster sets the number of some workers."""
        return bool(self.bounds) or any(group.max is not None for group in self.groups)

    @property
    def bounds(self) -> list[int] | None:
        """The smallest and the largest number of workers, or None if `replicas` is the number."""
        if self.max is None:
            return None
        return [1 if self.min is None else self.min, self.max]

    @property
    def threads_per_worker(self) -> int:
        return self.threads or max(1, int(self.cpu))


class Jupyter(Pod):
    """A notebook server in the cluster's namespace."""

    enabled: bool = True
    """Run a notebook server."""
    cpu: Cpu = 0.5
    """The pod's CPU request."""
    storage: Size = "10Gi"
    """Size of the volume for notebooks."""
    keep: bool = False
    """`destroy` does not delete the volume. Requires `namespace.create: false`."""


class KubernetesData(Section):
    """The shared directory of the scheduler, the workers and notebooks."""

    size: Size | None = Field(None, examples=["100Gi"])
    """Size of its volume. By default, there is no shared directory, because many clusters have no StorageClass whose
    volumes several nodes can use.
    """
    class_name: StorageClass | None = Field(None, examples=["efs"])
    """Its StorageClass, which must support ReadWriteMany: for example one of Filestore, EFS, Azure Files, CephFS or an
    NFS server. By default the cluster's default class. With `cluster.source: gke`, it is Filestore.
    """
    path: Annotated[str, AfterValidator(partial(valid_folder, NO_POD_DATA, "/srv/daskdata"))] = "/srv/daskdata"
    """The path of the shared directory in every pod."""
    delete: bool = False
    """`destroy` also deletes the shared directory. Required unless `namespace.create` is `false`, because deleting the
    stack's own namespace deletes all its volumes.
    """
    buckets: Buckets = Field((), examples=BUCKETS_EXAMPLE)
    """Buckets that tasks and notebooks can use as `gs://bucket/path`, without credentials in code. This opens the
    metadata server to all pods. Only with `cluster.source: gke`; it does not need `size`.
    """


class Packages(Section):
    """Packages in addition to those of the lock."""

    pip: Annotated[tuple[Annotated[str, AfterValidator(valid_requirement)], ...], Listed] = Field(
        (), examples=[["dask-ml"]]
    )
    """Python packages to install in all pods. They cannot change the versions that the lock pins."""
    conda: Annotated[tuple[Annotated[str, AfterValidator(valid_package)], ...], Listed] = Field(
        (), examples=[["lightgbm"]]
    )
    """Conda packages to install in all pods. Official chart only."""
    apt: Annotated[tuple[Annotated[str, AfterValidator(valid_package)], ...], Listed] = Field(
        (), examples=[["libgomp1"]]
    )
    """System packages to install in all pods. Official chart only."""


class Exposure(Section):
    """A load balancer."""

    sources: Networks = Field(min_length=1, examples=[["203.0.113.0/24"]])
    """The networks that can reach the service. Opening it to the entire internet is not allowed."""
    internal: bool = False
    """The load balancer has no public address. Required for services without TLS, such as the dashboard and Jupyter."""


class Expose(Section):
    """Services that can be reached without a port-forward."""

    scheduler: Exposure | None = Field(None, examples=[{"sources": ["203.0.113.0/24"]}])
    """A load balancer for the scheduler."""
    dashboard: Exposure | None = Field(None, examples=[{"sources": ["203.0.113.0/24"]}])
    """A load balancer for the dashboard."""
    jupyter: Exposure | None = Field(None, examples=[{"sources": ["203.0.113.0/24"]}])
    """A load balancer for the notebook server."""
