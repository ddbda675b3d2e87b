"""The node pools of a GKE cluster's workers, and the groups of workers that run on each."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from settings import cost
from settings.common import Place, memory
from settings.gke import WORKERS, WorkerPool
from settings.pods import KubernetesWorkers

if TYPE_CHECKING:
    from settings.kubernetes import KubernetesTarget


@dataclass(frozen=True)
class Group:
    """Workers that are alike."""

    place: Place
    """The setting that describes them."""
    workers: KubernetesWorkers
    replicas: int
    """The largest number of them."""


@dataclass(frozen=True)
class WorkerNodes:
    """A node pool for workers."""

    name: str
    """The pool's name, such as "workers", or "workers-big" for the group "big"."""
    place: Place
    """The setting that describes it."""
    pool: WorkerPool
    groups: tuple[Group, ...]
    """The workers that run on it."""

    @property
    def replicas(self) -> int:
        """The number of workers."""
        return sum(group.replicas for group in self.groups)

    def per_node(self, group: Group) -> int:
        """The number of the group's workers that fit on a node."""
        gpus = self.pool.accelerators.count if self.pool.accelerators else None
        gib = memory(group.workers.memory) / 2**30
        return cost.per_node(group.workers.cpu, gib, cost.machine(self.pool.machine), gpus)

    @property
    def needed(self) -> int:
        """The number of nodes that the workers need. At least one of each group must fit on a node."""
        return math.ceil(sum(Fraction(group.replicas, self.per_node(group)) for group in self.groups))

    @property
    def most(self) -> int:
        """The largest number of nodes: by default one per worker, and a spare one for rolling updates."""
        return self.pool.max_nodes or max(self.replicas + 1, self.pool.min_nodes)

    @property
    def up(self) -> int:
        """The number of nodes while all workers run."""
        return min(max(self.needed, self.pool.min_nodes), self.most)


def worker_nodes(cluster: "KubernetesTarget") -> list[WorkerNodes]:
    """The common pool comes first, and then those of groups that have their own."""
    main = cluster.workers
    others = sum(each.replicas for each in main.groups)
    shared, own = [Group(("workers",), main, cluster.replicas - others)], []
    for index, each in enumerate(main.groups):
        place: Place = ("workers", "groups", index)
        group = Group(place, each.workers(main), each.replicas)
        if each.pool:
            own.append(WorkerNodes(each.pool_name, (*place, "pool"), each.pool, (group,)))
        else:
            shared.append(group)
    return [WorkerNodes(WORKERS, ("cluster", "workers"), cluster.gke.workers, tuple(shared)), *own]
