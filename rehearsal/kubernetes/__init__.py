"""A Kubernetes of one node on this Linux computer, without a registry and without a way to the outside."""


class NodeError(RuntimeError):
    """What did not work, where it tells more about itself, and what to do."""
