"""The cost of a GKE stack, and checks of the cost and of the room that its nodes have for its pods."""

import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING

from settings import cost
from settings.common import Conflict, Place, memory
from settings.gke import Pool
from settings.pods import Expose, Pod

if TYPE_CHECKING:
    from settings.kubernetes import KubernetesTarget


# The kind of disk of each of GKE's StorageClasses for one pod.
DISKS = {"standard": "pd-standard", "standard-rwo": "pd-balanced", "premium-rwo": "pd-ssd"}


def bill(cluster: "KubernetesTarget") -> list[cost.Item]:
    """The cost, item by item."""
    gke, prices = cluster.gke, cluster.prices
    pool, system, others = gke.workers, gke.system, cost.others(prices, gke.region)
    up = min(max(cluster.nodes or 0, pool.min_nodes), cluster.max_worker_nodes)
    idle = pool.min_nodes if cluster.limits.idle else up
    most = system.node_limit + cluster.max_worker_nodes
    items = [
        cost.Item("the GKE cluster fee", others["cluster"], others["cluster"]),
        *cost.pool("scheduler and Jupyter", system, 1, 1, prices, gke.region, most=system.node_limit),
        *cost.pool("workers", pool, up, idle, prices, gke.region, most=cluster.max_worker_nodes),
    ]
    if cluster.jupyter.enabled:
        volume = memory(cluster.jupyter.storage) / 2**30 * others["pd-balanced"] / cost.HOURS
        items.append(cost.Item(f"the notebooks' volume, {cluster.jupyter.storage}", volume, volume))
    spill = cluster.workers.spill
    if spill.class_name in DISKS:
        volumes = cluster.replicas * memory(spill.size) / 2**30 * others[DISKS[spill.class_name]] / cost.HOURS
        text = f"{cluster.replicas} volumes for spilled data, {spill.size} each"
        items.append(cost.Item(text, volumes, 0 if cluster.limits.idle else volumes))
    if cluster.data.size:
        volume = memory(cluster.data.size) / 2**30 * others["filestore"] / cost.HOURS
        items.append(cost.Item(f"the shared directory on Filestore, {cluster.data.size}", volume, volume))
    if gke.hardening.private_nodes and not gke.network:
        nat = [others["address"] + others["nat"] * count for count in (1 + up, 1 + idle, most)]
        items.append(cost.Item("Cloud NAT", *nat))
    if balancers := sum(getattr(cluster.expose, name) is not None for name in Expose.model_fields):
        price = balancers * others["loadBalancer"]
        items.append(cost.Item(f"{balancers} load balancers", price, price))
    return items


def cost_conflicts(cluster: "KubernetesTarget") -> Iterator[Conflict]:
    """Unknown machine types, nodes that are too small or too few, unknown prices, and an exceeded cost limit."""
    wrong = []
    spill = cluster.workers.spill.class_name
    if spill and spill not in DISKS:
        place: Place = ("workers", "spill", "className")
        yield Conflict(place, f"{spill} is not a StorageClass of GKE for one pod; write one of {', '.join(DISKS)}")
    for name in ("system", "workers"):
        wrong += cost.machine_conflicts(("cluster", name), getattr(cluster.gke, name), cluster.prices)
    yield from wrong
    pods: list[tuple[str, Pod, Pool]] = [("scheduler", cluster.scheduler, cluster.gke.system)]
    if cluster.jupyter.enabled:
        pods.append(("jupyter", cluster.jupyter, cluster.gke.system))
    pods.append(("workers", cluster.workers, cluster.gke.workers))
    for name, pod, pool in pods:
        size = cost.machine(pool.machine)
        if size and cost.nodes(1, pod.cpu, memory(pod.memory) / 2**30, size) is None:
            place = (name,)
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
    pool = cluster.gke.workers
    if cluster.nodes and cluster.nodes > cluster.max_worker_nodes:
        place = ("cluster", "workers", "maxNodes")
        text = (
            f"{cluster.max_worker_nodes} nodes have no room for {cluster.replicas} workers, which need {cluster.nodes}"
            f" nodes; write at least {cluster.nodes}, or fewer workers"
        )
        yield Conflict(place, text)
    yield from _range_conflicts(cluster)
    machines = {cluster.gke.system.machine, pool.machine}
    if pool.accelerators:
        machines.add(pool.accelerators.type)
    yield from cost.conflicts(cluster.limits, cluster.bill(), cluster.prices, machines)


def _range_conflicts(cluster: "KubernetesTarget") -> Iterator[Conflict]:
    """Address ranges that are too small for the largest number of nodes."""
    google = cluster.gke
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
