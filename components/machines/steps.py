"""The steps of a cluster on machines, except credentials: where each runs, and with which variables.

`on_the_cluster/steps/NAME.sh` says what a step does and what its variables mean.
"""

import json
import os
from collections.abc import Sequence

from pulumi import Input, Output, Resource, ResourceOptions
from pulumi_command import local

from components.jupyter_password import jupyter_config
from components.machines import dask_options
from components.machines.machine import Cluster, Machine, Variables
from components.machines.step import ON_THE_CLUSTER, Step, resources
from daskstack.client_output import Google
from daskstack.engine import PROJECT
from on_this_computer import send_scripts
from settings.common import seconds
from settings.lock import Lock

COMPUTE = "https://compute.googleapis.com/compute/v1/"
BOOT = 300  # seconds for a machine to boot and for its workers to join, as in power.py
CHECK = ON_THE_CLUSTER / "check.py"
WORKED = ON_THE_CLUSTER / "record_last_work.py"
RETIRED = ON_THE_CLUSTER / "stay_retired.py"
ELASTIC = ON_THE_CLUSTER / "elastic.py"
DASKDATA = PROJECT / "daskstack/daskdata.py"
MOUNT = ON_THE_CLUSTER / "mount_data.py"
RELOAD = ON_THE_CLUSTER / "reload_tls.py"
JOBS = ON_THE_CLUSTER / "jobs.py"
JOBS_DOOR = ON_THE_CLUSTER / "jobs_door.py"
RUN_JOB = ON_THE_CLUSTER / "run_job.py"
USER_CODE = PROJECT / "daskstack/user_code.py"
POWER = ON_THE_CLUSTER / "power.py"
# The chart's pods run these too.
DRAIN, PEOPLE, SCALING = (PROJECT / "charts/dask/files" / f"{name}.py" for name in ("drain", "people", "scaling"))


def preflight(cluster: Cluster, network: Input[str], lock: Lock, uv_env: Input[str]) -> local.Command:
    """Asks all machines, before the first change, what keeps them from joining the cluster."""
    machines = []
    for name, machine in cluster.machines.items():
        reaches = [each for each in cluster.machines.values() if (each is cluster.head) != (machine is cluster.head)]
        variables = {
            "ADDRESS": machine.host.address,
            "REACHES": Output.all(*(each.host.address for each in reaches)).apply(" ".join),
            "USERS": _users(cluster, machine),
            "PYTHON": cluster.settings.environment.python,
            "SOURCE": _source(cluster, lock),
            **_place_of_data(cluster, machine),
            **_firewall(cluster, machine, network),
        }
        known = {"name": name, "identity": machine.host.identity, "connection": machine.host.connection}
        machines.append({**known, "variables": variables})
    program = ".venv/bin/python -m on_this_computer.preflight"
    return local.Command(
        f"{cluster.name}-preflight",
        create=program,
        update=program,
        environment={"MACHINES": Output.json_dumps(machines), "UV_ENV": uv_env},
        logging=local.Logging.STDERR,
        opts=ResourceOptions(parent=cluster.component),
    )


def _users(cluster: Cluster, machine: Machine) -> str:
    """The users that the steps `keys`, `credentials`, `jupyter` and `jobs` create."""
    notebooks = " dask-jupyter" if cluster.settings.jupyter.enabled else ""
    return f"dask dask-tunnel dask-jobs{notebooks}" if machine is cluster.head else "dask"


def scripts(machines: Sequence[Machine], after: Sequence[Step | Resource]) -> None:
    """Copies the steps to these machines."""
    program = ".venv/bin/python -m on_this_computer.send_scripts"
    for machine in machines:
        host = machine.host
        machine.scripts = local.Command(
            f"{machine.name}-scripts",
            create=program,
            update=program,
            delete=f"{program} undo",
            environment={
                "CONNECTION": Output.json_dumps(host.connection),
                "IDENTITY": host.identity,
                "VERSION": send_scripts.version(),
            },
            add_previous_output_in_env=False,
            logging=local.Logging.STDERR,
            opts=ResourceOptions(
                parent=machine,
                deleted_with=host.deleted_with,
                depends_on=resources(after),
            ),
        )


