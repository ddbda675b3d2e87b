"""The kubeconfig context that a stack uses, and the cluster to which it leads."""

from pathlib import Path

from pulumi import Input, Output, ResourceOptions, Stash, log

from components.kubernetes.dask_on_kubernetes import Access
from daskstack import kubeconfig
from settings.kubernetes import KubeconfigSource


def kept(name: str, source: KubeconfigSource) -> Access:
    """The context in the settings, or else the one that was current at the first `up`, and its file and cluster then.

    If a user switches to another context or another $KUBECONFIG later, or the context's entry changes, this stack must
    not create or destroy anything on another cluster.
    """
    file, current = kubeconfig.locate(source.files, source.context or "")
    context: Input[str] = current if source.context else _first(name, current) if current else ""

    def place(name: str) -> dict[str, str]:
        path = str(_path(source, name) or file)
        return {"kubeconfig": path, **kubeconfig.cluster(path, name)._asdict()}

    first = Stash(
        f"{name}-cluster",
        input=Output.from_input(context).apply(place),
        opts=ResourceOptions(ignore_changes=["input"]),
    ).output
    path = str(file) if source.kubeconfig else first["kubeconfig"]
    return Access(kubeconfig=path, context=context, server=first["server"], authority=first["authority"])


def _path(source: KubeconfigSource, context: str) -> Path | None:
    try:
        return kubeconfig.locate(source.files, context)[0]
    except kubeconfig.KubeconfigError:  # the settings' files no longer have the kept context, but the kept file has it
        return None


def _first(name: str, current: str) -> Output[str]:
    first = Stash(f"{name}-context", input=current, opts=ResourceOptions(ignore_changes=["input"])).output

    def tell(name: str) -> str:
        if name != current:
            log.warn(
                f"the kubeconfig's current context is {current}, but this stack stays on {name}, the current context of"
                " its first up. To move the stack, destroy it and set cluster.context"
            )
        return name

    return first.apply(tell)
