"""What a stack with `target: kubernetes` may say."""

import difflib
import ipaddress
import json
import re
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from pydantic import AfterValidator, BeforeValidator, Field

from settings import cost, lock
from settings.common import (
    OPEN_ARGUMENTS,
    OPEN_CONFIG,
    Conflict,
    Credentials,
    Environment,
    Limits,
    Listed,
    Networks,
    Place,
    Prices,
    Section,
    config_conflicts,
    is_world,
    lock_conflicts,
    memory,
    not_the_world,
    shown,
    valid_amount,
    valid_argument,
    valid_memory,
    valid_network,
    valid_variable,
)
from settings.gke import GkeSource, Pool

JUPYTER_LOCK = "charts/jupyter.lock"  # Jupyter's own packages, beside environment.lock's
CHARTS = Path(__file__).parents[1] / "charts"
# The official chart starts `dask-scheduler` and `dask-worker`, which distributed does not have any more from here on.
WITHOUT_COMMANDS = Version("2026.6.0")


def valid_cpu(found: float) -> float:
    # Kubernetes counts in thousandths; 16.1 * 1000 is not quite 16100.
    if not 0.001 <= found <= 10_000 or abs(round(found * 1000) - found * 1000) > 1e-6:
        raise ValueError(f"{found} is not a number of processors; write e.g. 1 or 0.5")
    return found


Cpu = Annotated[float, BeforeValidator(valid_amount), Field(strict=False), AfterValidator(valid_cpu)]


