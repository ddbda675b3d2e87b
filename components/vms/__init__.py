"""Dask on machines: steps over SSH, one bash file each."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TypedDict

from pulumi import ComponentResource, Input, Output, ResourceOptions, Stash, log
from pulumi_command import local

import lock
from components.vms import dask
from components.vms.credentials import notice, tls_identity
from components.vms.machine import Machine
from components.vms.step import Host, Step
from settings import Vms

CHECK = Path(__file__).parents[1] / "check.py"


class DaskVmsArgs(TypedDict):
    hosts: list[Host]
    """The machines; the first is the scheduler's and signs the others' keys."""
    network: Input[str]
    """The network in which they reach each other, in CIDR notation."""
    settings: Vms
    """What the stack says about all else."""


class DaskVms(ComponentResource):
    """A Dask cluster on machines that can be reached over SSH."""

    scheduler: Output[str]
    """The scheduler's address inside the cluster, such as "tls://10.1.0.10:8786"."""
    dashboard: Output[str]
    """The dashboard's URL inside the cluster."""
    check: Output[str]
    """The table that the check printed."""
    client: Output[dict]
    """What `daskstack.connect` needs, secret."""

    def __init__(self, name: str, args: DaskVmsArgs, opts: ResourceOptions | None = None):
        super().__init__("dask:index:DaskVms", name, {}, opts)
        settings, hosts = args["settings"], args["hosts"]
        self.settings = settings
        self.machines = {host.name: Machine(host, ResourceOptions(parent=self)) for host in hosts}
        self.head = self.machines[hosts[0].name]
        self.lock = lock.read(Path(settings.environment.lock), settings.environment.python)

        self._firewall(args["network"])
        credentials = self._credentials(name)
        self._data()
        self._environment()
        self._services()

        ports = settings.dask.ports
        address = Output.from_input(self.head.host.address)
        self.scheduler = Output.format("{}://{}:{}", dask.protocol(settings), address, ports.scheduler)
        self.dashboard = Output.format("http://{}:{}/status", address, ports.dashboard)
        self.check = self._check().command.stdout
        self.client = Output.secret(
            Output.all(
                scheduler=self.scheduler,
                dashboard=self.dashboard,
                head=self.head.host.name,
                machines=Output.all(**{each: Output.all(**m.host.connection) for each, m in self.machines.items()}),
                tls=credentials,
                python=settings.environment.python,
                packages=self.lock.packages,
                lock=settings.environment.lock,
            )
        )
        self.register_outputs(
            {"scheduler": self.scheduler, "dashboard": self.dashboard, "check": self.check, "client": self.client}
        )

    def _warn(self, text: str | None) -> None:
        if text:
            log.warn(text, self)

    def _everywhere(
        self, state: str, variables: Callable[[Machine], dict[str, Input[str]]], *, first: Machine
    ) -> None:
        """The step on one machine, then on all others at once."""
        lead = first.step(state, variables(first))
        others = [machine for machine in self.machines.values() if machine is not first]
        for machine in others:
            machine.step(state, variables(machine), after=[lead])

    @staticmethod
    def _address_seen_from(machine: Machine, other: Machine) -> Input[str]:
        """The address of another machine; empty where it is the same one, which needs no network to reach itself."""
        return "" if machine is other else other.host.address

    def _firewall(self, network: Input[str]) -> None:
        firewall = self.settings.firewall
        for machine in self.machines.values():
            machine.step(
                "firewall",
                {
                    "NETWORK": network,
                    "SSH_PORT": "22",
                    "SSH_SOURCES": " ".join(firewall.ssh),
                    "PORTS": dask.cluster_ports(self.settings),
                    "OPEN": " ".join(f"{each.port}={source}" for each in firewall.open for source in each.sources),
                },
            )

    def _credentials(self, name: str) -> Output[dict]:
        """Every machine's SSH and TLS credentials; returns the client's, secret."""
        renewal = str(self.settings.credentials.renewal)
        keys = {each: machine.step("keys", {"NAME": each}) for each, machine in self.machines.items()}
        authority = self.head.step("authority", {"CLUSTER": name})

        def certificates(subject: str, parent: ComponentResource, request: dict[str, Input[str]]) -> Step:
            step = Step(
                "certificates",
                self.head.host,
                {"NAME": subject, "RENEWAL": renewal, **request},
                parent=parent,
                after=[authority],
                name=f"{subject}-certificates",
            )
            step["expires"].apply(lambda expires: self._warn(notice(subject, expires, date.today())))
            return step

        def variables(machine: Machine) -> dict[str, Input[str]]:
            host, own = machine.host, keys[machine.host.name]
            signed = certificates(
                host.name,
                machine,
                {
                    "ADDRESS": host.address,
                    "HOST_KEY": own["hostKey"],
                    "USER_KEY": own["userKey"],
                    "REQUEST": own["request"],
                },
            )
            return {
                "ADDRESS": host.address,
                "SSH_PORT": "22",
                "AUTHORITY_ADDRESS": self._address_seen_from(machine, self.head),
                "HOST_AUTHORITY": authority["hostAuthority"],
                "USER_AUTHORITY": authority["userAuthority"],
                "TLS_AUTHORITY": authority["tlsAuthority"],
                "HOST_CERTIFICATE": signed["host"],
                "USER_CERTIFICATE": signed["user"],
                "TLS_CERTIFICATE": signed["tls"],
            }

        self._everywhere("credentials", variables, first=self.head)

        identity = Stash(
            "client-key",
            input=Output.secret(tls_identity()),
            opts=ResourceOptions(parent=self, ignore_changes=["input"]),
        )
        request = Output.unsecret(identity.output)["request"]
        signed = certificates("client", self, {"ADDRESS": "", "REQUEST": request})
        return Output.all(
            key=identity.output["key"], certificate=signed["tls"], authority=authority["tlsAuthority"]
        )

    def _data(self) -> None:
        data = self.settings.data
        holder = self.machines[data.machine]

        def variables(machine: Machine) -> dict[str, Input[str]]:
            return {
                "DATA_PATH": data.path,
                "DATA_ADDRESS": holder.host.address,
                "HOLDS": "yes" if machine is holder else "no",
                "OPTIONS": "".join(f",{option}" for option in data.options),
                "LOGIN_USER": machine.host.connection["user"],
            }

        self._everywhere("data", variables, first=holder)

    def _environment(self) -> None:
        environment = self.settings.environment
        connection = Output.json_dumps(self.head.host.connection)
        files = local.Command(
            "files",
            create=".venv/bin/python -m components.vms.files",
            environment={
                "LOCK": environment.lock,
                "LOCK_SHA256": self.lock.sha256,
                "PYTHON": environment.python,
                "SOURCE": environment.source,
                "CONNECTION": connection,
                "IDENTITY": self.head.host.identity,
            },
            add_previous_output_in_env=False,
            logging=local.Logging.STDERR,
            opts=ResourceOptions(parent=self),
        )
        uv = files.stdout.apply(json.loads)

        def variables(machine: Machine) -> dict[str, Input[str]]:
            return {
                "LOCK_SHA256": self.lock.sha256,
                "PYTHON": environment.python,
                "SOURCE": environment.source,
                "UV": uv["uv"],
                "UV_SHA256": uv["uvSha256"],
                "FILES_ADDRESS": self._address_seen_from(machine, self.head),
                "LOGIN_USER": machine.host.connection["user"],
            }

        self._everywhere("environment", variables, first=self.head)

    def _services(self) -> None:
        settings, ports = self.settings, self.settings.dask.ports
        scheduler = Output.format(
            "{}://{}:{}", dask.protocol(settings), self.head.host.address, ports.scheduler
        )

        def variables(machine: Machine) -> dict[str, Input[str]]:
            return {
                "ROLES": "scheduler" if machine is self.head else "worker",
                "NAME": machine.host.name,
                "ADDRESS": machine.host.address,
                "SCHEDULER": scheduler,
                "SCHEDULER_PORT": str(ports.scheduler),
                "DASHBOARD_PORT": str(ports.dashboard),
                "WORKERS_PORT": str(ports.workers),
                "WORKERS": str(settings.workers.per_machine),
                "THREADS": str(settings.workers.threads or ""),
                "MEMORY": settings.workers.memory_limit or "",
                "SPILL": settings.workers.spill,
                "DATA_PATH": settings.data.path,
                "CONFIG": dask.config(settings),
                "SCHEDULER_ARGS": dask.quoted(settings.dask.scheduler_args),
                "WORKER_ARGS": dask.quoted(settings.dask.worker_args),
                "ENVIRONMENT": f"{self.lock.sha256} {settings.environment.python} {settings.credentials.renewal}",
            }

        self._everywhere("service", variables, first=self.head)

    def _check(self) -> Step:
        settings = self.settings
        expect = Output.json_dumps(
            {
                "address": self.scheduler,
                "workers": [
                    f"{name}-{number + 1}"
                    for name, machine in self.machines.items()
                    if machine is not self.head
                    for number in range(settings.workers.per_machine)
                ],
                "python": settings.environment.python,
                "packages": self.lock.packages,
                "data": settings.data.path,
            }
        )
        steps = [step for machine in self.machines.values() for step in machine.steps]
        return Step(
            "check",
            self.head.host,
            {
                "CHECK": CHECK.read_text(),
                "EXPECT": expect,
                "CONFIRMS": Output.all(*(step.fingerprint for step in steps)).apply(" ".join),
            },
            parent=self,
            after=steps,
            name="check",
            show=True,
        )
