"""What a stack with `target: machines` may say."""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from settings import cost
from settings.common import (
    OPEN_ARGUMENTS,
    OPEN_CONFIG,
    Conflict,
    Credentials,
    Environment,
    Listed,
    Networks,
    Numbered,
    Place,
    Prices,
    Section,
    config_conflicts,
    dotted,
    lock_conflicts,
    not_the_world,
    valid_argument,
    valid_memory,
)
from settings.compute import ComputeSource, MachineLimits, compute_conflicts
from settings.existing import ExistingSource, existing_conflicts, not_one_of
from settings.folders import NO_DATA, NO_SPILL, is_below, valid_folder, valid_mount_option

MINIMAL = {"target": "machines", "machines": {"source": "local", "workers": 2}}

# Checks of single values: each returns its argument or raises ValueError with the rest of a sentence.


def valid_port(lowest: int, port: int) -> int:
    if port == 22:
        raise ValueError("22 is SSH's own port; choose another, and list who may reach SSH in firewall.ssh")
    if not lowest <= port <= 65535:
        raise ValueError(f"{port} is not a port that can be used here; choose one from {lowest} to 65535")
    return port


ARGUMENTS = {
    "--(port|dashboard-address)": "use dask.ports",
    "--(worker|nanny)-port": "use dask.ports.workers",
    "--nthreads": "use workers.threads",
    "--nworkers": "use workers.perMachine",
    "--memory-limit": "use workers.memoryLimit",
    "--local-directory": "use workers.spill",
    "--protocol|--tls-.*": "use dask.tls",
    "--(contact-address|host|interface|listen-address|name|pid-file|scheduler-(file|port)|version)": "leave it out",
    **OPEN_ARGUMENTS,
}


CONFIG = {
    r"distributed\.comm\.(default-scheme|require-encryption|tls(\..*)?)": "use dask.tls",
    "temporary-directory": "use workers.spill",
    **OPEN_CONFIG,
}


Arguments = Annotated[tuple[Annotated[str, AfterValidator(partial(valid_argument, ARGUMENTS))], ...], Listed]
DaskPort = Annotated[int, AfterValidator(partial(valid_port, 1024))]
ARGUMENTS_EXAMPLE = [["--preload", "my.module"]]
OPEN_EXAMPLE = [[{"port": 9100, "sources": ["203.0.113.0/24"]}]]
DATA = "/srv/daskdata"
SPILL = "/var/lib/daskstack/spill"


class LocalSource(Numbered):
    """Machines on this computer."""

    source: Literal["local"] = Field(examples=["local"])
    """Machines on this computer, to try a cluster out."""


class Workers(Section):
    """Dask's worker processes; what is None is shared out among those of a machine."""

    per_machine: int = Field(1, ge=1, le=64)
    """Worker processes on each machine."""
    threads: int | None = Field(None, ge=1, examples=[2])
    """Threads of each process; by default the machine's processors divided by its processes."""
    memory_limit: Annotated[str, AfterValidator(valid_memory)] | None = Field(None, examples=["2 GiB"])
    """Memory of each process; by default the machine's memory divided by its processes."""
    spill: Annotated[str, AfterValidator(partial(valid_folder, NO_SPILL, SPILL))] = SPILL
    """A folder on the machine's own disk for data that does not fit into memory. Workers use a folder `daskstack` in
    it; nothing else there is touched.
    """


class Open(Section):
    """A TCP port that networks outside the cluster may reach on every machine."""

    port: Annotated[int, AfterValidator(partial(valid_port, 1))] = Field(examples=[9100])
    """The TCP port, on every machine."""
    sources: Networks = Field(min_length=1, examples=[["203.0.113.0/24"]])
    """The networks that may reach it; the whole world is refused."""


class Firewall(Section):
    """What reaches the machines from outside the cluster's own network; not `manage`d, it is only verified."""

    manage: bool = True
    """`false` leaves the machines' firewalls alone; `up` then says what they must let in."""
    close_others: bool = False
    """Also closes ports on which other services listen now."""
    ssh: Networks = Field((), examples=[["203.0.113.7/32"]])
    """Networks that may reach SSH, in addition to the cluster's own. On Google Cloud they reach the scheduler's machine
    only.
    """
    open: Annotated[tuple[Open, ...], Listed] = Field((), examples=OPEN_EXAMPLE)
    """Further ports to open. Not on Google Cloud."""
    metadata: bool = False
    """Lets tasks use the account that a cloud gives the machine. On Google Cloud, `machines.roles` decides."""


