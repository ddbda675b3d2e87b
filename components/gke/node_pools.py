"""Which nodes of a GKE cluster run what."""

from typing import Any

SYSTEM, WORKERS = "system", "workers"
# On workers' nodes runs nothing else, so that they can go when workers do.
TAINT = {"key": "dask", "value": WORKERS, "effect": "NO_SCHEDULE"}
TOLERATION = {"key": TAINT["key"], "operator": "Equal", "value": TAINT["value"], "effect": "NoSchedule"}
GPU = "nvidia.com/gpu"


def label(pool: str) -> dict[str, str]:
    """By which pods find the nodes of a pool. One label each: where there is but one node, it has both."""
    return {f"dask-{pool}": "yes"}


def placement(pool: str) -> dict[str, Any]:
    """What the chart's values say to have a kind of pod on a pool's nodes, and there alone."""
    return {"nodeSelector": label(pool), "tolerations": [TOLERATION] if pool == WORKERS else []}
