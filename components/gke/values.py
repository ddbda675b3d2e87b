"""What the Helm release is told: pure functions of the settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lock import Lock
from settings.gke import Exposure, Gke, Pod

INTERNAL = {"networking.gke.io/load-balancer-type": "Internal"}
# Where each thing that can be exposed is in the chart's values.
SERVICES = {"scheduler": "scheduler", "dashboard": "webUI", "jupyter": "jupyter"}
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15} | {
    f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("kmgtp", 1)
}


@dataclass(frozen=True)
class Names:
    """The Secrets that the release reads; empty where there is none."""

    scheduler: str
    worker: str
    client: str
    password: str


def own(settings: Gke, names: Names, locks: Mapping[str, Lock], uv: str, restart: str) -> dict[str, Any]:
    """Values of charts/dask. `locks` has `environment` and `jupyter`; `restart` changes where Secrets do."""
    image = _image(settings.image or f"python:{settings.environment.python}-slim")
    lock = {} if settings.image else {name: "\n".join(each.requirements) for name, each in locks.items()}
    environment = [{"name": name, "value": value} for name, value in settings.dask.env.items()]
    values = {
        "environment": {"lock": lock.get("environment", ""), "uv": uv, "extra": list(settings.packages.pip)},
        "config": settings.dask.config,
        "tls": {"scheduler": names.scheduler, "worker": names.worker, "client": names.client},
        "restart": restart,
        "scheduler": {
            **_pod(settings.scheduler),
            "image": image,
            "env": environment,
            "extraArgs": list(settings.dask.scheduler_args),
        },
        "worker": {
            **_pod(settings.workers),
            "image": image,
            "env": environment,
            "extraArgs": list(settings.dask.worker_args),
            "replicas": settings.workers.replicas,
            "threads_per_worker": settings.workers.threads,
            "gracePeriod": settings.workers.grace_period,
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
    return merged(values, settings.values)


def _pod(pod: Pod) -> dict[str, Any]:
    amount = {"cpu": f"{round(pod.cpu * 1000)}m", "memory": str(memory(pod.memory))}
    return {
        "resources": {"requests": amount, "limits": amount},
        "nodeSelector": pod.node_selector,
        "tolerations": list(pod.tolerations),
        "serviceAccountName": pod.service_account or "",
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


def memory(text: str) -> int:
    """An amount of memory in bytes: Dask's "2 GiB" is 2Gi to Kubernetes, its "2 GB" 2G."""
    number = text.rstrip("BbIiKkMmGgTtPp ")
    unit = text[len(number) :].strip().lower().removesuffix("b")
    return int(float(number) * UNITS[unit])


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` wins, key by key; lists as a whole, as Helm does."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
