"""The values of the Helm release, as pure functions of the settings."""

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from pulumi import Input

from components.dask_config import merged, with_defaults
from components.gke.node_pools import DATA_CLASS, GPU, SYSTEM, placement
from daskstack.engine import PROJECT
from settings.common import memory, resources_argument, seconds
from settings.gke import WORKERS, GkeSource, Pool, WorkerPool
from settings.kubernetes import KubernetesTarget
from settings.lock import Lock
from settings.pods import Exposure, KubernetesWorkers, Pod, WorkerGroup

DASKDATA = PROJECT / "daskstack" / "daskdata.py"
# Annotations for a load balancer without an address on the internet. Each cloud reads its own and ignores the others.
INTERNAL = {
    "networking.gke.io/load-balancer-type": "Internal",
    "service.beta.kubernetes.io/aws-load-balancer-internal": "true",
    "service.beta.kubernetes.io/aws-load-balancer-scheme": "internal",
    "service.beta.kubernetes.io/azure-load-balancer-internal": "true",
}
# The sections of the chart's values for `expose.scheduler`, `expose.dashboard` and `expose.jupyter`.
SERVICES = {"scheduler": "scheduler", "dashboard": "webUI", "jupyter": "jupyter"}


@dataclass(frozen=True)
class Names:
    """Names of the Secrets that the release reads, and of its ConfigMap with wheels. Empty names stand for none."""

    scheduler: str
    worker: str
    client: str
    password: str
    secret_env: str = ""
    wheels: str = ""


@dataclass(frozen=True)
class SecretEnv:
    """Secret environment variables for the official chart."""

    secret: str
    """The name of the Secret that has them."""
    names: list[str]
    restart: Input[str]
    """A text that changes whenever a secret value changes, so that the pods restart."""


def own(
    settings: KubernetesTarget, names: Names, locks: Mapping[str, Lock], uv: str, restart: Input[str]
) -> dict[str, Any]:
    """Values of charts/dask. `locks` has `environment` and `jupyter`. Pods restart when `restart` changes."""
    image = _image(settings.image or f"python:{settings.environment.python}-slim")
    lock = {} if settings.image else {name: "\n".join(each.requirements) for name, each in locks.items()}
    environment = [{"name": name, "value": value} for name, value in settings.dask.env.items()]
    values = {
        "environment": {
            "lock": lock.get("environment", ""),
            "uv": uv,
            "extra": list(settings.packages.pip),
            "system": ["libgomp1", *settings.environment.system],
            "wheels": names.wheels,
            "authority": settings.environment.authority,
        },
        "config": _dask_config(settings),
        "tls": {"scheduler": names.scheduler, "worker": names.worker, "client": names.client},
        "restart": restart,
        "secretEnv": names.secret_env,
        "networkPolicy": {
            "libraries": settings.dask.ports.libraries or "",
            "metadata": bool(settings.data.buckets),
            "egress": {"to": [{"ipBlock": {"cidr": network}} for network in settings.egress]},
        },
        "data": {
            "size": settings.data.size or "",
            "path": settings.data.path,
            "className": DATA_CLASS if isinstance(settings.cluster, GkeSource) else settings.data.class_name,
            "keep": not settings.data.delete,
            "module": DASKDATA.read_text() if settings.data.size else "",
        },
        "bounds": dict(zip(("min", "max"), settings.workers.bounds or (None, None), strict=True)),
        "idleTimeout": seconds(settings.limits.idle) if settings.limits.idle else None,
        "scheduler": {
            **_pod(settings.scheduler),
            "image": image,
            "env": environment,
            "extraArgs": list(settings.dask.scheduler_args),
        },
        "worker": {
            **_workers(settings, settings.workers),
            "image": image,
            "env": environment,
            "gracePeriod": settings.workers.grace_period,
            "spill": {"size": settings.workers.spill.size, "className": settings.workers.spill.class_name},
        },
        "jupyter": {
            **_pod(settings.jupyter),
            "image": image,
            "env": environment,
            "enabled": settings.jupyter.enabled,
            "lock": lock.get("jupyter", ""),
            "passwordSecret": names.password,
            "storage": {"size": settings.jupyter.storage, "keep": settings.jupyter.keep},
        },
    }
    for name, section in SERVICES.items():
        if exposure := getattr(settings.expose, name):
            values = merged(values, {section: _exposed(exposure)})
    values = _placed(values, settings)
    if settings.workers.groups:
        groups = [_group(settings, group, values["worker"]) for group in settings.workers.groups]
        values = merged(values, {"additional_worker_groups": groups})
    return _with_values(values, settings.values)


def archive(files: Iterable[Path]) -> bytes:
    """A zip archive of the files, which is the same for the same files."""
    made = BytesIO()
    with zipfile.ZipFile(made, "w") as new:
        for file in files:
            new.writestr(zipfile.ZipInfo(file.name), file.read_bytes())
    return made.getvalue()


def _dask_config(settings: KubernetesTarget) -> dict[str, Any]:
    # Kubernetes evicts a worker whose folder is full, so the worker stops spilling before.
    limit = memory(settings.workers.spill.size) * 9 // 10
    return merged({"distributed": {"worker": {"memory": {"max-spill": limit}}}}, with_defaults(settings.dask.config))


def _placed(values: dict[str, Any], settings: KubernetesTarget) -> dict[str, Any]:
    """If the stack has its own GKE cluster, schedules each kind of pod on the nodes of its pool."""
    if not isinstance(settings.cluster, GkeSource):
        return values
    workers = _on_pool(values["worker"], WORKERS, settings.cluster.workers)
    system = {name: _on_pool(values[name], SYSTEM, settings.cluster.system) for name in ("scheduler", "jupyter")}
    return {**values, **system, "worker": workers}


