"""The stack output `client`: everything that a client needs to reach its cluster.

The components write this output and daskstack reads it. It is secret, because it holds private keys. The module needs
only the standard library: notebooks import it, and so does the set-up, before anything is installed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

# The remedy of a user who scales a stack that sets no bounds.
NO_BOUNDS = (
    "stack {stack} has a fixed number of workers; to scale it, set workers.min or workers.max in Pulumi.{stack}.yaml,"
    " for example workers: {{min: 1}}, and run up"
)


class Connection(TypedDict):
    """A machine that OpenSSH can reach. The keys have the names that Pulumi's `remote.ConnectionArgs` gives them."""

    host: str
    """Address or host name."""
    user: str
    host_key: str
    """The machine's public host key in one line, such as "ssh-ed25519 AAAA..."."""
    port: NotRequired[int]
    """Default: 22."""
    private_key: NotRequired[str]
    """In OpenSSH's format or PEM. Default: the keys of the user's SSH agent."""
    certificate: NotRequired[str]
    """The SSH certificate of `private_key`."""
    proxy: NotRequired["Connection"]
    """The bastion in front of the machine."""


class KubernetesAccess(TypedDict):
    """The Kubernetes cluster in which a release runs."""

    kubeconfig: str
    """The path of a kubeconfig, or the text of one."""
    context: NotRequired[str]
    """Default, also if empty: the kubeconfig's current context."""
    server: NotRequired[str]
    """The cluster's URL at the first `up`. Default, also if empty: it is not compared."""
    authority: NotRequired[str]
    """A hash of the certificate that signed the cluster's."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """The TLS credentials of the stack's clients, each as PEM text."""

    authority: str
    """The certificate with which clients verify scheduler and workers."""
    certificate: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Google:
    """Machines in Google Cloud, which a client starts again after an idle shutdown."""

    project: str
    zone: str
    machines: dict[str, str]
    """Names of instances in Google Cloud by the machines' names in the cluster."""
    zones: dict[str, str] = field(default_factory=dict)
    """The zones of those machines that are not in `zone`."""

    def zone_of(self, machine: str) -> str:
        return self.zones.get(machine, self.zone)


@dataclass(frozen=True, kw_only=True)
class Client:
    """Facts about any cluster."""

    scheduler: str
    """The scheduler's address inside the cluster, such as "tls://10.1.0.10:8786"."""
    dashboard: str
    """The dashboard's URL inside the cluster."""
    tls: Tls
    python: str
    """The minor version of the cluster's Python, such as "3.11"."""
    packages: dict[str, str]
    """Versions of the cluster's packages by their names."""
    lock: str
    """The lock file of the cluster's environment, relative to the project."""
    sleeps: bool
    """Whether the workers stop after a time without work (`limits.idle`)."""
    bounds: list[int] | None = None
    """The smallest and the largest number of workers, between which clients scale. None: only `up` changes the number.
    """
    grouped: int = 0
    """The largest number of workers in other groups than the main one, to which `bounds` do not apply."""
    jupyter: str | None = None
    """The notebook server's Service and port, such as "dask-jupyter:80". None: there is no notebook server."""

    @property
    def most(self) -> int | None:
        """The largest number of workers of all groups. None: the stack sets no bounds."""
        return self.bounds[1] + self.grouped if self.bounds else None


@dataclass(frozen=True, kw_only=True)
class MachinesClient(Client):
    """A cluster on machines."""

    target: Literal["machines"] = "machines"
    head: str
    """The name of the scheduler's machine."""
    tunnel: Connection
    """A login that can open tunnels to the scheduler and the dashboard and manage jobs, but opens no shell."""
    google: Google | None = None
    """None: the machines are not in Google Cloud."""


@dataclass(frozen=True, kw_only=True)
class KubernetesClient(Client):
    """A cluster in Kubernetes."""

    target: Literal["kubernetes"] = "kubernetes"
    kubernetes: KubernetesAccess
    namespace: str


def parse(output: Mapping[str, Any]) -> MachinesClient | KubernetesClient:
    """Parses the output. Raises ValueError if its keys are not those that this version of the project writes."""
    known = dict(output)
    try:
        known["tls"] = Tls(**known["tls"])
        if known.get("google"):
            known["google"] = Google(**known["google"])
        return {"machines": MachinesClient, "kubernetes": KubernetesClient}[known["target"]](**known)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the output `client` is not what this version of the project writes: {error}") from None


def exported(known: Mapping[str, Any]) -> dict[str, Any]:
    """The output's value. Raises ValueError if `parse` could not read it."""
    return asdict(parse(known))
