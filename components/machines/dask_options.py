"""Dask's options on machines, as pure functions of the settings."""

import json
from collections.abc import Iterable, Mapping, Sequence

from settings import MachinesTarget

ETC = "/etc/daskstack"
TLS = f"{ETC}/tls"


def protocol(settings: MachinesTarget) -> str:
    return "tls" if settings.dask.tls else "tcp"


def worker_names(settings: MachinesTarget, machines: Iterable[str]) -> list[str]:
    """The names that the step `service` gives to the worker processes of these machines."""
    return [f"{machine}-{number + 1}" for machine in machines for number in range(settings.workers.per_machine)]


def worker_ports(settings: MachinesTarget) -> range:
    """The fixed ports of a machine's worker processes: worker, nanny and dashboard of each."""
    first = settings.dask.ports.workers
    return range(first, first + 3 * settings.workers.per_machine)


def cluster_ports(settings: MachinesTarget) -> str:
    """The ports that the cluster's machines open to each other, as the step `firewall` expects them."""
    ports, workers = settings.dask.ports, worker_ports(settings)
    return f"{ports.scheduler} {ports.dashboard} {workers.start}-{workers.stop - 1}"


def config(settings: MachinesTarget) -> str:
    """Dask's configuration on every machine, as JSON, which is also YAML."""
    if not settings.dask.tls:
        return json.dumps(settings.dask.config, indent=2)
    pair = {"cert": f"{TLS}/certificate.pem", "key": f"{TLS}/key.pem"}
    comm = {
        "default-scheme": "tls",
        "require-encryption": True,
        "tls": {"ca-file": f"{TLS}/authority.pem", "scheduler": pair, "worker": pair, "client": pair},
    }
    return json.dumps(_merged(settings.dask.config, {"distributed": {"comm": comm}}), indent=2)


def preloads(settings: MachinesTarget, role: str) -> tuple[str, ...]:
    """The preloads in the settings as arguments, because Dask ignores its configuration if an argument has one."""
    configured = settings.dask.config.get("distributed", {}).get(role, {}).get("preload") or []
    option = "--preload-nanny" if role == "nanny" else "--preload"
    each_one = [configured] if isinstance(configured, str) else configured
    return tuple(word for each in each_one for word in (option, each))


def _merged(below: dict, above: dict) -> dict:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def environment_file(variables: Mapping[str, str]) -> str:
    """Variables in the format of systemd's EnvironmentFile."""
    escapes = str.maketrans({character: f"\\{character}" for character in '\\"$`'})
    return "\n".join(f'{name}="{value.translate(escapes)}"' for name, value in sorted(variables.items()))


def quoted(arguments: Sequence[str]) -> str:
    """Arguments in the format of systemd's ExecStart, escaped so that systemd expands nothing."""
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$"})
    return " ".join(f'"{argument.translate(escapes)}"' for argument in arguments)
