"""SSH and TLS credentials of a cluster on machines.

The scheduler's machine is the authority: it signs the keys of all machines and of the client, and its own keys never
leave it. Private keys of machines stay on the machines. The client's private key is in the stack's state, encrypted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from pulumi import Input, Output, Resource, ResourceOptions, Stash, log

from components.machines.machine import Cluster, Machine, Variables
from components.machines.step import ON_THE_CLUSTER, Step
from daskstack.client_keys import client_identity, notice
from settings import MachinesTarget

TUNNEL_USER = "dask-tunnel"  # steps/credentials.sh creates it
# How long a machine's certificates are valid. Machines renew them after a third of that time, so a cluster that sleeps
# for two months still starts. A shorter time adds no protection: machines fetch revocations every five minutes.
DAYS = "90"
ACCESS = ON_THE_CLUSTER / "access.py"


@dataclass(frozen=True)
class ClientCredentials:
    tls: Output[dict]
    """The arguments of `client_output.Tls`."""
    tunnel: Output[dict]
    """A `client_output.Connection` to the scheduler's machine that opens tunnels, manages jobs and opens no shell."""
    signed: Step
    """The step that signs both."""


def issue(cluster: Cluster, stack: str, network: Input[str]) -> ClientCredentials:
    """Gives each machine its credentials, and returns those of the client."""
    keys, authority = _make_keys(cluster, stack, network)

    def sign(name: str, subject: str, parent: Resource, request: Variables) -> Step:
        variables = {"NAME": subject, "RENEWAL": _renewal(cluster), **request}
        return Step(name, "certificates", cluster.head.host, variables, parent=parent, after=[authority])

    def variables(machine: Machine) -> Variables:
        host, own = machine.host, keys[machine.host.name]
        request = {"HOST_KEY": own["hostKey"], "USER_KEY": own["userKey"], "REQUEST": own["request"]}
        signed = sign(f"{machine.name}-certificates", host.name, machine, {"ADDRESS": host.address, **request})
        return {
            "ADDRESS": host.address,
            "SSH_PORT": str(host.port),
            "TUNNEL": _tunnel_targets(cluster) if machine is cluster.head else "",
            "AUTHORITY_ADDRESS": cluster.head_seen_from(machine),
            "NAME": host.name,
            "HOST_AUTHORITY": authority["hostAuthority"],
            "BUNDLE": signed["bundle"],
        }

    cluster.everywhere("credentials", variables, first=cluster.head)

    identity = Stash(
        f"{cluster.name}-client-identity-{_renewal(cluster)}",
        input=Output.secret(client_identity()),
        opts=ResourceOptions(parent=cluster.component, ignore_changes=["input"]),
    )
    public = Output.unsecret(identity.output)
    request = {"ADDRESS": "", "REQUEST": public["request"], "USER_KEY": public["sshPublic"]}
    signed = sign(f"{cluster.name}-client-certificates", "client", cluster.component, request)
    signed["expires"].apply(lambda expires: _warn(cluster, expires))
    login = {"user": TUNNEL_USER, "private_key": identity.output["sshKey"], "certificate": signed["user"]}
    return ClientCredentials(
        tls=Output.all(key=identity.output["key"], certificate=signed["tls"], authority=authority["tlsAuthority"]),
        tunnel=Output.all(**{**cluster.head.host.connection, **login}),
        signed=signed,
    )


def _make_keys(cluster: Cluster, stack: str, network: Input[str]) -> tuple[dict[str, Step], Step]:
    """Creates the keys of the authority and of each machine; returns the machines' steps and the authority's last."""
    renewal, metadata = _renewal(cluster), cluster.settings.firewall.metadata

    def make_keys(machine: Machine, after: Sequence[Step] = ()) -> Step:
        open_metadata = "yes" if metadata or machine.host.metadata else "no"
        variables = {"NAME": machine.host.name, "METADATA": open_metadata, "RENEWAL": renewal}
        return machine.step("keys", variables, after=after)

    head = cluster.head
    keys = {head.host.name: make_keys(head)}
    known = {"CLUSTER": stack, "NETWORK": network, "DAYS": DAYS, "RENEWAL": renewal}
    variables = {**known, "ACCESS": ACCESS}
    authority = head.step("authority", variables)
    for name, machine in cluster.machines.items():
        if machine is not head:
            keys[name] = make_keys(machine, [authority])
    # All machines must trust the authority's new keys before it signs anything with them. The first keys are not new.
    # With these dependencies, the SDK would visit all machines in its search for cycles, again for each later step.
    trust = keys.values() if cluster.settings.credentials.renewal > 1 else []
    return keys, cluster.on_head("renewal", {"RENEWAL": renewal}, [authority, *trust])


def _renewal(cluster: Cluster) -> str:
    return str(cluster.settings.credentials.renewal)


def _tunnel_targets(cluster: Cluster) -> Output[str]:
    """The ports that clients can reach through the scheduler's machine."""
    ports = cluster.settings.dask.ports
    notebooks = f" {notebook_server(cluster.settings)}" if cluster.settings.jupyter.enabled else ""
    dask = Output.format("{0}:{1} {0}:{2}", cluster.head.host.address, ports.scheduler, ports.dashboard)
    return Output.concat(dask, notebooks)


def notebook_server(settings: MachinesTarget) -> str:
    """The notebook server, as the scheduler's machine reaches it. Its port is not open to other machines."""
    return f"127.0.0.1:{settings.dask.ports.jupyter}"


def _warn(cluster: Cluster, expires: str) -> None:
    """The client's certificates end on a fixed day. Machines renew theirs themselves."""
    if text := notice("client", expires, date.today()):
        log.warn(text, cluster.component)
