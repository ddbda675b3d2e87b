"""How this computer gets to what a stack has inside: through SSH, or through Kubernetes."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from daskstack import kubectl, wake_machines
from daskstack.tunnel import Way, tunnel


def wake(facts: Mapping[str, Any]) -> int:
    """Brings back what `limits.idle` has let go; returns how many workers will come."""
    if not facts.get("sleeps"):
        return 0
    if "kubernetes" in facts:
        return kubectl.wake(facts["kubernetes"], facts["namespace"])
    return wake_machines.wake(facts)


def way_to(facts: Mapping[str, Any], targets: Sequence[str]) -> AbstractContextManager[Way]:
    """Ports of this computer's loopback that lead to `targets` ("host:port", as the cluster itself names them).

    `facts` is the stack's output `client`. The ports are open inside the context; TunnelError where they do not open.
    """
    if "kubernetes" in facts:
        return kubectl.forward(facts["kubernetes"], facts["namespace"], targets)
    return tunnel(facts["tunnel"], targets)
