"""The kubeconfig context that a stack uses."""

from pulumi import Input, ResourceOptions, Stash, log

from settings.kubernetes import KubeconfigSource


def kept(name: str, cluster: KubeconfigSource) -> Input[str]:
    """The context in the settings, or else the context that was current at the first `up`.

    If a user switches to another context later, this stack must not create or destroy anything there.
    """
    if cluster.context or not (current := cluster.current):
        return cluster.context or ""
    first = Stash(f"{name}-context", input=current, opts=ResourceOptions(ignore_changes=["input"])).output

    def tell(name: str) -> str:
        if name != current:
            log.warn(
                f"the kubeconfig's current context is {current}, but this stack stays on {name}, the current context of"
                " its first up. To move the stack, destroy it and set cluster.context"
            )
        return name

    return first.apply(tell)
