"""Arguments and configuration of Dask that this program sets, or that have no effect."""

import difflib
import functools
import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

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
    """Keys of Dask's configuration that this program sets or Dask ignores. `refused` maps patterns to remedies."""
    ours = set()
    for name in dotted_names(config):
        for pattern, remedy in refused.items():
            if re.fullmatch(pattern, name):
                ours.add(name)
                yield Conflict(("dask", "config", name), f"is set by this program; {remedy}")
    for key in config:
        if "." in key and key not in ours:
            nested = ": {".join(key.split("."))
            text = f"has no effect with dots in its name; write {nested}: ...{'}' * key.count('.')}"
            yield Conflict(("dask", "config", key), text)
    if isinstance(config.get("distributed"), dict):
        yield from misspelt(config["distributed"], known(), ("dask", "config", "distributed"))


def misspelt(config: dict[str, Any], schema: dict[str, Any], place: tuple[str, ...]) -> Iterator[Conflict]:
    """Keys that Dask does not know but that look like others. Other versions of Dask know others."""
    names = schema.get("properties", {})
    for key, value in config.items():
        name = key.replace("_", "-")
        if name not in names and (close := difflib.get_close_matches(name, names, 1, 0.7)):
            yield Conflict((*place, key), f"is not a key of Dask's configuration; did you mean {close[0]}?")
        elif isinstance(value, dict):
            yield from misspelt(value, names.get(name, {}), (*place, key))


@functools.cache
def known() -> dict[str, Any]:
    """The schema of the section `distributed`, read without importing Dask."""
    file = importlib.metadata.distribution("distributed").locate_file("distributed/distributed-schema.yaml")
    return yaml.safe_load(Path(str(file)).read_text())["properties"]["distributed"]


def dotted_names(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        name = prefix + key.replace("_", "-")  # Dask treats both alike
        if value and isinstance(value, dict):
            yield from dotted_names(value, name + ".")
        else:
            yield name