def power(cluster: Cluster, google: Google) -> Step:
    """Lets the scheduler's machine start and stop the others. Afterwards, `up` reaches them through that service."""
    others = {name: machine for name, machine in cluster.machines.items() if machine is not cluster.head}
    machines = {
        name: {
            "instance": f"zones/{google.zone_of(name)}/instances/{google.machines[name]}",
            # The service would stop a new machine that is still booting, so it first has to have a host key.
            "address": Output.all(machine.host.address, machine.host.connection["host_key"]).apply(lambda all: all[0]),
            "port": machine.host.connection["port"] if machine.host.login else None,
        }
        for name, machine in others.items()
    }
    limit = cluster.settings.limits.idle
    told = {
        "api": os.environ.get("GOOGLE_COMPUTE_CUSTOM_ENDPOINT", COMPUTE),  # Pulumi's plugin uses this variable, too
        "project": google.project,
        "idle": seconds(limit) if limit else None,
        "machines": machines,
    }
    ports = [machine.host.connection["port"] for machine in others.values() if machine.host.login]
    variables = {
        "POWER": POWER,
        "MACHINES": Output.json_dumps(told),
        "PORT": Output.all(*ports).apply(lambda known: str(int(max(known)))),
    }
    return cluster.on_head("power", variables, [])


def firewall(cluster: Cluster, network: Input[str], after: Sequence[Step | Resource]) -> None:
    for machine in cluster.machines.values():
        step = machine.step("firewall", _firewall(cluster, machine, network), after=after)
        if cluster.settings.firewall.manage:
            _confirm_ssh_access(machine, step)


def _firewall(cluster: Cluster, machine: Machine, network: Input[str]) -> Variables:
    settings = cluster.settings.firewall
    return {
        "NETWORK": network,
        "SSH_PORT": str(machine.host.port),
        "SSH_SOURCES": "0.0.0.0/0" if machine.host.guarded else " ".join(settings.ssh),
        "PORTS": dask_options.dask_ports(cluster.settings, cluster.settings.group_of(machine.host.name).per_machine),
        "LIBRARY_PORTS": dask_options.library_ports(cluster.settings),
        "OPEN": " ".join(f"{each.port}={source}" for each in settings.open for source in each.sources),
        "CLOSE_OTHERS": "yes" if settings.close_others else "no",
        "MANAGE": "yes" if settings.manage else "no",
    }


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


def _holder(cluster: Cluster) -> Machine:
    return cluster.machines[cluster.settings.data.machine or cluster.head.host.name]


def _place_of_data(cluster: Cluster, machine: Machine) -> Variables:
    holds = machine is _holder(cluster)
    return {
        "DATA_PATH": cluster.settings.data.path,
        "DEVICE": machine.host.disk if holds else "",
        "HOLDS": "yes" if holds else "no",
    }


def data(cluster: Cluster) -> None:
    settings, holder = cluster.settings.data, _holder(cluster)

    def variables(machine: Machine) -> Variables:
        return {
            **_place_of_data(cluster, machine),
            "DATA_ADDRESS": holder.host.address,
            "DEVICE_SIZE": str(machine.host.disk_size) if machine is holder else "",
            "OPTIONS": "".join(f",{option}" for option in settings.options),
            "DELETE": "yes" if settings.delete else "no",
            "LOGIN_USER": machine.host.connection["user"],
            "MOUNT": MOUNT,
            "DASKDATA": DASKDATA,
        }

    cluster.everywhere("data", variables, first=holder)


def _source(cluster: Cluster, lock: Lock) -> str:
    return "archive" if lock.archive else cluster.settings.environment.source or ""