def valid_label(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError(f"{text!r} cannot be a name in Kubernetes; use up to 63 of a-z, 0-9 and -, e.g. dask")
    return text


def valid_size(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,4}[MGT]i", text):
        raise ValueError(f"{text!r} is not a volume's size; write e.g. 10Gi")
    return text


def valid_image(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._/:-]*(:[\w][\w.-]*|@sha256:[0-9a-f]{64})", text):
        raise ValueError(f"{text!r} is not an image with its tag; write e.g. ghcr.io/me/dask:1.4")
    return text


def valid_requirement(text: str) -> str:
    try:
        Requirement(text)
    except InvalidRequirement:
        raise ValueError(f"{text!r} is not a requirement; write e.g. dask-ml or dask-ml==2025.1.0") from None
    return text


def valid_package(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+._:=<>~-]*", text):
        raise ValueError(f"{text!r} is not a package's name; write e.g. libgomp1")
    return text


class KubeconfigSource(Section):
    """A Kubernetes that is there already, found as kubectl finds it."""

    source: Literal["existing"] = Field(examples=["existing"])
    """A Kubernetes that exists, found as kubectl finds it."""
    kubeconfig: str = "~/.kube/config"
    """The kubeconfig file."""
    context: str | None = Field(None, examples=["kind-kind"])
    """Its context; by default the one that is current at the first `up`."""

    @property
    def path(self) -> Path:
        return Path(self.kubeconfig).expanduser().absolute()

    @property
    def current(self) -> str:
        """The context that kubectl would choose now, empty where there is none."""
        try:
            found = yaml.safe_load(self.path.read_text())["current-context"]
        except (OSError, TypeError, KeyError, ValueError, yaml.YAMLError):
            return ""
        return found if isinstance(found, str) else ""

    @property
    def is_there(self) -> bool:
        try:
            return self.path.is_file()
        except (OSError, RuntimeError):  # a name that is too long, or the home of a user who does not exist
            return False


class Pod(Section):
    """A kind of pod. `cpu` is in processors that it is sure to get; `memory` is its limit, too."""

    cpu: Cpu = Field(1.0, examples=[0.5])
    """Processors that the pod is sure to get."""
    memory: Annotated[str, AfterValidator(valid_memory)] = "2 GiB"
    """Memory that the pod is sure to get, and its limit."""
    node_selector: dict[str, str] = Field({})
    """Labels of the nodes on which it runs."""
    tolerations: Annotated[tuple[dict[str, Any], ...], Listed] = Field((), examples=[[{"operator": "Exists"}]])
    """Taints that it tolerates."""
    service_account: Annotated[str, AfterValidator(valid_label)] | None = Field(None, examples=["dask"])
    """The ServiceAccount that it runs as. Its pods may reach the metadata server, which gives them that account's
    rights.
    """


class Scheduler(Pod):
    cpu: Cpu = 0.5
    """Processors that the pod is sure to get."""


class KubernetesWorkers(Pod):
    """`replicas` pods with one worker process each."""

    replicas: int = Field(3, ge=0, le=1000)
    """Pods with one worker process each."""
    threads: int | None = Field(None, ge=1, examples=[2])
    """Threads of each process; its processors by default."""
    grace_period: int = Field(120, ge=30, le=3600)
    """Seconds to hand over tasks and results before a pod stops."""

    @property
    def threads_each(self) -> int:
        """Of each process; as many as it has processors where it is not said."""
        return self.threads or max(1, int(self.cpu))


class Jupyter(Pod):
    """A notebook server beside the cluster; `keep` leaves its volume when the stack is destroyed."""

    enabled: bool = True
    """Whether there is a notebook server."""
    cpu: Cpu = 0.5
    """Processors that the pod is sure to get."""
    storage: Annotated[str, AfterValidator(valid_size)] = "10Gi"
    """Size of the notebooks' volume."""
    keep: bool = False
    """`destroy` keeps the volume. The namespace must then be your own."""


class Packages(Section):
    """What scheduler, workers and Jupyter have beside the lock, which these cannot change."""

    pip: Annotated[tuple[Annotated[str, AfterValidator(valid_requirement)], ...], Listed] = Field(
        (), examples=[["dask-ml"]]
    )
    """Packages in addition to the lock, which they cannot change; the same in all pods."""
    conda: Annotated[tuple[Annotated[str, AfterValidator(valid_package)], ...], Listed] = Field(
        (), examples=[["lightgbm"]]
    )
    """Conda packages. Official chart only."""
    apt: Annotated[tuple[Annotated[str, AfterValidator(valid_package)], ...], Listed] = Field(
        (), examples=[["libgomp1"]]
    )
    """System packages. Official chart only."""


class Exposure(Section):
    """A load balancer, for these networks alone; `internal`: without an address on the internet.

    What is not encrypted has to be internal.
    """

    sources: Networks = Field(min_length=1, examples=[["203.0.113.0/24"]])
    """The networks that may reach it; the whole world is refused."""
    internal: bool = False
    """The load balancer has no address on the internet. Required for what is not encrypted: the dashboard and Jupyter.
    """


class Expose(Section):
    """What can be reached without a port-forward."""

    scheduler: Exposure | None = Field(None, examples=[{"sources": ["203.0.113.0/24"]}])
    """A load balancer for the scheduler."""
    dashboard: Exposure | None = Field(None, examples=[{"sources": ["203.0.113.0/24"]}])
    """A load balancer for the dashboard."""
    jupyter: Exposure | None = Field(None, examples=[{"sources": ["203.0.113.0/24"]}])
    """A load balancer for the notebook server."""


class Namespace(Section):
    """Where the release is; without a name `dask-<stack>`. One that is there already is used with `create: false`."""

    name: Annotated[str, AfterValidator(valid_label)] | None = Field(None, examples=["dask"])
    """The namespace; `dask-<stack>` by default."""
    create: bool = True
    """`false` uses a namespace that exists, and leaves it there."""


ARGUMENTS = {
    "--nthreads": "use workers.threads",
    "--memory-limit": "use workers.memory",
    "--protocol|--tls-.*": "use dask.tls",
    "--(port|dashboard-address|contact-address|host|interface|listen-address|local-directory|name|nworkers|pid-file"
    "|scheduler-(file|port)|version)": "leave it out",
    **OPEN_ARGUMENTS,
}
Arguments = Annotated[tuple[Annotated[str, AfterValidator(partial(valid_argument, ARGUMENTS))], ...], Listed]


class KubernetesDask(Section):
    """Dask's own settings; `config` is what a YAML file of Dask's would hold."""

    scheduler_args: Arguments = Field((), examples=[["--preload", "my.module"]])
    """Further arguments of `dask scheduler`."""
    worker_args: Arguments = Field((), examples=[["--preload", "my.module"]])
    """Further arguments of `dask worker`."""
    config: dict[str, Any] = Field({})
    """Dask configuration, as in Dask's own YAML files."""
    env: dict[Annotated[str, AfterValidator(valid_variable)], str] = Field({}, examples=[{"OMP_NUM_THREADS": "1"}])
    """Environment variables of scheduler, workers and notebooks."""
    tls: bool = True
    """Mutual TLS between scheduler, workers and clients. The official chart has none."""


CONFIG = {r"(distributed\.comm\.)?(default-scheme|require-encryption|tls(\..*)?)": "use dask.tls", **OPEN_CONFIG}


class KubernetesTarget(Section):
    """A cluster in Kubernetes, from a Helm release."""

    target: Literal["kubernetes"] = Field(examples=["kubernetes"])
    """A cluster in Kubernetes, from a Helm release."""
    cluster: KubeconfigSource | GkeSource = Field(discriminator="source", examples=[{"source": "existing"}])
    """Which Kubernetes."""
    namespace: Namespace = Namespace()
    """Where the release is installed."""
    chart: Literal["own", "official"] = "own"
    """`own`: this project's chart; `official`: `dask/dask` from https://helm.dask.org, which cannot run Dask 2026.6 or
    newer.
    """
    image: Annotated[str, AfterValidator(valid_image)] | None = Field(None, examples=["ghcr.io/me/dask:1.4"])
    """An image, with its tag, that has the environment already. By default a slim Python image that installs the lock
    at start.
    """
    environment: Environment = Environment()
    """The Python packages of every process."""
    packages: Packages = Packages()
    """Packages in addition to the lock."""
    scheduler: Scheduler = Scheduler()
    """The scheduler's pod."""
    workers: KubernetesWorkers = KubernetesWorkers()
    """The workers' pods."""
    jupyter: Jupyter = Jupyter()
    """The notebook server's pod."""
    expose: Expose = Expose()
    """What can be reached without a port-forward."""
    egress: Networks = Field((), examples=[["10.2.0.0/24"]])
    """Private networks that pods may reach besides the internet, such as a package index's."""
    dask: KubernetesDask = KubernetesDask()
    """Dask's own settings."""
    credentials: Credentials = Credentials()
    """Keys and certificates."""
    limits: Limits = Limits()
    """When workers stop, and what the stack may cost."""
    prices: Prices = Field({}, examples=[{"n1-standard-4": 0.15}])
    """Your own prices in US dollars per hour, by name; list prices by default."""
    values: dict[str, Any] = Field({})
    """Further values of the chart, merged last. They are checked against its schema, and refused where they contradict
    a setting.
    """
    wait: int = Field(600, ge=30, le=7200)
    """Seconds for all pods to become ready."""

    def completed(self) -> "KubernetesTarget":
        """The official chart has no TLS, which `conflicts` refuses where it is asked for."""
        if self.chart == "own":
            return self
        return self.model_copy(update={"dask": self.dask.model_copy(update={"tls": False})})

    @property
    def replicas(self) -> int:
        """Workers of all groups."""
        groups = self.values.get("additional_worker_groups") or []
        # A group without a number has as many as the workers.
        return self.workers.replicas + sum(group.get("replicas", self.workers.replicas) for group in groups)

    @property
    def nodes(self) -> int | None:
        """Nodes that the workers fill on a cluster of the stack's own, None where a node is too small for one."""
        pool, gib = self.cluster.workers, memory(self.workers.memory) / 2**30
        gpus = pool.accelerators.count if pool.accelerators else None
        return cost.nodes(self.replicas, self.workers.cpu, gib, cost.machine(pool.machine), gpus)

    @property
    def most_nodes(self) -> int:
        """Where it is not said, one for each worker, and one more while they are replaced."""
        return self.cluster.workers.max_nodes or max(self.replicas + 1, self.cluster.workers.min_nodes)

    def bill(self) -> list[cost.Item]:
        """What a cluster of the stack's own costs, part by part."""
        pool, system, others = self.cluster.workers, self.cluster.system, cost.prices()["others"] | self.prices
        up = min(max(self.nodes or 0, pool.min_nodes), self.most_nodes)
        idle = pool.min_nodes if self.limits.idle else up
        most = system.most + self.most_nodes
        items = [
            cost.Item("the cluster's fee", others["cluster"], others["cluster"]),
            *cost.pool("scheduler and Jupyter", system, 1, 1, self.prices, most=system.most),
            *cost.pool("workers", pool, up, idle, self.prices, most=self.most_nodes),
        ]
        if self.jupyter.enabled:
            volume = memory(self.jupyter.storage) / 2**30 * others["pd-balanced"] / cost.HOURS
            items.append(cost.Item(f"{self.jupyter.storage} for notebooks", volume, volume))
        if self.cluster.hardening.private_nodes and not self.cluster.network:
            way_out = [others["address"] + others["nat"] * count for count in (1 + up, 1 + idle, most)]
            items.append(cost.Item("the nodes' way out, Cloud NAT", *way_out))
        if balancers := sum(getattr(self.expose, name) is not None for name in Expose.model_fields):
            price = balancers * others["loadBalancer"]
            items.append(cost.Item(f"{balancers} load balancers", price, price))
        return items

    def conflicts(self, folder: Path) -> Iterator[Conflict]:
        """Where settings contradict each other, the lock or the chart."""
        place: Place
        values = list(_value_conflicts(self))
        yield from values
        if isinstance(self.cluster, GkeSource):
            yield from self.cluster.conflicts()
            if not values:  # they have workers, too
                yield from _cost_conflicts(self)
        elif not self.cluster.is_there:
            place = ("cluster", "kubeconfig")
            text = f"{self.cluster.kubeconfig} is not a file; write the one that kubectl uses, e.g. ~/.kube/config"
            yield Conflict(place, text)
        exposures = {name: getattr(self.expose, name) for name in Expose.model_fields}
        yield from not_the_world({("expose", n, "sources"): each.sources for n, each in exposures.items() if each})
        if self.expose.jupyter and not self.jupyter.enabled:
            place = ("expose", "jupyter")
            yield Conflict(place, "there is no Jupyter; set jupyter.enabled: true")
        if self.jupyter.keep and self.namespace.create:
            place = ("jupyter", "keep")
            text = (
                "the volume would go with its namespace, which this stack makes and removes; make one yourself, and"
                " write its name with namespace.create: false"
            )
            yield Conflict(place, text)
        yield from _exposure_conflicts(self)
        yield from config_conflicts(self.dask.config, CONFIG)
        yield from lock_conflicts(self.environment, folder)
        yield from _package_conflicts(self, folder)
        if self.chart == "official":
            yield from _official_conflicts(self, folder)
        else:
            yield from _own_conflicts(self, folder)


def _cost_conflicts(cluster: KubernetesTarget) -> Iterator[Conflict]:
    """Machines that there are not, or that are too small or too few, prices of what there is not, and the limit."""
    wrong = []
    for name in ("system", "workers"):
        wrong += cost.machine_conflicts(("cluster", name), getattr(cluster.cluster, name), cluster.prices)
    yield from wrong
    pods: list[tuple[str, Pod, Pool]] = [("scheduler", cluster.scheduler, cluster.cluster.system)]
    if cluster.jupyter.enabled:
        pods.append(("jupyter", cluster.jupyter, cluster.cluster.system))
    pods.append(("workers", cluster.workers, cluster.cluster.workers))
    for name, pod, pool in pods:
        size = cost.machine(pool.machine)
        if cost.nodes(1, pod.cpu, memory(pod.memory) / 2**30, size) is None:
            place: Place = (name,)
            machine = ("cluster", "workers" if name == "workers" else "system", "machine")
            cpus, gib = cost.allocatable(size)
            text = (
                f"one of {pod.cpu:g} processors and {pod.memory} does not fit on a {pool.machine}, which has"
                f" {max(cpus, 0):.1f} and {max(gib, 0):.1f} GiB for it; write less, or a larger {'.'.join(machine)}"
            )
            wrong.append(text)
            yield Conflict(place, text)
    if wrong:
        return
    pool = cluster.cluster.workers
    if cluster.nodes > cluster.most_nodes:
        place = ("cluster", "workers", "maxNodes")
        text = (
            f"{cluster.most_nodes} nodes have no room for {cluster.replicas} workers, which need {cluster.nodes}; write"
            f" at least {cluster.nodes}, or fewer workers.replicas"
        )
        yield Conflict(place, text)
    yield from _range_conflicts(cluster)
    machines = {cluster.cluster.system.machine, pool.machine}
    if pool.accelerators:
        machines.add(pool.accelerators.type)
    yield from cost.conflicts(cluster.limits, cluster.bill(), cluster.prices, machines)


def _range_conflicts(cluster: KubernetesTarget) -> Iterator[Conflict]:
    """Ranges of addresses that are too small for the nodes that the cluster may have."""
    google = cluster.cluster
    if google.network:
        return
    nodes = google.system.most + cluster.most_nodes
    # Google keeps four addresses of each subnetwork to itself.
    for name, needed in ("nodes", nodes + 4), ("pods", nodes * 256), ("services", 16):
        network = ipaddress.ip_network(getattr(google.ranges, name))
        if network.num_addresses < needed:
            place = ("cluster", "ranges", name)
            shortest = 32 - (needed - 1).bit_length()
            text = f"{network} is too small for {nodes} nodes, write a /{shortest} or larger, e.g. 10.64.0.0/{shortest}"
            yield Conflict(place, text)


def _own_conflicts(cluster: KubernetesTarget, folder: Path) -> Iterator[Conflict]:
    for kind in ("conda", "apt"):
        if getattr(cluster.packages, kind):
            place = ("packages", kind)
            text = (
                f"our chart's pods are not root, so {kind} cannot install anything in them; put it into an image of"
                " your own and name that as image, or write chart: official"
            )
            yield Conflict(place, text)
    if cluster.image and cluster.packages.pip:
        place = ("packages", "pip")
        text = "nothing is installed in pods of an image of your own; put these packages into it, or leave image out"
        yield Conflict(place, text)
    if cluster.jupyter.enabled and not cluster.image:
        try:
            here = lock.read(folder / cluster.environment.lock, cluster.environment.python).packages
        except lock.LockError:
            return  # reported already
        try:
            jupyter = lock.read(folder / JUPYTER_LOCK, cluster.environment.python, dask=False).packages
        except lock.LockError as error:
            for setting, text in error.problems:
                place = ("environment", setting)
                yield Conflict(place, f"{text}; or write jupyter: {{enabled: false}}")
            return
        if other := [name for name in jupyter if here.get(name, jupyter[name]) != jupyter[name]]:
            place = ("environment", "lock")
            text = f"{cluster.environment.lock} and {JUPYTER_LOCK} pin other versions of {', '.join(other)}; make lock"
            yield Conflict(place, text)


def _official_conflicts(cluster: KubernetesTarget, folder: Path) -> Iterator[Conflict]:
    """What the official chart cannot do."""

    def refuse(place: Place, what: str) -> Conflict:
        return Conflict(place, f"the official chart has no {what}; write chart: own, or leave it out")

    for name in ("dashboard", "jupyter"):
        if getattr(cluster.expose, name):
            yield refuse(("expose", name), "source ranges for it")
    if "tls" in cluster.dask.model_fields_set and cluster.dask.tls:
        yield refuse(("dask", "tls"), "TLS of its own")
    if cluster.jupyter.keep:
        yield refuse(("jupyter", "keep"), "volume for notebooks")
    if cluster.limits.idle:
        yield refuse(("limits", "idle"), "way to let workers go")
    if cluster.egress:
        yield refuse(("egress",), "network policies")
    try:
        dask = lock.read(folder / cluster.environment.lock, cluster.environment.python).packages["dask"]
    except lock.LockError:
        return
    if Version(dask) >= WITHOUT_COMMANDS:
        place = ("environment", "lock")
        text = (
            f"has dask {dask}, and the official chart starts commands that Dask {WITHOUT_COMMANDS} dropped; write"
            ' chart: own, or a lock with an older Dask, such as charts/official.lock with python: "3.10"'
        )
        yield Conflict(place, text)


def _exposure_conflicts(cluster: KubernetesTarget) -> Iterator[Conflict]:
    """What is not encrypted must not cross the internet; and no pod may get to a metadata server by its network."""
    reasons = {
        "dashboard": "has neither a login nor TLS",
        "jupyter": "has no TLS, so its password would cross the internet as text",
        **({} if cluster.completed().dask.tls else {"scheduler": "has no TLS, so whoever listens can run code"}),
    }
    for name, reason in reasons.items():
        exposure = getattr(cluster.expose, name)
        if exposure and not exposure.internal:
            place: Place = ("expose", name)
            other = ", or values.jupyter.ingress with tls: true" if name == "jupyter" else ""
            remedy = "write internal: true, or leave it out and use a port-forward (`daskstack.connect`)"
            text = f"{reason}; {remedy}{other}"
            yield Conflict(place, text)
    for index, network in enumerate(cluster.egress):
        if ipaddress.ip_network(network).overlaps(LINK_LOCAL[6 if ":" in network else 4]):
            place = ("egress", index)
            text = f"{network} has the metadata servers of clouds in it; leave it out: a serviceAccount opens the way"
            yield Conflict(place, text)


LINK_LOCAL = {4: ipaddress.ip_network("169.254.0.0/16"), 6: ipaddress.ip_network("fe80::/10")}


def _package_conflicts(cluster: KubernetesTarget, folder: Path) -> Iterator[Conflict]:
    """Packages that contradict the lock, or that the official chart would take for several."""
    try:
        locked = lock.read(folder / cluster.environment.lock, cluster.environment.python).packages
    except lock.LockError:
        locked = {}  # reported already
    for index, text in enumerate(cluster.packages.pip):
        wanted, place = Requirement(text), ("packages", "pip", index)
        version = locked.get(canonicalize_name(wanted.name))
        if version and not wanted.specifier.contains(version, prereleases=True):
            text = f"{text} contradicts {cluster.environment.lock}, which pins {version}; change the lock, or this"
            yield Conflict(place, text)
        elif cluster.chart == "official" and re.search(r"\s", text):
            text = f"{text!r} has a blank, and the official chart takes it for several packages; write it without"
            yield Conflict(place, text)


# What a stack says elsewhere, or what the check and `daskstack.connect` rely on. Patterns of values' places.
VALUES = {
    r"tls|restart|secretEnv|environment\.(lock|uv)|jupyter\.(lock|passwordSecret)": "leave it out",
    r"config": "use dask.config",
    r"idleTimeout": "use limits.idle",
    r"(full)?nameOverride|(scheduler|webUI|worker|jupyter)\.(name|servicePort)": "leave it out",
    r"scheduler\.(enabled|replicas)": "leave it out",
    r"(worker|additional_worker_groups\.\d+)\.custom_scheduler_url": "leave it out",
    r"environment\.extra": "use packages.pip",
    r"worker\.replicas": "use workers.replicas",
    r"jupyter\.enabled": "use jupyter.enabled",
    r"jupyter\.storage\.(size|keep)": "use jupyter.storage and jupyter.keep",
    r"scheduler\.extraArgs": "use dask.schedulerArgs",
    r"worker\.extraArgs": "use dask.workerArgs",
    r"scheduler\.(serviceType|sourceRanges)": "use expose.scheduler",
    r"webUI\.(serviceType|sourceRanges)": "use expose.dashboard",
    r"jupyter\.(serviceType|sourceRanges)": "use expose.jupyter",
    r"webUI\.ingress\.enabled": "the dashboard has no login, so use expose.dashboard or a port-forward",
}


def _value_conflicts(cluster: KubernetesTarget) -> Iterator[Conflict]:
    """`values` that the chart does not know, or that would get round the settings."""
    unknown = list(unknown_values(cluster.values, default_values(cluster.chart), ("values",)))
    yield from unknown
    wrong = list(_schema_conflicts(cluster.values, cluster.chart))
    yield from wrong
    if unknown or wrong:
        return
    for place, value in _places(cluster.values):
        here = ("values", *place)
        name = ".".join(map(str, place))
        for pattern, remedy in VALUES.items():
            if re.fullmatch(pattern, name):
                yield Conflict(here, f"is set by the cluster; {remedy}")
        for problem in _value_problems(place, value):
            yield Conflict(here, problem)
    ingress = cluster.values.get("jupyter", {}).get("ingress") or {}
    if ingress.get("enabled") and not ingress.get("tls"):
        place = ("values", "jupyter", "ingress")
        yield Conflict(place, "has no TLS, so the password would cross the network as text; write tls: true with it")


def _value_problems(place: Place, value: Any) -> Iterator[str]:
    """What no value may do: open something to the world, change how Dask encrypts, or take Jupyter's login away."""
    if isinstance(value, str) and place[:2] != ("networkPolicy", "sources"):
        try:
            for word in re.split(r"[\s,;]+", value):
                if re.fullmatch(r"[0-9.]+/\d+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*/\d+", word):
                    valid_network(word)
        except ValueError as error:
            yield str(error)
        login = re.search(r"password|token|allow_unauthenticated|identity_?provider", value, re.IGNORECASE)
        if login and place[0] == "jupyter" and place[1] in ("command", "args", "extraConfig"):
            yield "is about Jupyter's login, which the cluster sets; use the secret dask:jupyterPassword"
    match place:
        case (*_, "env", int(), "name"):
            try:
                valid_variable(value)
            except ValueError as error:
                yield str(error)
        case ("additional_worker_groups", int(), "extraArgs", int()):
            try:
                valid_argument(ARGUMENTS, value)
            except ValueError as error:
                yield str(error)
        case ("networkPolicy", "sources"):
            try:
                world = is_world([ipaddress.ip_network(valid_network(each)) for each in value or ()])
            except ValueError as error:
                yield str(error)
            else:
                if world:
                    yield "these cover half of the world or more together; name only the networks that need it"


def _places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Everything in `value`, with its place."""
    if place:
        yield place, value
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(inner, (*place, key))


def _schema_conflicts(values: dict[str, Any], chart: str) -> Iterator[Conflict]:
    """Values of wrong types; keys that are not known are not judged here. The official chart has no schema."""
    import jsonschema  # takes a tenth of a second

    schema = json.loads((CHARTS / "dask" / "values.schema.json").read_text())
    if chart == "official":
        schema = {"type": "object", "properties": {key: schema["properties"][key] for key in OFFICIAL_CHECKED}}
    for error in jsonschema.Draft7Validator(schema).iter_errors(values):
        if error.validator != "additionalProperties":
            here = ("values", *error.absolute_path)
            yield Conflict(here, f"{shown(error.instance)} is not what the chart takes here: {error.message}")


def unknown_values(values: dict[str, Any], known: dict[str, Any], place: Place) -> Iterator[Conflict]:
    """Keys that a chart does not know; `known` has those that it does, at `place`."""
    for key, value in values.items():
        here = (*place, key)
        if key not in known:
            nearest = difflib.get_close_matches(key, known, 1, 0.4)
            hint = f"did you mean {nearest[0]}?" if nearest else f"the keys here are {', '.join(known)}"
            yield Conflict(here, f"is not a key of the chart; {hint}")
        elif key == "additional_worker_groups" and isinstance(value, list):
            for index, group in enumerate(value):
                if isinstance(group, dict):
                    yield from unknown_values(group, known["worker"], (*here, index))
        elif isinstance(value, dict) and isinstance(known[key], dict) and key not in FREE:
            yield from unknown_values(value, known[key], here)


# Of the official chart's values, those that ours takes in the same form.
OFFICIAL_CHECKED = ("additional_worker_groups", "worker")

# Objects of Kubernetes' own in a chart's values: the API server knows what is in them.
FREE = {
    "affinity", "annotations", "config", "disruptionBudget", "livenessProbe", "nodeSelector", "podSecurityContext",
    "readinessProbe", "resources", "securityContext", "serviceAnnotations", "startupProbe", "strategy",
}  # fmt: skip


@cache
def default_values(chart: str) -> dict[str, Any]:
    """Every key that a chart knows, with its default; not to be changed."""
    if chart == "own":
        return yaml.safe_load((CHARTS / "dask" / "values.yaml").read_text())
    return json.loads((CHARTS / "official.json").read_text())
