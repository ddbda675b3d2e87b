"""Dask's configuration on both targets."""

from collections.abc import Mapping
from typing import Any

# Workers can be gone this long for a good reason: machines start, and a cloud may have none for a while.
NO_WORKERS = "30 minutes"


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merges as Helm does: keys of `above` win, and its lists replace those of `below`."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the settings, with this program's defaults."""
    # By default, a task that no worker can run waits forever.
    return merged({"distributed": {"scheduler": {"no-workers-timeout": NO_WORKERS}}}, config)