def environment(
    cluster: Cluster, lock: Lock, jupyter: Lock | None, uv_env: Input[str], after: Sequence[Step | Resource]
) -> dict[str, Input[str]]:
    """Returns the step's variables that concern uv and Python, for other steps that install packages."""
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
            "JUPYTER": str(jupyter.path.relative_to(PROJECT)) if jupyter else "",
            "JUPYTER_SHA256": jupyter.sha256 if jupyter else "",
            "CONNECTION": Output.json_dumps(head.host.connection),
            "IDENTITY": head.host.identity,
        },
        add_previous_output_in_env=False,
        logging=local.Logging.STDERR,
        opts=ResourceOptions(
            parent=head,
            deleted_with=head.host.deleted_with,
            depends_on=resources(after),
        ),
    )
    uv = files.stdout.apply(json.loads)

    installs = {
        "LOCK_SHA256": lock.sha256,
        "PYTHON": settings.python,
        "SOURCE": _source(cluster, lock),
        "UV": uv["uv"],
        "UV_ENV": uv_env,
    }

    def variables(machine: Machine) -> Variables:
        return {
            **installs,
            "SYSTEM": " ".join(settings.system),
            "UV_SHA256": uv["uvSha256"],
            "ARCHIVE_SHA256": lock.archive_sha256,
            "ARCHIVE_SIZE": str(lock.archive_size),
            "CERTIFICATES": settings.authority,
            "CHECK": CHECK,
            "IMPORTS": _imports(lock, machine.host.name),
            "AUTHORITY_ADDRESS": cluster.head_seen_from(machine),
        }

    cluster.everywhere("environment", variables, first=head)
    return installs


def _imports(lock: Lock, where: str) -> str:
    """What check.py imports in its own environment."""
    return json.dumps({"imports": lock.inputs, "where": where}) if lock.inputs else ""


def service(cluster: Cluster, scheduler: Output[str], secrets: Input[str]) -> None:
    settings, ports = cluster.settings, cluster.settings.dask.ports
    scheduler_args = (*dask_options.preloads(settings, "scheduler"), *settings.dask.scheduler_args)
    worker_args = (
        *dask_options.preloads(settings, "worker"),
        *dask_options.preloads(settings, "nanny"),
        *settings.dask.worker_args,
    )

    def variables(machine: Machine) -> Variables:
        group = settings.group_of(machine.host.name)
        roles = {"scheduler": machine is cluster.head, "worker": machine.host.name in cluster.workers}
        return {
            "ROLES": " ".join(role for role, has in roles.items() if has),
            "NAME": machine.host.name,
            "ADDRESS": machine.host.address,
            "SCHEDULER": scheduler,
            "SCHEDULER_PORT": str(ports.scheduler),
            "DASHBOARD_PORT": str(ports.dashboard),
            "WORKERS_PORT": str(ports.workers),
            "WORKERS": str(group.per_machine),
            "THREADS": str(group.threads or ""),
            "MEMORY": group.memory_limit or "",
            "GPU_EACH": "yes" if group.gpu_each else "no",
            "SPILL": settings.workers.spill,
            "SSDS": " ".join(machine.host.ssds),
            "DATA_PATH": settings.data.path,
            "HOMES": "yes" if settings.workers.read_homes else "no",
            "CONFIG": dask_options.config(settings),
            "SECRET_ENV": secrets,
            "SCHEDULER_ARGS": dask_options.quoted(scheduler_args),
            "WORKER_ARGS": dask_options.quoted((*worker_args, *dask_options.resources(group))),
            "RELOAD": RELOAD if settings.dask.tls else "",
            "PEOPLE": PEOPLE if settings.dask.tls and machine is cluster.head else "",
            "DRAIN": DRAIN,
            "RETIRED": RETIRED,
            "ELASTIC": ELASTIC if dask_options.bounds(settings) else "",
            "SCALING": SCALING if dask_options.bounds(settings) else "",
            "GRACE": str(machine.host.grace),
            "WORKED": WORKED if settings.limits.idle else "",
            "CREDENTIALS": cluster.head.host.identity,
            "FIREWALL": "yes" if settings.firewall.manage else "no",
            "AUTHORITY_ADDRESS": cluster.head_seen_from(machine),
        }

    cluster.everywhere("service", variables, first=cluster.head)


