"""Settings of a stack with `target: machines`."""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from settings import compute, cost
from settings.buckets import BUCKETS_EXAMPLE, Buckets, bucket_conflicts
from settings.common import (
    LIBRARY_PORTS,
    Conflict,
    Credentials,
    Env,
    Environment,
    Listed,
    Networks,
    Numbered,
    Place,
    PortRange,
    Prices,
    Section,
    dotted,
    jupyter_conflicts,
    lock_conflicts,
    valid_memory,
    world_conflicts,
)
from settings.compute import POWER_PORTS, ComputeSource, MachineLimits, compute_conflicts
from settings.dask_arguments import MACHINES_ARGUMENTS, MACHINES_CONFIG, config_conflicts, valid_argument
from settings.existing import ExistingSource, existing_conflicts, unknown_machine
from settings.folders import NO_DATA, NO_SPILL, is_below, valid_folder, valid_mount_option
from settings.groups import Group, MachineGroup, group_conflicts, groups

MINIMAL = {"target": "machines", "machines": {"source": "local", "workers": 2}}

# Checks of single values: each returns its argument, or raises ValueError with the message for the user.


def valid_port(lowest: int, port: int) -> int:
    if port == 22:
        raise ValueError("22 is reserved for SSH; write another port, and use firewall.ssh to allow SSH access")
    if not lowest <= port <= 65535:
        raise ValueError(f"{port} is not allowed here; write a port from {lowest} to 65535")
    return port


Arguments = Annotated[tuple[Annotated[str, AfterValidator(partial(valid_argument, MACHINES_ARGUMENTS))], ...], Listed]
DaskPort = Annotated[int, AfterValidator(partial(valid_port, 1024))]
ARGUMENTS_EXAMPLE = [["--preload", "my.module"]]
OPEN_EXAMPLE = [[{"port": 9100, "sources": ["203.0.113.0/24"]}]]
DATA = "/srv/daskdata"
SPILL = "/var/lib/daskstack/spill"
LOCAL_MEMORY = "2 GiB"
# The Debian release that local machines run for each Python version: they install packages from Debian alone.
LOCAL_RELEASES = {"3.11": "bookworm", "3.13": "trixie"}


class LocalSource(Numbered):
    """Machines on your computer."""

    source: Literal["local"] = Field(examples=["local"])
    """Machines on your computer, for trying out a cluster."""


class Workers(Section):
    """Dask's worker processes."""

    per_machine: int | None = Field(None, ge=1, le=64, examples=[2])
    """Number of worker processes per machine; by default one, or one per GPU of `machines.worker`. If there is one per
    GPU, each process sees only its own (`CUDA_VISIBLE_DEVICES`).
    """
    min: int | None = Field(None, ge=0, examples=[1])
    """The smallest number of worker processes, without those of `groups`, which always run. With `min` or `max`, the
    running cluster sets the number within these bounds (`cluster.scale`, `daskstack scale`), and `up` keeps it. The
    default is 1 if `max` is set. On Google Cloud, machines start and stop with their workers; one that is off costs
    only its disk.
    """
    max: int | None = Field(None, ge=1, examples=[8])
    """The largest number of worker processes, without those of `groups`; all that the machines provide, if `min` is
    set.
    """
    at_least: int | None = Field(None, ge=1, examples=[6])
    """`daskstack up` succeeds without machines that cannot join now, as long as the others provide this many worker
    processes, those of groups included. It says which machines are missing and why, and lists them in `missing`; the
    next one lets them join. By default, all machines must join. Not available with `machines.source: local`.
    """
    missing: Annotated[tuple[str, ...], Listed] = Field((), examples=[["worker-3"]])
    """The names of machines that are not part of the cluster for now, because they cannot join. `daskstack up`
    maintains this list. Only with `atLeast`. If you list a machine that has joined, `up` removes the cluster from it.
    """
    threads: int | None = Field(None, ge=1, examples=[2])
    """Threads per worker process; by default the machine's CPUs divided by `perMachine`."""
    memory_limit: Annotated[str, AfterValidator(valid_memory)] | None = Field(None, examples=["2 GiB"])
    """Memory limit of each worker process; by default the machine's memory divided by `perMachine`. On
    local machines, which share your computer's memory, the default is 2 GiB.
    """
    spill: Annotated[str, AfterValidator(partial(valid_folder, NO_SPILL, SPILL))] = SPILL
    """A folder on the machine's own disk for data that does not fit into memory. Workers only use the subfolder
    `daskstack`.
    """
    read_homes: bool = False
    """Tasks and notebooks can read files in `/home` that every user of the machine can read. Otherwise `/home` is
    empty for them.
    """
    groups: Annotated[tuple[MachineGroup, ...], Listed] = Field(
        (), examples=[[{"name": "big", "resources": {"BIG": 1}}]]
    )
    """Machines whose workers differ from the others. `min` and `max` do not include them."""


