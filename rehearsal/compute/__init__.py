"""Machines of a rehearsal in the place of Compute Engine's."""

from hashlib import sha256
from pathlib import Path


def bridge(machines: Path) -> str:
    """What on_this_computer/local_machines/network.sh calls the network of the machines in a folder."""
    return f"dask-{sha256(str(machines).encode()).hexdigest()[:8]}"
