"""Dask's options on machines, as pure functions of the settings."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from components.dask_config import merged, with_defaults
from settings import MachinesTarget
from settings.common import resources_argument
from settings.groups import Group

ETC = "/etc/daskstack"
TLS = f"{ETC}/tls"
AUTHORITIES = "/opt/daskstack/authorities.crt"  # as in steps/environment.sh


def protocol(settings: MachinesTarget) -> str:
    return "tls" if settings.dask.tls else "tcp"


def worker_names(settings: MachinesTarget, machines: Iterable[str]) -> list[str]:
    """The names that the step `service` gives to the worker processes of these machines."""
    counts = {machine: settings.group_of(machine).per_machine for machine in machines}
    return [f"{machine}-{number + 1}" for machine, count in counts.items() for number in range(count)]


def bounds(settings: MachinesTarget) -> list[int] | None:
    """The smallest and the largest number of workers that run, or None if all of them do."""
    workers = settings.workers
    return None if workers.min is None or workers.max is None else [workers.min, workers.max]


def fixed_workers(settings: MachinesTarget) -> list[str]:
    """The names of the workers that always run although the stack has bounds: those of groups."""
    groups = [group for group in settings.groups if not group.has_bounds] if bounds(settings) else []
    return worker_names(settings, [machine for group in groups for machine in group.machines])


def worker_ports(settings: MachinesTarget, processes: int) -> range:
    """The fixed ports of a machine's worker processes: worker, nanny and dashboard of each."""
    first = settings.dask.ports.workers
    return range(first, first + 3 * processes)


def dask_ports(settings: MachinesTarget, processes: int) -> str:
    """The ports that a machine with this number of worker processes opens to the others, separated by spaces."""
    ports, workers = settings.dask.ports, worker_ports(settings, processes)
    return f"{ports.scheduler} {ports.dashboard} {workers.start}-{workers.stop - 1}"


def library_ports(settings: MachinesTarget) -> str:
    """The range of ports for libraries that talk among workers; empty if they are closed."""
    found = settings.dask.ports.libraries
    return "" if found == "none" else found


def config(settings: MachinesTarget) -> str:
    """Dask's configuration on every machine, as JSON, which is also YAML."""
    return json.dumps(merged(with_defaults(settings.dask.config), _comm(settings, f"{TLS}/key.pem")), indent=2)


def notebook_config(settings: MachinesTarget, address: str) -> str:
    """Dask's configuration for notebooks on the scheduler's machine: a bare `Client()` connects to the cluster.

    The browser reaches only the notebook server, so links to the dashboard lead through that server's proxy.
    """
    link = {"distributed": {"dashboard": {"link": f"{dashboard_proxy(settings, address)}/status"}}}
    scheduler = {"scheduler-address": f"{protocol(settings)}://{address}:{settings.dask.ports.scheduler}"}
    ours = scheduler | _comm(settings, f"{ETC}/jupyter/key.pem")
    return json.dumps(merged(merged(link, settings.dask.config), ours), indent=2)


def notebook_server(settings: MachinesTarget, address: str) -> dict[str, dict]:
    """The configuration of the notebook server, without its login."""
    return {
        "ServerApp": {
            "ip": "127.0.0.1",
            "port": settings.dask.ports.jupyter,
            "port_retries": 0,
            "open_browser": False,
            "root_dir": f"{settings.data.path}/notebooks",
        },
        "Application": {"log_level": "WARN"},
        # Every user of the machine could read what kernels send over TCP.
        "KernelManager": {"transport": "ipc"},
        "ServerProxy": {"host_allowlist": [address]},
    }


def notebook_panels(settings: MachinesTarget, address: str) -> dict[str, dict]:
    """Defaults of JupyterLab's Dask panel: it shows the cluster's dashboard, and no button for a local cluster."""
    return {"dask-labextension:plugin": {"defaultURL": dashboard_proxy(settings, address), "hideClusterManager": True}}


def dashboard_proxy(settings: MachinesTarget, address: str) -> str:
    """The path at which the notebook server forwards requests to Dask's dashboard."""
    return f"/proxy/{address}:{settings.dask.ports.dashboard}"


def _comm(settings: MachinesTarget, key: str) -> dict:
    """Dask's configuration of TLS with the private key in the file `key`; empty without TLS."""
    if not settings.dask.tls:
        return {}
    pair = {"cert": f"{TLS}/certificate.pem", "key": key}
    comm = {
        "default-scheme": "tls",
        "require-encryption": True,
        "tls": {"ca-file": f"{TLS}/authority.pem", "scheduler": pair, "worker": pair, "client": pair},
    }
    return {"distributed": {"comm": comm}}


def preloads(settings: MachinesTarget, role: str) -> tuple[str, ...]:
    """The preloads in the settings as arguments, because Dask ignores its configuration if an argument has one."""
    configured = settings.dask.config.get("distributed", {}).get(role, {}).get("preload") or []
    option = "--preload-nanny" if role == "nanny" else "--preload"
    each_one = [configured] if isinstance(configured, str) else configured
    return tuple(word for each in each_one for word in (option, each))


def resources(group: Group) -> tuple[str, ...]:
    """The Dask resources of a group's workers as arguments."""
    return ("--resources", resources_argument(group.resources)) if group.resources else ()


def concerns_uv(variable: str) -> bool:
    """Whether uv gets this environment variable."""
    return bool(re.fullmatch(r"UV_\w+|SSL_CERT_(FILE|DIR)|(?i:(https?|all|no)_proxy)", variable))


def concerns_tasks(variable: str) -> bool:
    """Whether tasks and notebooks get this environment variable. They install nothing, so they need no index."""
    return not re.match("(PIP|UV)_", variable)


def trusted(settings: MachinesTarget) -> dict[str, str]:
    """Environment variables with which tasks and notebooks trust the authorities of the settings, too."""
    return dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), AUTHORITIES) if settings.environment.authority else {}


def exports(variables: Mapping[str, str]) -> str:
    """Shell code that exports the variables."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items()))


def environment_file(variables: Mapping[str, str]) -> str:
    """Variables in the format of systemd's EnvironmentFile."""
    escapes = str.maketrans({character: f"\\{character}" for character in '\\"$`'})
    return "\n".join(f'{name}="{value.translate(escapes)}"' for name, value in sorted(variables.items()))


def quoted(arguments: Sequence[str]) -> str:
    """Arguments in the format of systemd's ExecStart, escaped so that systemd expands nothing."""
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$"})
    return " ".join(f'"{argument.translate(escapes)}"' for argument in arguments)