class MachineJupyter(Section):
    """A notebook server on the scheduler's machine."""

    enabled: bool = True
    """Run a notebook server on the scheduler's machine. Notebooks are in the folder `notebooks` of the shared
    directory.
    """


class Open(Section):
    """A TCP port to open on every machine."""

    port: Annotated[int, AfterValidator(partial(valid_port, 1))] = Field(examples=[9100])
    """The TCP port."""
    sources: Networks = Field(min_length=1, examples=[["203.0.113.0/24"]])
    """The networks that can reach the port. Opening it to the entire internet is not allowed."""


class Firewall(Section):
    """The machines' firewalls."""

    manage: bool = True
    """Set it to `false` to manage the machines' firewalls yourself. `up` then only checks them, and lists the ports
    that must be open.
    """
    close_others: bool = False
    """Also close ports on which other services listen now."""
    ssh: Networks = Field((), examples=[["203.0.113.7/32"]])
    """Networks that can connect by SSH, in addition to the cluster's own. On Google Cloud, they can only reach the
    scheduler's machine.
    """
    open: Annotated[tuple[Open, ...], Listed] = Field((), examples=OPEN_EXAMPLE)
    """Additional ports to open. Not available on Google Cloud."""
    metadata: bool = False
    """Allow tasks to use the machine's cloud account through the metadata server. On Google Cloud, use
    `data.buckets` or `machines.roles` instead.
    """


class Data(Section):
    """The shared directory."""

    path: Annotated[str, AfterValidator(partial(valid_folder, NO_DATA, DATA))] = DATA
    """The path of the shared directory on every machine. On a separate disk, use a folder below its mount point."""
    machine: str | None = Field(None, examples=["scheduler"])
    """The machine that stores the files; the scheduler's by default."""
    options: Annotated[tuple[Annotated[str, AfterValidator(valid_mount_option)], ...], Listed] = Field(
        (), examples=[["compression=no"]]
    )
    """Additional sshfs options for caches, ciphers and compression."""
    delete: bool = False
    """`destroy` also deletes the files in the shared directory. Not available with `machines.dataDisk.name`, because
    `destroy` never deletes an existing disk.
    """
    buckets: Buckets = Field((), examples=BUCKETS_EXAMPLE)
    """Buckets that tasks and notebooks can use as `gs://bucket/path`, without credentials in code. This opens the
    metadata server to all tasks. Only with `machines.source: compute`.
    """


class MachineEnvironment(Environment):
    """The Python packages that all processes use, and how machines get them."""

    source: Literal["index", "wheelhouse"] | None = Field(None, examples=["wheelhouse"])
    """How machines get the packages. `wheelhouse`: your computer downloads them and uploads them once to the
    scheduler's machine, which serves them to the others. `index`: each machine downloads them from its package index,
    which is that of the variable `UV_DEFAULT_INDEX` or of its /etc/uv/uv.toml, or else PyPI. The default is
    `wheelhouse` for local machines and `index` for all others.
    """


class Ports(Section):
    """Ports of Dask's services."""

    scheduler: DaskPort = 8786
    """The scheduler's port."""
    dashboard: DaskPort = 8787
    """The scheduler's dashboard port."""
    workers: DaskPort = 9000
    """The first of the workers' ports. Each worker process on a machine uses three: worker, nanny and dashboard."""
    libraries: PortRange = LIBRARY_PORTS
    """The ports that machines open to each other for libraries that talk among workers, such as LightGBM, XGBoost and
    PyTorch. These let the kernel choose ports; the default is Linux's own range. `none` closes them.
    """
    jupyter: DaskPort = 8888
    """The notebook server's port on the scheduler's machine. Only that machine itself can reach it."""


