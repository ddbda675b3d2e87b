"""The node pools of a GKE cluster, and the pods that run on each."""

from typing import Any

SYSTEM = "system"
TAINT = "dask"
DATA_CLASS = "dask-data"  # StorageClass of the shared directory
GPU = "nvidia.com/gpu"
CLASS = "cloud.google.com/compute-class"  # GKE's label and taint of the nodes of a ComputeClass


def label(pool: str) -> dict[str, str]:
    """The label of a pool's nodes. Each pool has its own label, so that a rehearsal's only node can have both."""
    return {f"dask-{pool}": "yes"}


def taint(pool: str) -> dict[str, str]:
    """The taint of a pool of workers, so that nothing else lands on its nodes and they can scale to zero."""
    return {"key": TAINT, "value": pool, "effect": "NO_SCHEDULE"}


def placement(pool: str, classed: bool = False) -> dict[str, Any]:
    """The chart's values that schedule a kind of pod on the nodes of a pool, or of its ComputeClass, and on no others.

    GKE advises against other node labels together with a ComputeClass.
    """
    taints = [] if pool == SYSTEM else [taint(pool), *([class_taint(pool)] if classed else [])]
    tolerations = [each | {"operator": "Equal", "effect": "NoSchedule"} for each in taints]
    return {"nodeSelector": class_label(pool) if classed else label(pool), "tolerations": tolerations}


def class_label(pool: str) -> dict[str, str]:
    return {CLASS: f"dask-{pool}"}


def class_taint(pool: str) -> dict[str, str]:
    return {"key": CLASS, "value": f"dask-{pool}", "effect": "NO_SCHEDULE"}


def compute_class(pools: list[str]) -> dict[str, Any]:
    """The specification of a ComputeClass that prefers earlier node pools.

    Source: https://cloud.google.com/kubernetes-engine/docs/reference/crds/computeclass
    """
    return {
        "priorities": [{"nodepools": [pool]} for pool in pools],
        "activeMigration": {"optimizeRulePriority": True},  # moves workers back to better nodes when there are some
        "whenUnsatisfiable": "DoNotScaleUp",
    }
