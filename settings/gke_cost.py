"""The cost of a GKE stack, and checks of the cost and of the room that its nodes have for its pods."""

import ipaddress
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from settings import cost
from settings.common import Conflict, Place, dotted, memory
from settings.gke import Pool
from settings.pods import Expose, Pod
from settings.worker_nodes import NodePool, WorkerNodes, name_conflicts

if TYPE_CHECKING:
    from settings.kubernetes import KubernetesTarget


# The kind of disk of each of GKE's StorageClasses for one pod.
DISKS = {"standard": "pd-standard", "standard-rwo": "pd-balanced", "premium-rwo": "pd-ssd"}


def bill(cluster: "KubernetesTarget") -> list[cost.Item]:
    """The cost, item by item."""
    gke, prices = cluster.gke, cluster.prices
    system, others = gke.system, cost.others(prices, gke.region)
    items = [
        cost.Item("the GKE cluster fee", others["cluster"], others["cluster"]),
        *cost.pool("scheduler and Jupyter", system, 1, 1, prices, gke.region, most=system.node_limit),
    ]
    running, resting, most = 1, 1, system.node_limit  # nodes while workers run, while none do, and at most
    for nodes in cluster.worker_nodes:
        idle = nodes.pool.min_nodes if cluster.limits.idle else nodes.up
        usual = list(_nodes(nodes, nodes.pools[0], idle, prices, gke.region))
        items += [*usual, *_fallbacks(nodes, usual, prices, gke.region)]
        running, resting, most = running + nodes.up, resting + idle, most + nodes.most
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
        nat = [others["address"] + others["nat"] * count for count in (running, resting, most)]
        items.append(cost.Item("Cloud NAT", *nat))
    if balancers := sum(getattr(cluster.expose, name) is not None for name in Expose.model_fields):
        price = balancers * others["loadBalancer"]
        items.append(cost.Item(f"{balancers} load balancers", price, price))
    return items


def _nodes(
    nodes: WorkerNodes, pool: NodePool, idle: int, prices: Mapping[str, float], region: str
) -> Iterator[cost.Item]:
    return cost.pool(nodes.name, pool.pool, nodes.up, idle, prices, region, most=nodes.most)


def _fallbacks(
    nodes: WorkerNodes, usual: list[cost.Item], prices: Mapping[str, float], region: str
) -> Iterator[cost.Item]:
    """What the most expensive entry of `capacity` adds to the largest cost of the first one, which is `usual`."""
    others = {pool.name: list(_nodes(nodes, pool, 0, prices, region)) for pool in nodes.pools[1:]}
    yield from cost.fallbacks(usual, others)


def cost_conflicts(cluster: "KubernetesTarget") -> Iterator[Conflict]:
    """Unknown machine types, nodes that are too small or too few, unknown prices, and an exceeded cost limit."""
    wrong: list[Conflict] = []
    spill = cluster.workers.spill.class_name
    if spill and spill not in DISKS:
        place: Place = ("workers", "spill", "className")
        yield Conflict(place, f"{spill} is not a StorageClass of GKE for one pod; write one of {', '.join(DISKS)}")
    system, workers = ("cluster", "system"), cluster.worker_nodes
    pools: dict[Place, Pool] = {system: cluster.gke.system}
    pools |= {each.place: each.pool for nodes in workers for each in nodes.pools}
    for place, pool in pools.items():
        wrong += map(cost.of_all_entries, cost.machine_conflicts(place, pool, cluster.prices))
    wrong += name_conflicts(workers)
    pods: list[tuple[Place, Pod, Place]] = [(("scheduler",), cluster.scheduler, system)]
    if cluster.jupyter.enabled:
        pods.append((("jupyter",), cluster.jupyter, system))
    pods += [
        (group.place, group.workers, each.place) for nodes in workers for group in nodes.groups for each in nodes.pools
    ]
    for place, pod, where in pods:
        machine = pools[where].machine
        size = cost.machine(machine)
        if size and not cost.per_node(pod.cpu, memory(pod.memory) / 2**30, size):
            cpus, gib = cost.allocatable(size)
            text = (
                f"a pod with {pod.cpu:g} CPUs and {pod.memory} does not fit on a node of type {machine}, which has"
                f" {max(cpus, 0):.1f} CPUs and {max(gib, 0):.1f} GiB for pods; write less, or a larger"
                f" {dotted((*where, 'machine'))[1:]}"
            )
            wrong.append(Conflict(place, text))
    yield from dict.fromkeys(wrong)
    if wrong:
        return
    for nodes in workers:
        needed = max(map(nodes.needed, nodes.pools))
        if needed > nodes.most:
            text = (
                f"{nodes.most} nodes have no room for {nodes.replicas} workers, which need {needed} nodes; write"
                f" at least {needed}, or fewer workers"
            )
            yield Conflict((*nodes.place, "maxNodes"), text)
    yield from _range_conflicts(cluster)
    machines = {pool.machine for pool in pools.values()}
    machines |= {nodes.pool.accelerators.type for nodes in workers if nodes.pool.accelerators}
    yield from cost.conflicts(cluster.limits, cluster.bill(), cluster.prices, machines)


def _range_conflicts(cluster: "KubernetesTarget") -> Iterator[Conflict]:
    """Address ranges that are too small for the largest number of nodes."""
    google = cluster.gke
    if google.network:
        return
    nodes = google.system.node_limit + sum(each.most for each in cluster.worker_nodes)
    # Google reserves four addresses of each subnetwork.
    for name, needed in ("nodes", nodes + 4), ("pods", nodes * 256), ("services", 16):
        network = ipaddress.ip_network(getattr(google.ranges, name))
        if network.num_addresses < needed:
            place = ("cluster", "ranges", name)
            shortest = 32 - (needed - 1).bit_length()
            text = f"{network} is too small for {nodes} nodes; write a /{shortest} or larger, e.g. 10.64.0.0/{shortest}"
            yield Conflict(place, text)
