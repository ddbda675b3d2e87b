"""The node pools of a GKE cluster's workers, and the groups of workers that run on each."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from settings import cost
from settings.common import Conflict, Place, dotted, memory
from settings.gke import WORKERS, Capacity, WorkerPool
from settings.pods import KubernetesWorkers

if TYPE_CHECKING:
    from settings.kubernetes import KubernetesTarget

LONGEST = 40  # Google's limit of a node pool's name


@dataclass(frozen=True)
class Group:
    """Workers that are alike."""

    place: Place
    """The setting that describes them."""
    workers: KubernetesWorkers
    replicas: int
    """The largest number of them."""


@dataclass(frozen=True)
class NodePool:
    """A node pool of GKE."""

    name: str
    place: Place
    """The setting that describes its machines."""
    pool: WorkerPool
    """Its settings; those of its entry of `capacity` replace the others."""
    zone: str | None
    """The zone of its nodes, or None for the cluster's zones."""

    def per_node(self, group: Group) -> int:
        """The number of the group's workers that fit on a node."""
        gpus = self.pool.accelerators.count if self.pool.accelerators else None
        gib = memory(group.workers.memory) / 2**30
        return cost.per_node(group.workers.cpu, gib, cost.machine(self.pool.machine), gpus)


@dataclass(frozen=True)
class WorkerNodes:
    """Nodes for workers: a node pool, or with `capacity` one for each of its entries."""

    name: str
    """Their name, such as "workers", or "workers-big" for the group "big"."""
    place: Place
    """The setting that describes them."""
    pool: WorkerPool
    groups: tuple[Group, ...]
    """The workers that run on them."""
    location: str
    """The cluster's zone or region."""

    @property
    def pools(self) -> list[NodePool]:
        """The node pools, the preferred one first."""
        if not self.pool.capacity:
            return [NodePool(self.name, self.place, self.pool, None)]
        return [self._pool(index, kind) for index, kind in enumerate(self.pool.capacity)]

    def _pool(self, index: int, kind: Capacity) -> NodePool:
        changed = {name: value for name in ("machine", "spot") if (value := getattr(kind, name)) is not None}
        pool = self.pool.model_copy(update=changed)
        zone = kind.zone or (self.location if self.location.count("-") == 2 else None)
        # Named after its contents, so that entries can change their order.
        name = [self.name, *(zone[-1:] if zone else ""), pool.machine, *(["spot"] if pool.spot else [])]
        return NodePool("-".join(name), (*self.place, "capacity", index), pool, zone)

    @property
    def replicas(self) -> int:
        """The number of workers."""
        return sum(group.replicas for group in self.groups)

    def needed(self, pool: NodePool) -> int:
        """The number of nodes of this pool that all workers need. At least one of each group must fit on a node."""
        return math.ceil(sum(Fraction(group.replicas, pool.per_node(group)) for group in self.groups))

    @property
    def most(self) -> int:
        """The largest number of nodes: by default one per worker, and a spare one for rolling updates."""
        return self.pool.max_nodes or max(self.replicas + 1, self.pool.min_nodes)

    @property
    def up(self) -> int:
        """The number of nodes while all workers run on the preferred ones."""
        return min(max(self.needed(self.pools[0]), self.pool.min_nodes), self.most)


def worker_nodes(cluster: "KubernetesTarget") -> list[WorkerNodes]:
    """Those that workers share come first, and then those of groups that have their own."""
    main, location = cluster.workers, cluster.gke.location
    others = sum(each.bounds[1] for each in main.groups)
    shared, own = [Group(("workers",), main, cluster.replicas - others)], []
    for index, each in enumerate(main.groups):
        place: Place = ("workers", "groups", index)
        group = Group(place, each.workers(main), each.bounds[1])
        if each.pool:
            own.append(WorkerNodes(each.pool_name, (*place, "pool"), each.pool, (group,), location))
        else:
            shared.append(group)
    return [WorkerNodes(WORKERS, ("cluster", "workers"), cluster.gke.workers, tuple(shared), location), *own]


def name_conflicts(all_nodes: list[WorkerNodes]) -> Iterator[Conflict]:
    """Node pools whose names are too long or the same."""
    names: dict[str, Place] = {}
    for each in (pool for nodes in all_nodes for pool in nodes.pools):
        if (first := names.setdefault(each.name, each.place)) != each.place:
            yield Conflict(each.place, f"is the same kind of nodes as {dotted(first)[1:]}; remove one of them")
        elif len(each.name) > LONGEST:
            text = f"its node pool's name {each.name} has more than {LONGEST} characters; write a shorter group name"
            yield Conflict(each.place, text)
