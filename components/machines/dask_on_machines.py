"""Dask on machines: steps over SSH, one bash file each."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any, NotRequired, TypedDict

from pulumi import ComponentResource, Input, Output, ResourceOptions, RunError, Stash, log
from pulumi_command import local, remote

from components.machines import dask_options, moves
from components.machines.client_keys import client_identity, notice
from components.machines.machine import Machine
from components.machines.step import ON_THE_CLUSTER, Host, Step
from daskstack import client_output
from daskstack.engine import PROJECT
from daskstack.printable import printable
from settings import MachinesTarget, lock
from settings.common import seconds

CHECK = ON_THE_CLUSTER / "check.py"
WORKED = ON_THE_CLUSTER / "record_last_work.py"
RELOAD = ON_THE_CLUSTER / "reload_tls.py"
DRAIN = PROJECT / "charts/dask/files/drain.py"  # pods of the chart run it too
TUNNEL_USER = "dask-tunnel"  # steps/credentials.sh makes it
# All steps that a machine of the user's own can have.
# Not its certificates: they were signed on another machine, which takes them back.
STATES = ("firewall", "keys", "authority", "credentials", "data", "environment", "service")
# Of a machine's certificates, which renew themselves when a third of that has passed: a cluster that sleeps for two
# months still wakes. A shorter time would protect no more, because machines fetch what is revoked every five minutes.
DAYS = "90"


class DaskOnMachinesArgs(TypedDict):
    stack: str
    """The stack's name, which the cluster's certificates carry."""
    hosts: list[Host]
    """The machines; the first is the scheduler's and signs the others' keys."""
    network: Input[str]
    """The network in which they reach each other, in CIDR notation; or their addresses, separated by blanks."""
    settings: MachinesTarget
    """What the stack says about all else."""
    secret_env: NotRequired[Mapping[str, Input[str]]]
    """Variables of scheduler and workers, secret."""
    google: NotRequired[Mapping[str, Any]]
    """Of machines in Google Cloud, for who starts them again: `project`, `zone`, and names there by names here."""


class DaskOnMachines(ComponentResource):
    """A Dask cluster on machines that can be reached over SSH."""

    scheduler: Output[str]
    """The scheduler's address inside the cluster, such as "tls://10.1.0.10:8786"."""
    dashboard: Output[str]
    """The dashboard's URL inside the cluster."""
    check: Output[str]
    """The table that the check printed."""
    client: Output[dict]
    """What `daskstack.connect` needs, secret. It opens Dask alone, and no session on any machine."""
    admin: Output[dict]
    """The login to every machine, for `make status` and `make logs`, secret: whoever has it is root there."""

    def __init__(self, name: str, args: DaskOnMachinesArgs, opts: ResourceOptions | None = None):
        super().__init__("dask:index:DaskOnMachines", name, {}, opts)
        self.name = name
        settings = args["settings"]
        self.settings = settings
        self.secret_env = args.get("secret_env") or {}
        hosts = self._placed([host for host in args["hosts"] if not host.gone])
        self.machines = {host.name: self._machine(host) for host in hosts}
        self.head = self.machines[hosts[0].name]
        # Those that run Dask's workers.
        self.workers = {
            each: machine
            for each, machine in self.machines.items()
            if machine is not self.head or settings.machines.scheduler_works
        }
        for host in args["hosts"]:
            if host.gone:
                self._leave_alone(host)
        self.lock = lock.read(PROJECT / settings.environment.lock, settings.environment.python)

        self._firewall(args["network"])
        credentials = self._credentials(args["stack"], args["network"])
        self._data()
        self._environment()
        self._services()
        self._idle()

        ports = settings.dask.ports
        address = Output.from_input(self.head.host.address)
        self.scheduler = Output.format("{}://{}:{}", dask_options.protocol(settings), address, ports.scheduler)
        self.dashboard = Output.format("http://{}:{}/status", address, ports.dashboard)
        self.check = self._check(self._members()).command.stdout.apply(printable)  # tasks can forge it
        self.client = Output.secret(
            Output.all(
                target="machines",
                scheduler=self.scheduler,
                dashboard=self.dashboard,
                head=self.head.host.name,
                **credentials,
                python=settings.environment.python,
                packages=self.lock.packages,
                lock=settings.environment.lock,
                sleeps=settings.limits.idle is not None,
                google=args.get("google"),
            ).apply(client_output.exported)
        )
        connections = {each: Output.all(**machine.host.connection) for each, machine in self.machines.items()}
        self.admin = Output.secret(Output.all(machines=Output.all(**connections)))
        self.register_outputs(
            {
                "scheduler": self.scheduler,
                "dashboard": self.dashboard,
                "check": self.check,
                "client": self.client,
                "admin": self.admin,
            }
        )

    def _machine(self, host: Host) -> Machine:
        return Machine(f"{self.name}-{host.name}", host, ResourceOptions(parent=self))

    def _placed(self, hosts: list[Host]) -> list[Host]:
        """The hosts; nothing is run on them where scheduler or data moved to another one without a word."""
        allowed_moves = self.settings.moves
        here = {"scheduler": hosts[0].name, "data": self.settings.data.machine}

        def recorded(what: str, machine: str) -> Output[str]:
            kept = [] if what in allowed_moves else ["input"]
            opts = ResourceOptions(parent=self, ignore_changes=kept, replace_on_changes=["input"])
            return Stash(f"{self.name}-{what}-machine", input=machine, opts=opts).output

        def allow(before: dict[str, str]) -> bool:
            if problem := moves.refusal(before, here, allowed_moves):
                raise RunError(problem)
            return True

        allowed = Output.all(**{what: recorded(what, machine) for what, machine in here.items()}).apply(allow)
        return [
            replace(host, identity=Output.all(host.identity, allowed).apply(lambda known: known[0])) for host in hosts
        ]

    def _leave_alone(self, host: Host) -> None:
        """Keeps the steps of a machine that is gone as they are, and has them forgotten, not undone, at the end.

        A step that it never had is registered too, because what was once made is not known here; it does nothing,
        and that on the scheduler's machine.
        """
        machine = self._machine(host)
        for state in STATES:
            remote.Command(
                f"{machine.name}-{state}",
                connection=remote.ConnectionArgs(**self.head.host.connection),
                create="true",
                opts=ResourceOptions(parent=machine, ignore_changes=["*"], retain_on_delete=True),
            )
        local.Command(
            f"{machine.name}-files",
            create="true",
            opts=ResourceOptions(parent=machine, ignore_changes=["*"], retain_on_delete=True),
        )

    def _warn(self, text: str | None) -> None:
        if text:
            log.warn(text, self)

    def _everywhere(self, state: str, variables: Callable[[Machine], dict[str, Input[str]]], *, first: Machine) -> None:
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
            step = machine.step(
                "firewall",
                {
                    "NETWORK": network,
                    "SSH_PORT": str(machine.host.port),
                    "SSH_SOURCES": "0.0.0.0/0" if machine.host.guarded else " ".join(firewall.ssh),
                    "PORTS": dask_options.cluster_ports(self.settings),
                    "OPEN": " ".join(f"{each.port}={source}" for each in firewall.open for source in each.sources),
                    "CLOSE_OTHERS": "yes" if firewall.close_others else "no",
                    "MANAGE": "yes" if firewall.manage else "no",
                },
            )
            if firewall.manage:
                self._reachable(machine, step)

    def _reachable(self, machine: Machine, firewall: Step) -> None:
        """The proof that a firewall let us in again, without which it takes its change back.

        A local Command, because one that finds it taken back makes it anew, and then needs yet another connection.
        """
        local.Command(
            f"{machine.name}-reachable",
            create=".venv/bin/python -m on_this_computer.confirm_ssh_access",
            environment={
                "CONNECTION": Output.json_dumps(machine.host.connection),
                "COMMAND": firewall.command.update,
            },
            stdin=firewall.command.stdin,
            add_previous_output_in_env=False,
            logging=local.Logging.STDERR,
            opts=ResourceOptions(parent=machine, depends_on=[firewall.command]),
        )

    def _tunnel(self, host: Host) -> Output[str]:
        """What clients may reach through the scheduler's machine."""
        ports = self.settings.dask.ports
        return Output.format("{0}:{1} {0}:{2}", host.address, ports.scheduler, ports.dashboard)

    def _credentials(self, stack: str, network: Input[str]) -> dict[str, Output[dict]]:
        """Every machine's SSH and TLS credentials; returns the client's: `tls`, and the connection `tunnel`."""
        renewal = str(self.settings.credentials.renewal)
        metadata = self.settings.firewall.metadata

        def make_keys(machine: Machine, after: Sequence[Step] = ()) -> Step:
            open_metadata = "yes" if metadata or machine.host.metadata else "no"
            variables = {"NAME": machine.host.name, "METADATA": open_metadata, "RENEWAL": renewal}
            return machine.step("keys", variables, after=after)

        keys = {self.head.host.name: make_keys(self.head)}
        authority = self.head.step(
            "authority", {"CLUSTER": stack, "NETWORK": network, "DAYS": DAYS, "RENEWAL": renewal}
        )
        for each, machine in self.machines.items():
            if machine is not self.head:
                keys[each] = make_keys(machine, [authority])
        # All machines trust the authority's new keys before anything is signed with them.
        authority = Step(
            f"{self.name}-renewal",
            "renewal",
            self.head.host,
            {"RENEWAL": renewal},
            parent=self,
            after=[authority, *keys.values()],
        )

        def certificates(subject: str, parent: ComponentResource, request: dict[str, Input[str]]) -> Step:
            return Step(
                f"{self.name}-{subject}-certificates",
                "certificates",
                self.head.host,
                {"NAME": subject, "RENEWAL": renewal, **request},
                parent=parent,
                after=[authority],
            )

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
                "SSH_PORT": str(host.port),
                "TUNNEL": self._tunnel(host) if machine is self.head else "",
                "AUTHORITY_ADDRESS": self._address_seen_from(machine, self.head),
                "NAME": host.name,
                "HOST_AUTHORITY": authority["hostAuthority"],
                "BUNDLE": signed["bundle"],
            }

        self._everywhere("credentials", variables, first=self.head)

        identity = Stash(
            f"{self.name}-client-identity-{renewal}",
            input=Output.secret(client_identity()),
            opts=ResourceOptions(parent=self, ignore_changes=["input"]),
        )
        public = Output.unsecret(identity.output)
        request = {"ADDRESS": "", "REQUEST": public["request"], "USER_KEY": public["sshPublic"]}
        self.client_signed = signed = certificates("client", self, request)
        # Machines' certificates renew themselves.
        signed["expires"].apply(lambda expires: self._warn(notice("client", expires, date.today())))
        tls = Output.all(key=identity.output["key"], certificate=signed["tls"], authority=authority["tlsAuthority"])
        door = self.head.host.connection | {"user": TUNNEL_USER, "private_key": identity.output["sshKey"]}
        return {"tls": tls, "tunnel": Output.all(**door, certificate=signed["user"])}

    def _data(self) -> None:
        data = self.settings.data
        holder = self.machines[data.machine]

        def variables(machine: Machine) -> dict[str, Input[str]]:
            return {
                "DATA_PATH": data.path,
                "DATA_ADDRESS": holder.host.address,
                "DEVICE": machine.host.disk if machine is holder else "",
                "DEVICE_SIZE": str(machine.host.disk_size) if machine is holder else "",
                "HOLDS": "yes" if machine is holder else "no",
                "OPTIONS": "".join(f",{option}" for option in data.options),
                "DELETE": "yes" if data.delete else "no",
                "LOGIN_USER": machine.host.connection["user"],
            }

        self._everywhere("data", variables, first=holder)

    def _environment(self) -> None:
        environment = self.settings.environment
        connection = Output.json_dumps(self.head.host.connection)
        files = local.Command(
            f"{self.head.name}-files",
            create=".venv/bin/python -m on_this_computer.send_environment",
            delete=".venv/bin/python -m on_this_computer.send_environment undo",
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
            opts=ResourceOptions(parent=self.head, deleted_with=self.head.host.deleted_with),
        )
        uv = files.stdout.apply(json.loads)

        def variables(machine: Machine) -> dict[str, Input[str]]:
            return {
                "LOCK_SHA256": self.lock.sha256,
                "PYTHON": environment.python,
                "SOURCE": environment.source,
                "UV": uv["uv"],
                "UV_SHA256": uv["uvSha256"],
                "AUTHORITY_ADDRESS": self._address_seen_from(machine, self.head),
            }

        self._everywhere("environment", variables, first=self.head)

    def _services(self) -> None:
        settings, ports = self.settings, self.settings.dask.ports
        scheduler = Output.format(
            "{}://{}:{}", dask_options.protocol(settings), self.head.host.address, ports.scheduler
        )

        def variables(machine: Machine) -> dict[str, Input[str]]:
            return {
                "ROLES": " ".join(
                    (["scheduler"] if machine is self.head else [])
                    + (["worker"] if machine.host.name in self.workers else [])
                ),
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
                "CONFIG": dask_options.config(settings),
                # Secret, and with it all that the step is told.
                "SECRET_ENV": Output.all(**self.secret_env).apply(dask_options.environment_file)
                if self.secret_env
                else "",
                "SCHEDULER_ARGS": dask_options.quoted(
                    dask_options.preloads(settings, "scheduler") + settings.dask.scheduler_args
                ),
                "WORKER_ARGS": dask_options.quoted(
                    dask_options.preloads(settings, "worker")
                    + dask_options.preloads(settings, "nanny")
                    + settings.dask.worker_args
                ),
                "RELOAD": RELOAD.read_text() if settings.dask.tls else "",
                "DRAIN": DRAIN.read_text(),
                "GRACE": str(machine.host.grace),
                "WORKED": WORKED.read_text() if settings.limits.idle else "",
                "CREDENTIALS": self.head.host.identity,
                "FIREWALL": "yes" if settings.firewall.manage else "no",
                "AUTHORITY_ADDRESS": self._address_seen_from(machine, self.head),
            }

        self._everywhere("service", variables, first=self.head)

    def _idle(self) -> None:
        if limit := self.settings.limits.idle:
            for machine in self.machines.values():
                address = self._address_seen_from(machine, self.head)
                machine.step("idle", {"LIMIT": str(seconds(limit)), "ADDRESS": address})

    def _members(self) -> Step:
        return Step(
            f"{self.name}-members",
            "members",
            self.head.host,
            {
                "DRAIN": DRAIN.read_text(),
                "SCHEDULER": self.scheduler,
                "MEMBERS": " ".join(dask_options.worker_names(self.settings, self.workers)),
                "RENEWAL": str(self.settings.credentials.renewal),
            },
            parent=self,
            after=[*(machine.steps[-1] for machine in self.machines.values()), self.client_signed],
        )

    def _check(self, members: Step) -> Step:
        settings = self.settings
        expect = Output.json_dumps(
            {
                "address": self.scheduler,
                "workers": dask_options.worker_names(settings, self.workers),
                "python": settings.environment.python,
                "packages": self.lock.packages,
                "data": settings.data.path,
            }
        )
        steps = [step for machine in self.machines.values() for step in machine.steps]
        return Step(
            f"{self.name}-check",
            "check",
            self.head.host,
            {
                "CHECK": CHECK.read_text(),
                "EXPECT": expect,
                "CONFIRMS": Output.all(*(step.fingerprint for step in steps)).apply(" ".join),
            },
            parent=self,
            after=[*steps, members],
            show=True,
        )
