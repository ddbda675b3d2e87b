"""The steps of a cluster on machines, except credentials: where each runs, and with which variables.

`on_the_cluster/steps/NAME.sh` says what a step does and what its variables mean.
"""

import json
from collections.abc import Mapping

from pulumi import Input, Output, ResourceOptions
from pulumi_command import local

from components.machines import dask_options
from components.machines.machine import Cluster, Machine, Variables
from components.machines.step import ON_THE_CLUSTER, Step
from daskstack.engine import PROJECT
from settings.common import seconds
from settings.lock import Lock

CHECK = ON_THE_CLUSTER / "check.py"
WORKED = ON_THE_CLUSTER / "record_last_work.py"
RETIRED = ON_THE_CLUSTER / "stay_retired.py"
RELOAD = ON_THE_CLUSTER / "reload_tls.py"
DRAIN = PROJECT / "charts/dask/files/drain.py"  # the chart's pods run it too


def firewall(cluster: Cluster, network: Input[str]) -> None:
    settings = cluster.settings.firewall
    for machine in cluster.machines.values():
        step = machine.step(
            "firewall",
            {
                "NETWORK": network,
                "SSH_PORT": str(machine.host.port),
                "SSH_SOURCES": "0.0.0.0/0" if machine.host.guarded else " ".join(settings.ssh),
                "PORTS": dask_options.cluster_ports(cluster.settings),
                "OPEN": " ".join(f"{each.port}={source}" for each in settings.open for source in each.sources),
                "CLOSE_OTHERS": "yes" if settings.close_others else "no",
                "MANAGE": "yes" if settings.manage else "no",
            },
        )
        if settings.manage:
            _confirm_ssh_access(machine, step)


def _confirm_ssh_access(machine: Machine, step: Step) -> None:
    """Confirms a changed firewall over a new SSH connection. Without that, the machine rolls the change back.

    This is a local Command, because if the machine has already rolled back, the step has to run again, and then the
    confirmation needs another new connection.
    """
    local.Command(
        f"{machine.name}-reachable",
        create=".venv/bin/python -m on_this_computer.confirm_ssh_access",
        environment={"CONNECTION": Output.json_dumps(machine.host.connection), "COMMAND": step.update},
        stdin=step.stdin,
        add_previous_output_in_env=False,
        logging=local.Logging.STDERR,
        opts=ResourceOptions(parent=machine, depends_on=[step.command]),
    )


def data(cluster: Cluster) -> None:
    settings = cluster.settings.data
    holder = cluster.machines[settings.machine or cluster.head.host.name]

    def variables(machine: Machine) -> Variables:
        return {
            "DATA_PATH": settings.path,
            "DATA_ADDRESS": holder.host.address,
            "DEVICE": machine.host.disk if machine is holder else "",
            "DEVICE_SIZE": str(machine.host.disk_size) if machine is holder else "",
            "HOLDS": "yes" if machine is holder else "no",
            "OPTIONS": "".join(f",{option}" for option in settings.options),
            "DELETE": "yes" if settings.delete else "no",
            "LOGIN_USER": machine.host.connection["user"],
        }

    cluster.everywhere("data", variables, first=holder)


def environment(cluster: Cluster, lock: Lock) -> None:
    settings, head = cluster.settings.environment, cluster.head
    files = local.Command(
        f"{head.name}-files",
        create=".venv/bin/python -m on_this_computer.send_environment",
        delete=".venv/bin/python -m on_this_computer.send_environment undo",
        environment={
            "LOCK": settings.lock,
            "LOCK_SHA256": lock.sha256,
            "PYTHON": settings.python,
            "SOURCE": settings.source or "",
            "CONNECTION": Output.json_dumps(head.host.connection),
            "IDENTITY": head.host.identity,
        },
        add_previous_output_in_env=False,
        logging=local.Logging.STDERR,
        opts=ResourceOptions(parent=head, deleted_with=head.host.deleted_with),
    )
    uv = files.stdout.apply(json.loads)

    def variables(machine: Machine) -> Variables:
        return {
            "LOCK_SHA256": lock.sha256,
            "PYTHON": settings.python,
            "SOURCE": settings.source or "",
            "UV": uv["uv"],
            "UV_SHA256": uv["uvSha256"],
            "AUTHORITY_ADDRESS": cluster.head_seen_from(machine),
        }

    cluster.everywhere("environment", variables, first=head)


def service(cluster: Cluster, scheduler: Output[str], secret_env: Mapping[str, Input[str]]) -> None:
    settings, ports = cluster.settings, cluster.settings.dask.ports
    # If there are secret variables, all variables of the step become secret with them.
    secrets = Output.all(**secret_env).apply(dask_options.environment_file) if secret_env else ""
    scheduler_args = (*dask_options.preloads(settings, "scheduler"), *settings.dask.scheduler_args)
    worker_args = (
        *dask_options.preloads(settings, "worker"),
        *dask_options.preloads(settings, "nanny"),
        *settings.dask.worker_args,
    )

    def variables(machine: Machine) -> Variables:
        roles = {"scheduler": machine is cluster.head, "worker": machine.host.name in cluster.workers}
        return {
            "ROLES": " ".join(role for role, has in roles.items() if has),
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
            "SECRET_ENV": secrets,
            "SCHEDULER_ARGS": dask_options.quoted(scheduler_args),
            "WORKER_ARGS": dask_options.quoted(worker_args),
            "RELOAD": RELOAD.read_text() if settings.dask.tls else "",
            "DRAIN": DRAIN.read_text(),
            "RETIRED": RETIRED.read_text(),
            "GRACE": str(machine.host.grace),
            "WORKED": WORKED.read_text() if settings.limits.idle else "",
            "CREDENTIALS": cluster.head.host.identity,
            "FIREWALL": "yes" if settings.firewall.manage else "no",
            "AUTHORITY_ADDRESS": cluster.head_seen_from(machine),
        }

    cluster.everywhere("service", variables, first=cluster.head)


def idle(cluster: Cluster) -> None:
    if limit := cluster.settings.limits.idle:
        for machine in cluster.machines.values():
            machine.step("idle", {"LIMIT": str(seconds(limit)), "ADDRESS": cluster.head_seen_from(machine)})


def members(cluster: Cluster, scheduler: Output[str], client: Step) -> Step:
    """Retires the workers that are no longer in the settings, before Pulumi undoes the steps of their machines."""
    variables = {
        "DRAIN": DRAIN.read_text(),
        "SCHEDULER": scheduler,
        "MEMBERS": " ".join(dask_options.worker_names(cluster.settings, cluster.workers)),
        "RENEWAL": str(cluster.settings.credentials.renewal),
    }
    last = [machine.steps[-1] for machine in cluster.machines.values()]
    return cluster.on_head("members", variables, [*last, client])


def check(cluster: Cluster, scheduler: Output[str], lock: Lock, members: Step) -> Output[str]:
    """Runs a Dask job on all workers, again whenever a step has run again. Returns the table of the results."""
    settings = cluster.settings
    expect = {
        "address": scheduler,
        "workers": dask_options.worker_names(settings, cluster.workers),
        "python": settings.environment.python,
        "packages": lock.packages,
        "data": settings.data.path,
    }
    variables = {
        "CHECK": CHECK.read_text(),
        "EXPECT": Output.json_dumps(expect),
        "CONFIRMS": Output.all(*(step.fingerprint for step in cluster.steps)).apply(" ".join),
    }
    return cluster.on_head("check", variables, [*cluster.steps, members], show=True).command.stdout