class Dask(Section):
    """Options of Dask itself."""

    ports: Ports = Ports()
    """Ports of Dask's services and of the notebook server. Only the cluster's machines can reach them."""
    scheduler_args: Arguments = Field((), examples=ARGUMENTS_EXAMPLE)
    """Additional arguments for `dask scheduler`."""
    worker_args: Arguments = Field((), examples=ARGUMENTS_EXAMPLE)
    """Additional arguments for `dask worker`."""
    config: dict[str, Any] = Field({})
    """Dask configuration, in the format of Dask's YAML files. Unless `distributed.scheduler.no-workers-timeout` says
    otherwise, a task that no worker can run fails after 30 minutes.
    """
    env: Env = Field({}, examples=[{"OMP_NUM_THREADS": "1"}])
    """Environment variables for the scheduler, workers and notebooks. uv, which installs the packages, gets those of
    proxies too, and it alone gets those whose names begin with `UV_`.
    """
    tls: bool = True
    """Mutual TLS between the scheduler, workers and clients."""


class MachinesTarget(Section):
    """A Dask cluster on machines, set up over SSH."""

    target: Literal["machines"] = Field(examples=["machines"])
    """A Dask cluster on machines, set up over SSH."""
    machines: LocalSource | ExistingSource | ComputeSource = Field(
        discriminator="source", examples=[MINIMAL["machines"]]
    )
    """The machines."""
    workers: Workers = Workers()
    """Dask's worker processes."""
    firewall: Firewall = Firewall()
    """The machines' firewalls."""
    data: Data = Data()
    """The shared directory."""
    environment: MachineEnvironment = MachineEnvironment()
    """The Python packages that all processes use, and how machines get them."""
    dask: Dask = Dask()
    """Options of Dask itself."""
    jupyter: MachineJupyter = MachineJupyter()
    """A notebook server on the scheduler's machine."""
    credentials: Credentials = Credentials()
    """Keys and certificates."""
    limits: MachineLimits = MachineLimits()
    """Limits on idle time, cost and the age of machines."""
    prices: Prices = Field({}, examples=[{"n1-standard-4": 0.15}])
    """Your own prices in US dollars per hour, by name; Google's list prices by default."""
    moves: Annotated[tuple[Literal["scheduler", "data"], ...], Listed] = Field((), examples=[["scheduler"]])
    """Allow the scheduler or the data to move to another machine on the next `up`. Remove it afterwards."""

    def completed(self) -> "MachinesTarget":
        """A copy with the defaults that depend on other settings."""
        machine = self.data.machine or self.machines.scheduler_name
        source = self.environment.source or ("wheelhouse" if self.machines.source == "local" else "index")
        data = self.data.model_copy(update={"machine": machine})
        shares = self.machines.source == "local"  # the memory of this computer
        memory = self.workers.memory_limit or (LOCAL_MEMORY if shares else None)
        low, high = (bound and min(bound, self.processes - self.grouped) for bound in self.bounds)
        workers = self.workers.model_copy(update={"memory_limit": memory, "min": low, "max": high})
        environment = self.environment.model_copy(update={"source": source})
        return self.model_copy(update={"data": data, "environment": environment, "workers": workers})

    @property
    def listed(self) -> tuple[str, ...]:
        """All machines, the scheduler's first, and those in `workers.missing`."""
        own = self.machines.machine_names
        grouped = (name for group in groups(self) for name in group.machines)
        return (*own, *(name for name in grouped if name not in own))

    @property
    def machine_names(self) -> tuple[str, ...]:
        """The machines of the cluster, the scheduler's first."""
        return tuple(name for name in self.listed if name not in self.workers.missing)

    @property
    def groups(self) -> list[Group]:
        """The machines that run workers. The first group has those that are in no other."""
        return [group.without(self.workers.missing) for group in groups(self)]

    def group_of(self, machine: str) -> Group:
        """The first group also has the settings of a machine that runs no workers."""
        found = self.groups
        return next((group for group in found if machine in group.machines), found[0])

    @property
    def processes(self) -> int:
        """The number of worker processes that the machines provide."""
        return sum(group.processes for group in self.groups)

    @property
    def listed_processes(self) -> int:
        """The number of worker processes that the machines provide if none is missing."""
        return sum(group.processes for group in groups(self))

    @property
    def grouped(self) -> int:
        """The number of worker processes in `workers.groups`, to which bounds do not apply."""
        return sum(group.processes for group in self.groups if not group.has_bounds)

    @property
    def most(self) -> int:
        """The largest number of worker processes that `workers.max` allows."""
        return sum(group.processes for group in groups(self) if group.has_bounds)

    @property
    def most_per_machine(self) -> int:
        """The largest number of worker processes of one machine."""
        return max(group.per_machine for group in self.groups)

    @property
    def bounds(self) -> tuple[int, int] | tuple[None, None]:
        """The smallest and the largest number of worker processes outside of groups; None if all of them run."""
        low, high = self.workers.min, self.workers.max
        if low is None and high is None:
            return None, None
        return 1 if low is None else low, self.most if high is None else high

    def bill(self) -> list[cost.Item]:
        """The cost of machines in Google Cloud, item by item."""
        if not isinstance(self.machines, ComputeSource):
            return []
        return compute.bill(self, self.machines)

    def conflicts(self, folder: Path) -> Iterator[Conflict]:
        """Settings that contradict each other or the lock."""
        names, machine = self.listed, self.data.machine
        if isinstance(self.machines, ExistingSource):
            yield from existing_conflicts(self.machines)
        yield from group_conflicts(self)
        yield from _cloud_conflicts(self)
        if machine and machine not in names:
            place = ("data", "machine")
            yield Conflict(place, unknown_machine(machine, names))

        yield from _bounds_conflicts(self)
        yield from _missing_conflicts(self)

        path, spill = self.data.path, self.workers.spill
        if is_below(path, spill) or is_below(spill, path):
            text = f"{spill} overlaps data.path, {path}; write a separate folder on the machine's own disk"
            yield Conflict(("workers", "spill"), text)

        if self.environment.source == "index" and self.machines.source == "local":
            place = ("environment", "source")
            text = "index is not possible with local machines, which cannot reach a package index; write wheelhouse"
            yield Conflict(place, text)

        if self.environment.python not in LOCAL_RELEASES and self.machines.source == "local":
            place = ("environment", "python")
            known = ", ".join(LOCAL_RELEASES)
            text = f"{self.environment.python} is not possible with local machines; write one of {known}"
            yield Conflict(place, text)

        if self.environment.system and self.machines.source == "local":
            place = ("environment", "system")
            text = "is not possible with local machines, which cannot reach a package index; remove it"
            yield Conflict(place, text)

        lists: dict[Place, tuple[str, ...]] = {("firewall", "ssh"): self.firewall.ssh}
        for index, opened in enumerate(self.firewall.open):
            lists["firewall", "open", index, "sources"] = opened.sources
        yield from world_conflicts(lists)
        yield from config_conflicts(self.dask.config, MACHINES_CONFIG)
        yield from _port_conflicts(self)
        yield from lock_conflicts(self.environment, folder)
        if self.jupyter.enabled:
            yield from jupyter_conflicts(self.environment, folder)


