"""Which context of a kubeconfig a stack acts on."""

from pulumi import Input, ResourceOptions, Stash, log

from settings.kubernetes import KubeconfigSource


def kept(name: str, cluster: KubeconfigSource) -> Input[str]:
    """The context that the settings name, else the one that was current at the first `up`.

    Whoever switches to another cluster meanwhile must not build this stack there, or destroy there what has its names.
    """
    if cluster.context or not (current := cluster.current):
        return cluster.context or ""
    first = Stash(f"{name}-context", input=current, opts=ResourceOptions(ignore_changes=["input"])).output

    def tell(name: str) -> str:
        if name != current:
            log.warn(
                f"the kubeconfig's current context is {current}, and this stack stays on {name}, which was current at"
                " its first up; to move it, destroy it and write cluster.context"
            )
        return name

    return first.apply(tell)