def jupyter(cluster: Cluster, lock: Lock, installs: Variables, secrets: Input[str], hashed: Output[str]) -> None:
    settings, address = cluster.settings, Output.from_input(cluster.head.host.address)

    def server(known: dict) -> str:
        return jupyter_config(known["hashed"], **dask_options.notebook_server(settings, known["address"]))

    cluster.head.step(
        "jupyter",
        {
            **installs,
            "JUPYTER_SHA256": lock.sha256,
            "PORT": str(settings.dask.ports.jupyter),
            "CONFIG": address.apply(lambda known: dask_options.notebook_config(settings, known)),
            "SERVER": Output.all(hashed=hashed, address=address).apply(server),
            "PANELS": address.apply(lambda known: json.dumps(dask_options.notebook_panels(settings, known))),
            "DATA_PATH": settings.data.path,
            "HOMES": "yes" if settings.workers.read_homes else "no",
            "TLS": "yes" if settings.dask.tls else "no",
            "RENEWAL": str(settings.credentials.renewal),
            "SECRET_ENV": secrets,
        },
    )


def jobs(cluster: Cluster, scheduler: Output[str]) -> None:
    settings = cluster.settings
    cluster.head.step(
        "jobs",
        {
            "JOBS": JOBS,
            "DOOR": JOBS_DOOR,
            "RUN_JOB": RUN_JOB,
            "USER_CODE": USER_CODE,
            "SCHEDULER": scheduler,
            "DATA_PATH": settings.data.path,
            "HOMES": "yes" if settings.workers.read_homes else "no",
            "TLS": "yes" if settings.dask.tls else "no",
        },
    )


def idle(cluster: Cluster) -> None:
    if limit := cluster.settings.limits.idle:
        for machine in cluster.machines.values():
            machine.step("idle", {"LIMIT": str(seconds(limit)), "ADDRESS": cluster.head_seen_from(machine)})


def members(cluster: Cluster, scheduler: Output[str], client: Step) -> Step:
    """Retires the workers that are no longer in the settings, before Pulumi undoes the steps of their machines."""
    numbers = [*(dask_options.bounds(cluster.settings) or []), *([BOOT] if boots(cluster) else [])]
    variables = {
        "DRAIN": DRAIN,
        "SCHEDULER": scheduler,
        "MEMBERS": " ".join(dask_options.worker_names(cluster.settings, cluster.workers)),
        "BOUNDS": " ".join(map(str, numbers)),
        "FIXED": " ".join(dask_options.fixed_workers(cluster.settings)),
        "RENEWAL": str(cluster.settings.credentials.renewal),
    }
    last = [machine.steps[-1] for machine in cluster.machines.values()]
    return cluster.on_head("members", variables, [*last, client])


def boots(cluster: Cluster) -> bool:
    """Whether machines start and stop with their workers."""
    return any(machine.host.login for machine in cluster.machines.values())


def check(cluster: Cluster, scheduler: Output[str], lock: Lock, members: Step) -> Output[str]:
    """Checks all workers whenever a step has run again. Returns the table of the results.

    It runs a Dask job if that step was one of the scheduler's machine. A worker that joins needs no new job. The step
    `environment` has imported the packages.
    """
    settings, boot = cluster.settings, BOOT if boots(cluster) else 0
    expect = {
        "address": scheduler,
        "workers": dask_options.worker_names(settings, cluster.workers),
        "bounds": dask_options.bounds(settings),
        "groups": [len(dask_options.fixed_workers(settings))] * 2,
        "boot": boot,
        "python": settings.environment.python,
        "packages": lock.packages,
        "libraries": dask_options.library_ports(settings),
        "data": settings.data.path,
    }
    variables = {
        "CHECK": CHECK,
        "BOOT": str(boot or ""),
        "EXPECT": Output.json_dumps(expect),
        "NOTEBOOK": _imports(lock, "the notebook server") if settings.jupyter.enabled else "",
        "CONFIRMS": Output.all(*(step.fingerprint for step in cluster.steps)).apply(" ".join),
        "PROVES": Output.all(*(step.fingerprint for step in cluster.head.steps)).apply(" ".join),
    }
    printed = cluster.on_head("check", variables, [*cluster.steps, members], show=True).command.stdout
    # Login shells can print other lines before the table.
    return printed.apply(lambda text: text[text.find("workers  ") :])