def _bounds_conflicts(cluster: MachinesTarget) -> Iterator[Conflict]:
    low, high = cluster.bounds
    if low is None or high is None:
        return
    place = ("workers", "min" if cluster.workers.max is None else "max")
    holder = cluster.data.machine or cluster.machines.scheduler_name
    if isinstance(cluster.machines, ComputeSource) and holder != cluster.machines.scheduler_name:
        text = f"{holder} stops with its workers if workers.min or workers.max is set; write scheduler, or remove them"
        yield Conflict(("data", "machine"), text)
    if high > cluster.most:
        outside = " outside of groups" if cluster.workers.groups else ""
        text = f"{high} is more than the {cluster.most} worker processes that the machines{outside} provide"
        remedy = f"write {cluster.most} or less, or add machines or workers.perMachine"
        yield Conflict(place, f"{text}; {remedy}")
    elif low > high:
        yield Conflict(("workers", "min"), f"{low} is more than the maximum, {high}; write {high} or less")


def _missing_conflicts(cluster: MachinesTarget) -> Iterator[Conflict]:
    least, missing, machines = cluster.workers.at_least, cluster.workers.missing, cluster.machines
    place: Place = ("workers", "atLeast")
    if least is None:
        if missing:
            yield Conflict(("workers", "missing"), "applies only with workers.atLeast; write it, or remove the list")
        return
    if isinstance(machines, LocalSource):
        yield Conflict(place, "is not possible with local machines, which can always be created; remove it")
        return
    if least > cluster.listed_processes:
        text = f"{least} is more than the {cluster.listed_processes} worker processes that the machines provide"
        yield Conflict(place, f"{text}; write {cluster.listed_processes} or less")
        return
    needed = {cluster.data.machine or machines.scheduler_name: "has the shared directory"}
    needed[machines.scheduler_name] = "runs the scheduler"
    for index, name in enumerate(missing):
        place = ("workers", "missing", index)
        if name not in cluster.listed:
            yield Conflict(place, unknown_machine(name, cluster.listed))
        elif name in missing[:index]:
            yield Conflict(place, f"{name} is already in the list; list each machine once")
        elif name in needed:
            yield Conflict(place, f"{name} {needed[name]}, so the cluster cannot do without it; remove it")
        elif isinstance(machines, ExistingSource):
            behind = [host.name for host in machines.hosts if host.bastion == name and host.name not in missing]
            if behind:
                yield Conflict(place, f"{name} is the bastion of {', '.join(behind)}; list them too, or remove it")
    if cluster.bounds != (None, None) and not cluster.groups[0].machines:
        yield Conflict(("workers", "missing"), "lists all machines outside of groups; remove one from the list")
    if cluster.processes < least:
        text = f"the other machines provide {cluster.processes} worker processes, but workers.atLeast is {least}"
        yield Conflict(("workers", "missing"), f"{text}; remove machines from the list")


