"""A rehearsal's machines, which stand in for those of Compute Engine."""

from hashlib import sha256
from pathlib import Path


def bridge(machines: Path) -> str:
    """The name that on_this_computer/local_machines/network.sh gives to the network of the machines in a folder."""
    return f"dask-{sha256(str(machines).encode()).hexdigest()[:8]}"