def _on_pool(section: dict[str, Any], name: str, pool: Pool) -> dict[str, Any]:
    """Schedules a kind of pod on the nodes of this pool. Each pod uses one GPU if they have any."""
    workers = pool if isinstance(pool, WorkerPool) else None
    own = placement(name, classed=bool(workers and workers.capacity))
    gpus = {"resources": {"limits": {GPU: 1}}} if workers and workers.accelerators else {}
    tolerations = [*own["tolerations"], *section["tolerations"]]
    return merged(section, {"nodeSelector": own["nodeSelector"], "tolerations": tolerations, **gpus})


def _workers(settings: KubernetesTarget, workers: KubernetesWorkers) -> dict[str, Any]:
    return {
        **_pod(workers),
        "extraArgs": list(settings.dask.worker_args),
        "replicas": workers.replicas,
        "threads_per_worker": workers.threads_per_worker,
    }


def _group(settings: KubernetesTarget, group: WorkerGroup, main: dict[str, Any]) -> dict[str, Any]:
    """The chart's values of a group. The chart takes what they lack from `main`, those of the main group."""
    resources = ["--resources", resources_argument(group.resources)] if group.resources else []
    section: dict[str, Any] = {
        **_workers(settings, group.workers(settings.workers)),
        "name": f"worker-{group.name}",
        "extraArgs": [*settings.dask.worker_args, *resources],
    }
    if group.max is not None:
        section["bounds"] = {"min": group.min, "max": group.max, "resources": group.resources}
    if isinstance(settings.cluster, GkeSource):
        section = _on_pool(section, group.pool_name, group.pool or settings.cluster.workers)
    # The chart would add the main group's node labels and GPUs.
    foreign = {
        "nodeSelector": main["nodeSelector"].keys() - section["nodeSelector"].keys(),
        "resources": main["resources"]["limits"].keys() - section["resources"]["limits"].keys(),
    }
    return {**section, "replaces": [name for name, keys in foreign.items() if keys]}


def _pod(pod: Pod) -> dict[str, Any]:
    amount = {"memory": str(memory(pod.memory))}
    account = {"serviceAccountName": pod.service_account} if pod.service_account else {}
    return {
        # No CPU limit: pods may use idle CPUs, which makes starts and bursts faster.
        "resources": {"requests": {"cpu": f"{round(pod.cpu * 1000)}m", **amount}, "limits": amount},
        "nodeSelector": pod.node_selector,
        "tolerations": list(pod.tolerations),
        **account,
    }


def _image(name: str) -> dict[str, str]:
    repository, _, tag = name.rpartition(":")
    return {"repository": repository, "tag": tag}


def _exposed(exposure: Exposure) -> dict[str, Any]:
    return {
        "serviceType": "LoadBalancer",
        "sourceRanges": list(exposure.sources),
        "serviceAnnotations": INTERNAL if exposure.internal else {},
    }


def _with_values(values: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Merges the stack's own values. Their variables do not replace those of this program."""
    result = merged(values, own)
    for part in ("scheduler", "worker", "jupyter"):
        if more := (own.get(part) or {}).get("env"):
            result = merged(result, {part: {"env": [*values[part]["env"], *more]}})
    return result


def official(settings: KubernetesTarget, lock: Lock, password: Input[str], secret: SecretEnv) -> dict[str, Any]:
    """Values of the official chart. `password` is a hash of the form "sha1:salt:digest", which its Jupyter expects."""
    pins = [f"{name}=={version}" for name, version in lock.packages.items()]
    installed = {"PIP": [*pins, *settings.packages.pip], "CONDA": settings.packages.conda, "APT": settings.packages.apt}
    variables = {
        **settings.dask.env,
        **{f"EXTRA_{kind}_PACKAGES": " ".join(words) for kind, words in installed.items() if words},
        **{
            f"DASK_{'__'.join(path).upper().replace('-', '_')}": value
            for path, value in leaves(with_defaults(settings.dask.config))
        },
    }
    environment: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in variables.items()]
    if secret.names:
        environment += [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": secret.secret, "key": name}}} for name in secret.names
        ]
        environment.append({"name": "RESTART", "value": secret.restart})
    image = {"image": _image(settings.image)} if settings.image else {}
    values = {
        "scheduler": {
            **_pod(settings.scheduler),
            **image,
            "env": environment,
            "extraArgs": list(settings.dask.scheduler_args),
        },
        "worker": {
            **_workers(settings, settings.workers),
            **image,
            "env": environment,
        },
        "jupyter": {
            **_pod(settings.jupyter),
            "env": [*environment, {"name": "JUPYTERLAB_ARGS", "value": JUPYTER_CONFIG}],
            "enabled": settings.jupyter.enabled,
            "password": password,
            "passwordHint": "",
        },
    }
    if exposure := settings.expose.scheduler:
        annotations = {SOURCES: ",".join(exposure.sources)} | (INTERNAL if exposure.internal else {})
        service = {"serviceType": "LoadBalancer", "serviceAnnotations": annotations}
        values = merged(values, {"scheduler": service})
    return _with_values(_placed(values, settings), settings.values)


# Without this option the official notebook image ignores the password that its chart sets.
JUPYTER_CONFIG = "--config /usr/local/etc/jupyter/jupyter_notebook_config.py"
SOURCES = "service.beta.kubernetes.io/load-balancer-source-ranges"


def leaves(config: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """The settings of a Dask configuration: the keys of each, and its value as Dask reads it from a variable."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value if isinstance(value, str) else repr(value)