def _cloud_conflicts(cluster: MachinesTarget) -> Iterator[Conflict]:
    """Settings that only work in Google Cloud, or that do not work there."""
    machines, limits = cluster.machines, cluster.limits
    place: Place
    if isinstance(machines, ComputeSource):
        yield from machines.conflicts(cluster.firewall.ssh, len(cluster.machine_names))
        yield from compute_conflicts(cluster, machines)
        yield from cost.conflicts(limits, cluster.bill(), cluster.prices, compute.priced(cluster, machines))
        yield from bucket_conflicts(cluster.data.buckets)
        return
    if cluster.data.buckets:
        place = ("data", "buckets")
        text = (
            "is only possible with machines.source: compute; remove it, and mount the bucket on the machines yourself,"
            " or pass credentials to the library that reads it (storage_options)"
        )
        yield Conflict(place, text)
    for name, limit in ("maxAge", limits.max_age), ("hourlyCost", limits.hourly_cost):
        if limit is not None:
            place = ("limits", name)
            yield Conflict(place, "applies only to machines in Google Cloud; remove it")
    if limits.idle and isinstance(machines, ExistingSource):
        place = ("limits", "idle")
        text = "would power off machines that this program cannot start again; remove it"
        yield Conflict(place, text)


def _port_conflicts(cluster: MachinesTarget) -> Iterator[Conflict]:
    ports, processes = cluster.dask.ports, cluster.most_per_machine
    block = range(ports.workers, ports.workers + 3 * processes)
    block_place = ("dask", "ports", "workers")
    need = f"{len(block)} ports, 3 per worker process on a machine"
    if block[-1] > 65535:
        text = f"{block[0]} is too high for {need}; write {65536 - len(block)} or less"
        yield Conflict(block_place, text)

    taken: list[tuple[Place, range]] = [
        (("dask", "ports", "scheduler"), range(ports.scheduler, ports.scheduler + 1)),
        (("dask", "ports", "dashboard"), range(ports.dashboard, ports.dashboard + 1)),
        (block_place, block),
    ]
    if cluster.jupyter.enabled:
        taken.append((("dask", "ports", "jupyter"), range(ports.jupyter, ports.jupyter + 1)))
    if isinstance(cluster.machines, ComputeSource) and cluster.bounds[1] is not None:
        taken.insert(0, (("machines", "workers"), POWER_PORTS[: cluster.machines.workers]))
    if isinstance(cluster.machines, ExistingSource) and cluster.machines.cluster_ssh_port != 22:
        ssh = cluster.machines.cluster_ssh_port
        place = ("machines", "sshPort") if cluster.machines.ssh_port else ("machines", "hosts", 0, "port")
        taken.insert(0, (place, range(ssh, ssh + 1)))
    for index, opened in enumerate(cluster.firewall.open):
        taken.append((("firewall", "open", index, "port"), range(opened.port, opened.port + 1)))
    for (first, one), (second, other) in itertools.combinations(taken, 2):
        if one[0] > other[-1] or other[0] > one[-1]:
            continue
        used = " to ".join(str(port) for port in sorted({other[0], other[-1]}))
        if first[0] == "firewall":
            remedy = "list all sources in one entry"
        elif first[0] == "machines" and second[0] == "firewall":
            remedy = "use firewall.ssh to allow SSH access"
        elif second[0] == "firewall":
            remedy = "remove it, and connect to Dask through an SSH tunnel"
        else:
            remedy = f"write the first of {need}" if second == block_place else "write another port"
        yield Conflict(second, f"{used} is already used by {dotted(first)[1:]}; {remedy}")
