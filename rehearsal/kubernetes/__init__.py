"""A single-node Kubernetes on this Linux computer, without a registry and without access to other networks."""


class NodeError(RuntimeError):
    """An error for the user, with the cause and the remedy."""
