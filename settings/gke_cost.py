"""Checks a GKE stack's cost, and whether its nodes have room for its pods."""

import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING

from settings import cost
from settings.common import (
    Conflict,
    Place,
    memory,
)
from settings.gke import Pool
from settings.pods import Pod

if TYPE_CHECKING:
    from settings.kubernetes import KubernetesTarget


def cost_conflicts(cluster: "KubernetesTarget") -> Iterator[Conflict]:
    """Unknown machine types, nodes that are too small or too few, unknown prices, and an exceeded cost limit."""
    wrong = []
    for name in ("system", "workers"):
        wrong += cost.machine_conflicts(("cluster", name), getattr(cluster.cluster, name), cluster.prices)
    yield from wrong
    pods: list[tuple[str, Pod, Pool]] = [("scheduler", cluster.scheduler, cluster.cluster.system)]
    if cluster.jupyter.enabled:
        pods.append(("jupyter", cluster.jupyter, cluster.cluster.system))
    pods.append(("workers", cluster.workers, cluster.cluster.workers))
    for name, pod, pool in pods:
        size = cost.machine(pool.machine)
        if cost.nodes(1, pod.cpu, memory(pod.memory) / 2**30, size) is None:
            place: Place = (name,)
            machine = ("cluster", "workers" if name == "workers" else "system", "machine")
            cpus, gib = cost.allocatable(size)
            text = (
                f"a pod with {pod.cpu:g} CPUs and {pod.memory} does not fit on a node of type {pool.machine}, which has"
                f" {max(cpus, 0):.1f} CPUs and {max(gib, 0):.1f} GiB for pods; write less, or a larger"
                f" {'.'.join(machine)}"
            )
            wrong.append(text)
            yield Conflict(place, text)
    if wrong:
        return
    pool = cluster.cluster.workers
    if cluster.nodes > cluster.max_worker_nodes:
        place = ("cluster", "workers", "maxNodes")
        text = (
            f"{cluster.max_worker_nodes} nodes have no room for {cluster.replicas} workers, which need {cluster.nodes}"
            f" nodes; write at least {cluster.nodes}, or fewer workers.replicas"
        )
        yield Conflict(place, text)
    yield from _range_conflicts(cluster)
    machines = {cluster.cluster.system.machine, pool.machine}
    if pool.accelerators:
        machines.add(pool.accelerators.type)
    yield from cost.conflicts(cluster.limits, cluster.bill(), cluster.prices, machines)


def _range_conflicts(cluster: "KubernetesTarget") -> Iterator[Conflict]:
    """Address ranges that are too small for the largest number of nodes."""
    google = cluster.cluster
    if google.network:
        return
    nodes = google.system.node_limit + cluster.max_worker_nodes
    # Google reserves four addresses of each subnetwork.
    for name, needed in ("nodes", nodes + 4), ("pods", nodes * 256), ("services", 16):
        network = ipaddress.ip_network(getattr(google.ranges, name))
        if network.num_addresses < needed:
            place = ("cluster", "ranges", name)
            shortest = 32 - (needed - 1).bit_length()
            text = f"{network} is too small for {nodes} nodes; write a /{shortest} or larger, e.g. 10.64.0.0/{shortest}"
            yield Conflict(place, text)
