"""The node pools of a GKE cluster, and the pods that run on each."""

from typing import Any

SYSTEM, WORKERS = "system", "workers"
# Taint worker nodes so that nothing else lands there and they can scale to zero.
TAINT = {"key": "dask", "value": WORKERS, "effect": "NO_SCHEDULE"}
TOLERATION = {"key": TAINT["key"], "operator": "Equal", "value": TAINT["value"], "effect": "NoSchedule"}
DATA_CLASS = "dask-data"  # StorageClass of the shared directory
GPU = "nvidia.com/gpu"


def label(pool: str) -> dict[str, str]:
    """The label of a pool's nodes. Each pool has its own label, so that a rehearsal's only node can have both."""
    return {f"dask-{pool}": "yes"}


def placement(pool: str) -> dict[str, Any]:
    """The chart's values that schedule a kind of pod on the nodes of a pool and on no others."""
    return {"nodeSelector": label(pool), "tolerations": [TOLERATION] if pool == WORKERS else []}