class Data(Section):
    """The directory that all machines share, and the machine whose disk it is on."""

    path: Annotated[str, AfterValidator(partial(valid_folder, NO_DATA, DATA))] = DATA
    """The shared directory, at the same path on every machine. On a disk of your own, use a folder below its mount."""
    machine: str | None = Field(None, examples=["scheduler"])
    """The machine on whose disk the files are; the scheduler's by default."""
    options: Annotated[tuple[Annotated[str, AfterValidator(valid_mount_option)], ...], Listed] = Field(
        (), examples=[["compression=no"]]
    )
    """Further sshfs options: those of caches, ciphers and compression."""
    delete: bool = False
    """`destroy` deletes the files in the shared directory too. Refused with `machines.dataDisk.name`, whose disk always
    stays.
    """


class MachineEnvironment(Environment):
    """Where `source` is missing, `completed` fills it in: existing machines have an index, local ones do not."""

    source: Literal["index", "wheelhouse"] | None = Field(None, examples=["wheelhouse"])
    """`wheelhouse`: your computer downloads the packages and sends them to the scheduler's machine once; the others
    take them from there. `index`: each machine uses its package index, and its own /etc/uv/uv.toml counts. By
    default `wheelhouse` for local machines, `index` for others.
    """


class Ports(Section):
    """`workers` is the first of a block: worker, nanny and dashboard of each process on a machine."""

    scheduler: DaskPort = 8786
    """The scheduler's port."""
    dashboard: DaskPort = 8787
    """The dashboard's port."""
    workers: DaskPort = 9000
    """The first of a block of ports: three for each worker process on a machine."""


class Dask(Section):
    """Dask's own settings; `config` is what a YAML file of Dask's would hold."""

    ports: Ports = Ports()
    """Ports of Dask's services, open to the cluster's machines only."""
    scheduler_args: Arguments = Field((), examples=ARGUMENTS_EXAMPLE)
    """Further arguments of `dask scheduler`."""
    worker_args: Arguments = Field((), examples=ARGUMENTS_EXAMPLE)
    """Further arguments of `dask worker`."""
    config: dict[str, Any] = Field({})
    """Dask configuration, as in Dask's own YAML files."""
    tls: bool = True
    """Mutual TLS between scheduler, workers and clients."""


class MachinesTarget(Section):
    """A cluster on machines that are reached over SSH."""

    target: Literal["machines"] = Field(examples=["machines"])
    """A cluster on machines that are reached over SSH."""
    machines: LocalSource | ExistingSource | ComputeSource = Field(
        discriminator="source", examples=[MINIMAL["machines"]]
    )
    """Where the machines come from."""
    workers: Workers = Workers()
    """Dask's worker processes."""
    firewall: Firewall = Firewall()
    """Who may reach the machines from outside the cluster's network."""
    data: Data = Data()
    """The directory that all machines share."""
    environment: MachineEnvironment = MachineEnvironment()
    """The Python packages of every process."""
    dask: Dask = Dask()
    """Dask's own settings."""
    credentials: Credentials = Credentials()
    """Keys and certificates."""
    limits: MachineLimits = MachineLimits()
    """When machines stop, and what the stack may cost."""
    prices: Prices = Field({}, examples=[{"n1-standard-4": 0.15}])
    """Your own prices in US dollars per hour, by name; list prices by default."""
    moves: Annotated[tuple[Literal["scheduler", "data"], ...], Listed] = Field((), examples=[["scheduler"]])
    """Allows the scheduler or the data to move to another machine on the next `up`; remove it afterwards."""

    def completed(self) -> "MachinesTarget":
        """With what follows from other settings filled in."""
        machine = self.data.machine or self.machines.scheduler_name
        source = self.environment.source or ("wheelhouse" if self.machines.source == "local" else "index")
        data = self.data.model_copy(update={"machine": machine})
        environment = self.environment.model_copy(update={"source": source})
        return self.model_copy(update={"data": data, "environment": environment})

    def bill(self) -> list[cost.Item]:
        """What machines in Google Cloud cost, part by part."""
        return self.machines.bill(self.limits, self.prices)

    def conflicts(self, folder: Path) -> Iterator[Conflict]:
        """Where settings contradict each other or the lock."""
        names, machine = self.machines.machine_names, self.data.machine
        if isinstance(self.machines, ExistingSource):
            yield from existing_conflicts(self.machines)
        yield from _cloud_conflicts(self)
        if machine and machine not in names:
            place = ("data", "machine")
            yield Conflict(place, f"{machine} {not_one_of(names)}")

        path, spill = self.data.path, self.workers.spill
        if is_below(path, spill) or is_below(spill, path):
            text = f"{spill} and data.path {path} overlap; spill to a folder apart, on the machine's own disk"
            yield Conflict(("workers", "spill"), text)

        if self.environment.source == "index" and self.machines.source == "local":
            place = ("environment", "source")
            text = "index cannot be used with local machines, which have no route to one; write wheelhouse"
            yield Conflict(place, text)

        lists: dict[Place, tuple[str, ...]] = {("firewall", "ssh"): self.firewall.ssh}
        for index, opened in enumerate(self.firewall.open):
            lists["firewall", "open", index, "sources"] = opened.sources
        yield from not_the_world(lists)
        yield from config_conflicts(self.dask.config, CONFIG)
        yield from _port_conflicts(self)
        yield from lock_conflicts(self.environment, folder)


