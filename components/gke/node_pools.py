"""The node pools of a GKE cluster, and the pods that run on each."""

from typing import Any

SYSTEM = "system"
TAINT = "dask"
DATA_CLASS = "dask-data"  # StorageClass of the shared directory
GPU = "nvidia.com/gpu"


def label(pool: str) -> dict[str, str]:
    """The label of a pool's nodes. Each pool has its own label, so that a rehearsal's only node can have both."""
    return {f"dask-{pool}": "yes"}


def taint(pool: str) -> dict[str, str]:
    """The taint of a pool of workers, so that nothing else lands on its nodes and they can scale to zero."""
    return {"key": TAINT, "value": pool, "effect": "NO_SCHEDULE"}


def placement(pool: str) -> dict[str, Any]:
    """The chart's values that schedule a kind of pod on the nodes of a pool and on no others."""
    toleration = {"key": TAINT, "operator": "Equal", "value": pool, "effect": "NoSchedule"}
    return {"nodeSelector": label(pool), "tolerations": [] if pool == SYSTEM else [toleration]}
