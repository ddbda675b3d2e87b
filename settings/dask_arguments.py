"""Arguments and configuration of Dask that a stack cannot set, because this program sets them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from settings.common import Conflict

# Dashboards have no login, so options that do more than display data are rejected.
_OPEN_ARGUMENTS = {"--(no-)?jupyter": "remove it, because anyone who can reach the dashboard could run code"}
_OPEN_CONFIG = {
    r"distributed\.(scheduler|worker)\.http\.routes": (
        "remove it, because dashboards have no login and some routes change the cluster"
    )
}

# For each target: patterns of the names, and what to use instead.
MACHINES_ARGUMENTS = {
    "--(port|dashboard-address)": "use dask.ports",
    "--(worker|nanny)-port": "use dask.ports.workers",
    "--nthreads": "use workers.threads",
    "--nworkers": "use workers.perMachine",
    "--memory-limit": "use workers.memoryLimit",
    "--local-directory": "use workers.spill",
    "--protocol|--tls-.*": "use dask.tls",
    "--(contact-address|host|interface|listen-address|name|pid-file|scheduler-(file|port)|version|help)": "remove it",
    **_OPEN_ARGUMENTS,
}
MACHINES_CONFIG = {
    r"distributed\.comm\.(default-scheme|require-encryption|tls(\..*)?)": "use dask.tls",
    "temporary-directory": "use workers.spill",
    **_OPEN_CONFIG,
}
PODS_ARGUMENTS = {
    "--nthreads": "use workers.threads",
    "--memory-limit": "use workers.memory",
    "--protocol|--tls-.*": "use dask.tls",
    "--(port|dashboard-address|contact-address|host|interface|listen-address|local-directory|name|nworkers|pid-file"
    "|scheduler-(file|port)|version|help)": "remove it",
    **_OPEN_ARGUMENTS,
}
KUBERNETES_CONFIG = {
    r"(distributed\.comm\.)?(default-scheme|require-encryption|tls(\..*)?)": "use dask.tls",
    **_OPEN_CONFIG,
}


def valid_argument(refused: Mapping[str, str], word: str) -> str:
    flag = re.split(r"[=\s]", word)[0]
    for pattern, remedy in refused.items():
        if re.fullmatch(pattern, flag):
            raise ValueError(f"{flag} is set by this program; {remedy}")
    if not word.isprintable() or not re.match(r"-[\w-]+(=|$)|[^-]", word):
        raise ValueError(f'{word!r} is not a single argument; write e.g. ["--preload", "my.module"]')
    return word


def config_conflicts(config: dict[str, Any], refused: Mapping[str, str]) -> Iterator[Conflict]:
    """Keys of Dask's configuration that this program sets. `refused` maps patterns to remedies."""
    for name in dotted_names(config):
        for pattern, remedy in refused.items():
            if re.fullmatch(pattern, name):
                yield Conflict(("dask", "config", name), f"is set by this program; {remedy}")


def dotted_names(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        name = prefix + key.replace("_", "-")  # Dask treats both alike
        if value and isinstance(value, dict):
            yield from dotted_names(value, name + ".")
        else:
            yield name
