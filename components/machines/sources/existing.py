"""Machines that already exist."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
from pulumi import ComponentResource, Input, Output, ResourceOptions, RunError
from pulumi_command import local

from components.machines.step import Host
from settings import Bastion, ExistingSource
from settings import Host as HostSettings

AGENT = "start one and load your key (eval $(ssh-agent); ssh-add)"
SECRET = "pulumi config set --secret dask:sshKey < ~/.ssh/id_ed25519"


class ExistingMachinesArgs(TypedDict):
    settings: ExistingSource
    missing: NotRequired[Collection[str]]
    """The names of machines that are not part of the cluster for now. Default: none."""
    key: Output[str] | None
    """The private SSH key for the login, in OpenSSH's format or PEM, secret. None: the keys of the user's SSH agent."""


class ExistingMachines(ComponentResource):
    """Machines that already exist. It changes nothing on them.

    It owns nothing but the host keys in the state: it reads the host key of a machine at the first contact, unless the
    settings have it, so that later connections to another machine at that address fail.
    """

    hosts: list[Host]
    """The machines, the scheduler's first. Machines with `gone: true` are included."""
    network: str
    """The machines' network in CIDR notation, or their addresses, separated by blanks."""

    def __init__(self, name: str, args: ExistingMachinesArgs, opts: ResourceOptions | None = None):
        settings, key = args["settings"], args["key"]
        if key is None and not Path(os.environ.get("SSH_AUTH_SOCK") or "none").is_socket():
            raise RunError(
                f"there is no SSH key for the machines: no SSH agent is running (SSH_AUTH_SOCK); {AGENT}. Or give the"
                f" stack its own key, which it keeps encrypted: {SECRET}"
            )
        super().__init__("dask:index:ExistingMachines", name, {}, opts)
        self.name = name
        # The secret has precedence over an agent, so that all users of the stack run the same steps.
        self._key = key and key.apply(usable)

        missing = args.get("missing", ())
        listed = [host for host in settings.hosts if host.name not in missing]
        there = [host for host in listed if not host.gone]
        passed = {each.name: each for each in (*settings.bastions, *there)}
        direct = {each: self._connection(passed[each]) for each in passed if each in {host.bastion for host in there}}
        hosts = []
        for host in listed:
            connection: dict[str, Input[Any]] = {}
            if not host.gone:
                bastion = direct[host.bastion] if host.bastion else None
                connection = direct.get(host.name) or self._connection(host, bastion)
            hosts.append(
                Host(
                    name=host.name,
                    address=host.internal_address,
                    # A reinstalled machine has a new host key.
                    identity=connection.get("host_key", ""),
                    connection=connection,
                    port=settings.cluster_ssh_port,
                    gone=host.gone,
                )
            )
        for host in settings.hosts:
            if host.name in missing and not host.host_key:
                self._keep_host_key(host)
        self.hosts = sorted(hosts, key=lambda host: host.name != settings.scheduler_name)
        self.network = settings.network or " ".join(host.internal_address for host in there)
        self.register_outputs({"network": self.network})

    def _connection(
        self, machine: Bastion | HostSettings, proxy: dict[str, Input[Any]] | None = None
    ) -> dict[str, Input[Any]]:
        """The connection to a machine. If the settings do not contain its host key, `up` reads the key."""
        connection: dict[str, Input[Any]] = {
            "host": machine.address,
            "port": machine.port,
            "user": machine.user,
            "host_key": machine.host_key or self._first_contact(machine, proxy),
        }
        if self._key:
            connection["private_key"] = self._key
        if proxy:
            connection["proxy"] = proxy
        return connection

    def _first_contact(self, machine: Bastion | HostSettings, proxy: dict[str, Input[Any]] | None) -> Output[str]:
        command = local.Command(
            self._name_of_key(machine),
            create=".venv/bin/python -m on_this_computer.read_host_key",
            # A new route to the same address is no first contact: the known key stays.
            update='printf %s "$PULUMI_COMMAND_STDOUT"',
            triggers=[machine.address, machine.port],
            environment={
                "ADDRESS": machine.address,
                "PORT": str(machine.port),
                "BASTION": Output.json_dumps(proxy) if proxy else "",
            },
            logging=local.Logging.STDERR,
            opts=ResourceOptions(parent=self),
        )
        return Output.unsecret(command.stdout)

    def _keep_host_key(self, machine: HostSettings) -> None:
        """Keeps the host key of a missing machine in the state, if it was read before."""
        opts = ResourceOptions(parent=self, ignore_changes=["*"])
        local.Command(self._name_of_key(machine), create="true", opts=opts)

    def _name_of_key(self, machine: Bastion | HostSettings) -> str:
        return f"{self.name}-{machine.name}-host-key"


def usable(key: str) -> str:
    """The private key with Unix line ends. Raises RunError if the key cannot be used."""
    key = key.replace("\r\n", "\n").strip() + "\n"
    load = load_ssh_private_key if "BEGIN OPENSSH" in key else load_pem_private_key
    try:
        load(key.encode(), None)
    except TypeError:
        raise RunError(
            f"dask:sshKey has a passphrase, and `up` cannot ask for it. Keep the key in an SSH agent instead: {AGENT}."
            " Then remove it from the stack: pulumi config rm dask:sshKey"
        ) from None
    except ValueError:
        raise RunError(f"dask:sshKey is not a private key; set it again: {SECRET}") from None
    return key
