"""What a stack may say about pods, and how they are reached."""

import re
from functools import partial
from typing import Annotated, Any

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import AfterValidator, BeforeValidator, Field

from settings.common import (
    OPEN_ARGUMENTS,
    Listed,
    Networks,
    Section,
    valid_amount,
    valid_argument,
    valid_memory,
)


def valid_cpu(found: float) -> float:
    # Kubernetes counts in thousandths; 16.1 * 1000 is not quite 16100.
    if not 0.001 <= found <= 10_000 or abs(round(found * 1000) - found * 1000) > 1e-6:
        raise ValueError(f"{found} is not a number of processors; write e.g. 1 or 0.5")
    return found


Cpu = Annotated[float, BeforeValidator(valid_amount), Field(strict=False), AfterValidator(valid_cpu)]


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


ARGUMENTS = {
    "--nthreads": "use workers.threads",
    "--memory-limit": "use workers.memory",
    "--protocol|--tls-.*": "use dask.tls",
    "--(port|dashboard-address|contact-address|host|interface|listen-address|local-directory|name|nworkers|pid-file"
    "|scheduler-(file|port)|version)": "leave it out",
    **OPEN_ARGUMENTS,
}
Arguments = Annotated[tuple[Annotated[str, AfterValidator(partial(valid_argument, ARGUMENTS))], ...], Listed]


class Pod(Section):
    """A kind of pod. `cpu` is in processors that it is sure to get; `memory` is its limit, too."""

    cpu: Cpu = Field(1.0, examples=[0.5])
    """Processors that the pod is sure to get."""
    memory: Annotated[str, AfterValidator(valid_memory)] = "2 GiB"
    """Memory that the pod is sure to get, and its limit."""
    node_selector: dict[str, str] = Field({})
    """Labels of the nodes on which it runs."""
    tolerations: Annotated[tuple[dict[str, Any], ...], Listed] = Field((), examples=[[{"operator": "Exists"}]])
    """Taints that it tolerates."""
    service_account: Annotated[str, AfterValidator(valid_label)] | None = Field(None, examples=["dask"])
    """The ServiceAccount that it runs as. Its pods may reach the metadata server, which gives them that account's
    rights.
    """


class Scheduler(Pod):
    cpu: Cpu = 0.5
    """Processors that the pod is sure to get."""


class KubernetesWorkers(Pod):
    """`replicas` pods with one worker process each."""

    replicas: int = Field(3, ge=0, le=1000)
    """Pods with one worker process each."""
    threads: int | None = Field(None, ge=1, examples=[2])
    """Threads of each process; its processors by default."""
    grace_period: int = Field(120, ge=30, le=3600)
    """Seconds to hand over tasks and results before a pod stops."""

    @property
    def threads_each(self) -> int:
        """Of each process; as many as it has processors where it is not said."""
        return self.threads or max(1, int(self.cpu))


class Jupyter(Pod):
    """A notebook server beside the cluster; `keep` leaves its volume when the stack is destroyed."""

    enabled: bool = True
    """Whether there is a notebook server."""
    cpu: Cpu = 0.5
    """Processors that the pod is sure to get."""
    storage: Annotated[str, AfterValidator(valid_size)] = "10Gi"
    """Size of the notebooks' volume."""
    keep: bool = False
    """`destroy` keeps the volume. The namespace must then be your own."""


class Packages(Section):
    """What scheduler, workers and Jupyter have beside the lock, which these cannot change."""

    pip: Annotated[tuple[Annotated[str, AfterValidator(valid_requirement)], ...], Listed] = Field(
        (), examples=[["dask-ml"]]
    )
    """Packages in addition to the lock, which they cannot change; the same in all pods."""
    conda: Annotated[tuple[Annotated[str, AfterValidator(valid_package)], ...], Listed] = Field(
        (), examples=[["lightgbm"]]
    )
    """Conda packages. Official chart only."""
    apt: Annotated[tuple[Annotated[str, AfterValidator(valid_package)], ...], Listed] = Field(
        (), examples=[["libgomp1"]]
    )
    """System packages. Official chart only."""


class Exposure(Section):
    """A load balancer, for these networks alone; `internal`: without an address on the internet.

    What is not encrypted has to be internal.
    """

    sources: Networks = Field(min_length=1, examples=[["203.0.113.0/24"]])
    """The networks that may reach it; the whole world is refused."""
    internal: bool = False
    """The load balancer has no address on the internet. Required for what is not encrypted: the dashboard and Jupyter.
    """


class Expose(Section):
    """What can be reached without a port-forward."""

    scheduler: Exposure | None = Field(None, examples=[{"sources": ["203.0.113.0/24"]}])
    """A load balancer for the scheduler."""
    dashboard: Exposure | None = Field(None, examples=[{"sources": ["203.0.113.0/24"]}])
    """A load balancer for the dashboard."""
    jupyter: Exposure | None = Field(None, examples=[{"sources": ["203.0.113.0/24"]}])
    """A load balancer for the notebook server."""
