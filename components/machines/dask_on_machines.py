"""Dask on machines that are reached over SSH."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import NotRequired, TypedDict

from pulumi import ComponentResource, Input, Output, Resource, ResourceOptions

from components.jupyter_password import jupyter_login
from components.machines import credentials, dask_options, moves, steps
from components.machines.machine import Cluster
from components.machines.step import Host, Step
from daskstack import client_output
from daskstack.engine import PROJECT
from daskstack.printable import printable
from settings import ExistingSource, MachinesTarget, lock
from settings.common import JUPYTER_LOCK


class DaskOnMachinesArgs(TypedDict):
    stack: str
    """The stack's name, which the cluster's certificates carry."""
    hosts: list[Host]
    """The machines. The first one runs the scheduler and signs the others' keys."""
    network: Input[str]
    """The machines' network in CIDR notation, or their addresses separated by spaces."""
    settings: MachinesTarget
    """All other settings of the stack."""
    secret_env: NotRequired[Mapping[str, Input[str]]]
    """Secret environment variables of scheduler, workers and notebooks."""
    password: NotRequired[Input[str] | None]
    """The password of the notebook server, secret. Default: a random one."""
    google: NotRequired[client_output.Google | None]
    """The machines' names in Google Cloud, by which clients start them after an idle shutdown."""


class DaskOnMachines(ComponentResource):
    """A Dask cluster on machines that `up` reaches over SSH.

    It owns what its steps create on the machines: firewall rules, keys, users, folders, mounts and services. `destroy`
    removes them again. In the state it owns the client's private keys, encrypted.

    It leaves alone the machines themselves, which belong to their source, and all files, users and rules that were
    there before, because a machine of the user's own may have other work to do. Files in the shared directory stay
    unless `data.delete` is set.

    A machine can belong to one cluster only, because users, folders and services have fixed names there: two of these
    components in one program need different machines.
    """

    scheduler: Output[str]
    """The scheduler's address inside the cluster, such as "tls://10.1.0.10:8786"."""
    dashboard: Output[str]
    """The dashboard's URL inside the cluster."""
    check: Output[str]
    """The table that the check printed."""
    client: Output[dict]
    """A `client_output.MachinesClient`, secret. It gives access to Dask and jobs, and opens no shell."""
    password: Output[str]
    """The password of the notebook server, secret."""
    admin: Output[dict]
    """The login to every machine, for `make status` and `make logs`, secret: it gives root there."""

    def __init__(self, name: str, args: DaskOnMachinesArgs, opts: ResourceOptions | None = None):
        super().__init__("dask:index:DaskOnMachines", name, {}, opts)
        settings, network = args["settings"], args["network"]
        locked = lock.read(PROJECT / settings.environment.lock, settings.environment.python)
        there = [host for host in args["hosts"] if not host.gone]
        cluster = Cluster(name, self, settings, moves.guarded(name, self, there, settings))
        for host in args["hosts"]:
            if host.gone:
                cluster.forget(host)

        head, ports = cluster.head, settings.dask.ports
        protocol = dask_options.protocol(settings)
        self.scheduler = Output.format("{}://{}:{}", protocol, head.host.address, ports.scheduler)
        self.dashboard = Output.format("http://{}:{}/status", head.host.address, ports.dashboard)

        # If there are secret variables, all variables of a step become secret with them.
        env = {**dask_options.trusted(settings), **(args.get("secret_env") or {}), **settings.dask.env}
        uv_env = {name: value for name, value in env.items() if dask_options.concerns_uv(name)}
        task_env = {name: value for name, value in env.items() if dask_options.concerns_tasks(name)}
        exports = Output.all(**uv_env).apply(dask_options.exports) if uv_env else ""

        # On every machine the steps run in this order.
        # Machines that this stack creates are as we need them.
        asked: list[Step | Resource] = []
        if isinstance(settings.machines, ExistingSource):
            asked = [steps.preflight(cluster, network, locked, exports)]
        others = [machine for machine in cluster.machines.values() if machine is not head]
        steps.scripts([head], asked)
        google = args.get("google")
        if google and dask_options.bounds(settings):
            asked.append(steps.power(cluster, google))
        steps.scripts(others, asked)
        steps.firewall(cluster, network, asked)
        client = credentials.issue(cluster, args["stack"], network)
        steps.data(cluster)
        python, notebooks = settings.environment.python, settings.jupyter.enabled
        jupyter = lock.read(PROJECT / JUPYTER_LOCK, python, dask=False) if notebooks else None
        installs = steps.environment(cluster, locked, jupyter, exports, asked)
        secrets = Output.all(**task_env).apply(dask_options.environment_file) if task_env else ""
        steps.service(cluster, self.scheduler, secrets)
        login = jupyter_login(name, args.get("password"), self)
        if jupyter:
            steps.jupyter(cluster, jupyter, installs, secrets, login["hash"])
        steps.jobs(cluster, self.scheduler)
        steps.idle(cluster)
        members = steps.members(cluster, self.scheduler, client.signed)
        table = steps.check(cluster, self.scheduler, locked, members)

        self.check = table.apply(printable)  # tasks can forge it
        self.client = Output.secret(
            Output.all(
                target="machines",
                scheduler=self.scheduler,
                dashboard=self.dashboard,
                head=head.host.name,
                tls=client.tls,
                tunnel=client.tunnel,
                python=settings.environment.python,
                packages=locked.packages,
                jupyter=credentials.notebook_server(settings) if notebooks else None,
                lock=settings.environment.lock,
                sleeps=settings.limits.idle is not None,
                bounds=dask_options.bounds(settings),
                grouped=settings.grouped,
                google=asdict(google) if google else None,
            ).apply(client_output.exported)
        )
        self.password = login["password"]
        hosts = {each: machine.host for each, machine in cluster.machines.items()}
        logins = {each: Output.all(**(host.login or host.connection)) for each, host in hosts.items()}
        self.admin = Output.secret(Output.all(machines=Output.all(**logins)))
        self.register_outputs(
            {
                "scheduler": self.scheduler,
                "dashboard": self.dashboard,
                "check": self.check,
                "client": self.client,
                "password": self.password,
                "admin": self.admin,
            }
        )
