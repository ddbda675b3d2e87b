"""Reaches a cluster from this computer, through SSH or through Kubernetes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from daskstack import kubectl, wake_machines
from daskstack.client_output import KubernetesClient, MachinesClient
from daskstack.tunnel import Way, tunnel


def wake(client: MachinesClient | KubernetesClient) -> int:
    """Starts the workers that `limits.idle` has stopped; returns how many."""
    if not client.sleeps:
        return 0
    if isinstance(client, KubernetesClient):
        return kubectl.wake(client.kubernetes, client.namespace)
    least = client.bounds[0] if client.bounds else None
    return wake_machines.wake(client.google, client.tunnel, client.head, least) if client.google else 0


def way_to(
    client: MachinesClient | KubernetesClient, targets: Sequence[str], restarts: bool = False
) -> AbstractContextManager[Way]:
    """Ports of this computer's loopback that lead to `targets` ("host:port", as the cluster itself names them).

    The ports are open inside the context. Raises TunnelError if they do not open. With `restarts`, an SSH tunnel that
    ends is opened again, as kubectl's port-forward always is.
    """
    if isinstance(client, KubernetesClient):
        return kubectl.forward(client.kubernetes, client.namespace, targets)
    return tunnel(client.tunnel, targets, restarts)
