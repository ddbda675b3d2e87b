"""Connects a notebook or a program to a stack: `daskstack.connect("dev")`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daskstack.cluster import StackCluster
    from daskstack.connection import Client, connect

__all__ = ["Client", "StackCluster", "connect"]


def __getattr__(name: str):
    # Import Dask only on use: the set-up runs parts of this package before Dask is installed.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from daskstack import cluster, connection

    return getattr(cluster if name == "StackCluster" else connection, name)
