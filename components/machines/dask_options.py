"""What Dask is told on each machine: pure functions of the settings."""

import json
from collections.abc import Iterable, Mapping, Sequence

from settings import MachinesTarget

ETC = "/etc/daskstack"
TLS = f"{ETC}/tls"


def protocol(settings: MachinesTarget) -> str:
    return "tls" if settings.dask.tls else "tcp"


def worker_names(settings: MachinesTarget, machines: Iterable[str]) -> list[str]:
    """Dask's names of the worker processes on the named machines, as the step `service` gives them."""
    return [f"{machine}-{number + 1}" for machine in machines for number in range(settings.workers.per_machine)]


def worker_ports(settings: MachinesTarget) -> range:
    """The fixed ports of a machine's worker processes: worker, nanny and dashboard of each."""
    first = settings.dask.ports.workers
    return range(first, first + 3 * settings.workers.per_machine)


def cluster_ports(settings: MachinesTarget) -> str:
    """What machines of the cluster reach on each other, as the step `firewall` wants it."""
    ports, workers = settings.dask.ports, worker_ports(settings)
    return f"{ports.scheduler} {ports.dashboard} {workers.start}-{workers.stop - 1}"


def config(settings: MachinesTarget) -> str:
    """Dask's configuration on every machine; JSON, which is YAML too."""
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
    """The configured preloads of scheduler, worker or nanny as arguments: with ours there, Dask asks no config."""
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
    """Variables as systemd's EnvironmentFile reads them back."""
    escapes = str.maketrans({character: f"\\{character}" for character in '\\"$`'})
    return "\n".join(f'{name}="{value.translate(escapes)}"' for name, value in sorted(variables.items()))


def quoted(arguments: Sequence[str]) -> str:
    """Arguments as systemd's ExecStart reads them: nothing in them is a variable or a specifier."""
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$"})
    return " ".join(f'"{argument.translate(escapes)}"' for argument in arguments)