def _cloud_conflicts(cluster: MachinesTarget) -> Iterator[Conflict]:
    """What concerns machines in Google Cloud, and what concerns no others."""
    machines, limits = cluster.machines, cluster.limits
    if isinstance(machines, ComputeSource):
        yield from machines.conflicts(cluster.firewall.ssh)
        yield from compute_conflicts(cluster, machines)
        yield from cost.conflicts(limits, cluster.bill(), cluster.prices, machines.priced())
        return
    for name, what in ("maxAge", limits.max_age), ("hourlyCost", limits.hourly_cost):
        if what is not None:
            place = ("limits", name)
            yield Conflict(place, "is for machines in Google Cloud alone; leave it out")
    if limits.idle and isinstance(machines, ExistingSource):
        place = ("limits", "idle")
        text = "would power off machines that nobody could start again from here; leave it out"
        yield Conflict(place, text)


def _port_conflicts(cluster: MachinesTarget) -> Iterator[Conflict]:
    ports, processes = cluster.dask.ports, cluster.workers.per_machine
    block = range(ports.workers, ports.workers + 3 * processes)
    block_place = ("dask", "ports", "workers")
    need = f"{len(block)} ports, 3 for each worker process on a machine"
    if block[-1] > 65535:
        text = f"{block[0]} is too high for {need}; choose {65536 - len(block)} or less"
        yield Conflict(block_place, text)

    taken: list[tuple[Place, range]] = [
        (("dask", "ports", "scheduler"), range(ports.scheduler, ports.scheduler + 1)),
        (("dask", "ports", "dashboard"), range(ports.dashboard, ports.dashboard + 1)),
        (block_place, block),
    ]
    if isinstance(cluster.machines, ExistingSource) and cluster.machines.inner_port != 22:
        ssh = cluster.machines.inner_port
        place = ("machines", "sshPort") if cluster.machines.ssh_port else ("machines", "hosts", 0, "port")
        taken.insert(0, (place, range(ssh, ssh + 1)))
    for index, opened in enumerate(cluster.firewall.open):
        taken.append((("firewall", "open", index, "port"), range(opened.port, opened.port + 1)))
    for (first, one), (second, other) in itertools.combinations(taken, 2):
        if one[0] > other[-1] or other[0] > one[-1]:
            continue
        used = " to ".join(str(port) for port in sorted({other[0], other[-1]}))
        if first[0] == "firewall":
            remedy = "put all its sources into one entry"
        elif first[0] == "machines" and second[0] == "firewall":
            remedy = "list who may reach SSH in firewall.ssh"
        elif second[0] == "firewall":
            remedy = "leave it closed, and reach Dask through an SSH tunnel"
        else:
            remedy = f"choose another for {need}" if second == block_place else "choose another"
        yield Conflict(second, f"{used} is taken by {dotted(first)[1:]} already; {remedy}")
