"""Property tests: any stack file is rejected with readable errors, or gives valid, private values within its limit."""

import copy
import ipaddress
import json
from collections.abc import Iterable, Iterator
from typing import Any

import jsonschema
from hypothesis import HealthCheck, Phase, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import settings
from components.kubernetes import chart_values
from daskstack.engine import PROJECT
from settings import cost, lock, reference
from settings.common import KEY, Section, covers_the_world, valid_variable

SCHEMA = jsonschema.Draft7Validator(json.loads((PROJECT / "charts" / "dask" / "values.schema.json").read_text()))
EDITORS = jsonschema.Draft202012Validator(json.loads(reference.schema()))
LOCKS = {"environment": lock.read(PROJECT / "environment.lock", "3.11")}
NAMES = chart_values.Names("scheduler", "worker", "client", "password")
EXISTING = {"source": "existing", "kubeconfig": __file__}  # any existing file; it is not read
OFFICIAL = {"chart": "official", "environment": {"lock": "charts/official.lock", "python": "3.10"}}
GOOGLE = {"source": "gke", "project": "my-project", "location": "us-central1-a"}
MACHINES = {"source": "compute", "project": "my-project", "zone": "us-central1-a"}
HOSTS = [{"name": name, "address": f"10.1.0.{number}"} for number, name in enumerate(("head", "hand"), 5)]
STACKS: list[dict[str, Any]] = [
    {"target": "kubernetes", "cluster": EXISTING},
    {"target": "kubernetes", "cluster": GOOGLE, "limits": {"hourlyCost": 2}},
    {"target": "kubernetes", "cluster": EXISTING, **OFFICIAL},
    {"target": "machines", "machines": {"source": "local"}},
    {"target": "machines", "machines": {"source": "existing", "hosts": HOSTS}},
    {"target": "machines", "machines": MACHINES, "firewall": {"ssh": ["203.0.113.7/32"]}, "limits": {"hourlyCost": 1}},
]
WORLD = ["0.0.0.0/1", "128.0.0.0/1"]
NETWORKS = [["203.0.113.0/24"], ["0.0.0.0/0"], ["::/0"], WORLD, ["10.1.0.0/16", "2001:db8::/48"]]
ENCRYPTION = "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"
ANYTHING: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 6, 100, 0.3, 16.1, 1e308, float("inf"), float("nan"), 10**400),
    *("", "x", "yes", "2", "0.5 B", "9" * 400 + " GB", "64 GiB", "3Ti", "30m", "400d", "~nosuchuser/x", "\0"),
    *("é" * 300, "fe80::1%x\n", "roles/owner", "europe-west1-b", "2026-01-01", "/tmp/x", "/scratch", "10.1.0.0/24"),
    *("0.0.0.0/0", "203.0.113.7", "n1-standrad-4", "n1-highmem-96", "nvidia-tesla-t4", "official", "own", "3.10"),
    *([], [[]], [None], [{}], [1], ["x"], ["--tls-cert", "x"], ["--scheduler-file=x"], ["dask==2020.1.0"]),
    *([{"operator": "Exists"}], [{"name": "a"}], *NETWORKS, *({"sources": sources} for sources in NETWORKS)),
    *({"sources": NETWORKS[0], "internal": True}, {"type": "nvidia-tesla-t4"}, {"type": "nvidia-tesla-t4", "count": 4}),
    *({}, {"": "a"}, {"Team": "research"}, {"a": 1}, {"a": "b"}, {ENCRYPTION: "False"}, {"MY VAR": "x"}),
    *({"n1-standard-4": float("inf")}, {"n1-standard-4": 0.01}, {"default-scheme": "tcp"}),
    {"distributed": {"comm": {"require-encryption": False}}},
]


def places(section: type[Section], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places of all settings in a section."""
    for field in section.model_fields.values():
        here = (*place, str(field.alias))
        yield here
        for inner in settings.sections(field):
            yield from places(inner, here)


PLACES = {
    target: sorted(set(places(kind)))
    for target, kind in (("kubernetes", settings.KubernetesTarget), ("machines", settings.MachinesTarget))
}


@st.composite
def changed(draw: st.DrawFn) -> dict[str, Any]:
    """A valid stack with up to three changes, most of them invalid."""
    said = copy.deepcopy(draw(st.sampled_from(STACKS)))
    known = PLACES[said["target"]]  # a change can replace the target
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(known))
        section: Any = said
        for key in path:
            section = section.setdefault(key, {}) if isinstance(section, dict) else None
        assume(isinstance(section, dict))
        section[last] = copy.deepcopy(draw(st.sampled_from(ANYTHING)))
    return said


bounded = hypothesis_settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)


@bounded
@given(said=changed())
def test_any_stack_file_is_accepted_or_rejected_and_editors_agree(said: dict[str, Any]) -> None:
    try:
        settings.parse(said, PROJECT)
    except settings.SettingsError as error:
        problems = [problem.split(": ")[0] for problem in error.problems]
        assert len(problems) == len(set(problems)), "one place is told twice"
    else:
        EDITORS.validate({"config": {KEY: said}})


def some(**known: list[Any] | st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with some of these keys, each with one of its values."""
    return st.fixed_dictionaries(
        {}, optional={key: st.sampled_from(each) if isinstance(each, list) else each for key, each in known.items()}
    )


EXPOSED = some(sources=NETWORKS, internal=[True, True, False])
POOL = {"machine": ["n1-standard-4", "n1-highmem-8"], "maxNodes": [None, 3, 12, 100], "minNodes": [0, 5]}
GROUP = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b"])},
    optional={
        "replicas": st.integers(0, 9),
        "cpu": st.sampled_from([1, 3]),
        "resources": st.just({"GPU": 1}),
        "nodeSelector": st.just({"a": "b"}),
        "pool": some(**POOL, accelerators=[None, {"type": "nvidia-tesla-t4", "count": 2}], spot=[True, False]),
    },
)
GKE = some(
    cluster=some(
        workers=some(**POOL, accelerators=[None, {"type": "nvidia-tesla-t4", "count": 2}], spot=[True, False])
    ),
    workers=some(
        replicas=[1, 3, 12],
        min=[0, 5],
        max=[4, 12],
        cpu=[0.5, 3],
        memory=["1 GiB", "9 GiB"],
        groups=st.lists(GROUP, max_size=2),
    ),
    limits=some(hourlyCost=[0.9, 2, 4, 9], idle=["30m"]),
    expose=some(scheduler=EXPOSED, dashboard=EXPOSED, jupyter=EXPOSED),
    dask=some(tls=[True, False], env=[{"A": "b"}, {ENCRYPTION: "False"}], config=[{"a": 1}, {"default-scheme": "tcp"}]),
)
SERVICE = some(serviceType=["NodePort", "LoadBalancer"], sourceRanges=NETWORKS)
ENV = [[{"name": "A", "value": "b"}], [{"name": ENCRYPTION, "value": "False"}], [{"name": "DASK_CONFIG", "value": "/"}]]
# One invalid value at a time, because several could mask each other.
VALUES = st.one_of(
    st.sampled_from(["scheduler", "webUI", "jupyter"]).flatmap(lambda name: some(**{name: SERVICE})),
    some(worker=some(replicas=[1000], env=ENV, resources=[{"requests": {"cpu": 1}}], gracePeriod=[60])),
    some(scheduler=some(env=ENV, extraArgs=[["--protocol=tcp"]], serviceAnnotations=[{"a": "b"}, {"a": "0.0.0.0/0"}])),
    some(networkPolicy=some(sources=NETWORKS, egress=[{"to": [{"ipBlock": {"cidr": "::/0"}}]}, {"enabled": False}])),
    some(tls=some(scheduler=[""], worker=["mine"]), config=[{"distributed": {"comm": {"require-encryption": False}}}]),
    some(webUI=some(ingress=[{"enabled": True}]), jupyter=some(ingress=[{"enabled": True}], storage=[5, {"keep": 1}])),
    some(additional_worker_groups=[[{"name": "a"}], [{"name": "a", "replicas": 90}], [{"replica": 1}], [1], {}]),
    some(additional_worker_groups=st.lists(some(name=["a"], env=ENV, replicas=["2", 2]), max_size=1)),
)


@bounded
@given(where=st.sampled_from([GOOGLE, EXISTING]), said=GKE, given_values=st.just({}) | VALUES)
def test_accepted_settings_give_values_that_are_valid_private_and_within_the_cost_limit(
    where: dict[str, Any], said: dict[str, Any], given_values: dict[str, Any]
) -> None:
    pools = said.pop("cluster", {}) if where is GOOGLE else {}
    if where is EXISTING:
        said.get("limits", {}).pop("hourlyCost", None)
    try:
        cluster = settings.parse(
            {"target": "kubernetes", **said, "cluster": where | pools, "values": given_values}, PROJECT
        )
    except settings.SettingsError:
        return
    EDITORS.validate({"config": {KEY: {"target": "kubernetes", **said, "cluster": where | pools}}})
    closed(chart_values.own(cluster, NAMES, LOCKS, "uv==1", "r"))
    if isinstance(cluster.cluster, settings.GkeSource):
        within_limit(cluster)


def networks(texts: Iterable[str]) -> list[Any]:
    return [ipaddress.ip_network(text) for text in texts]


def closed(given: dict[str, Any]) -> None:
    """The chart's values match its schema, open nothing to the internet, and keep encryption enabled."""
    SCHEMA.validate(given)
    assert given["tls"] == {part: getattr(NAMES, part) for part in ("scheduler", "worker", "client")}
    assert not covers_the_world(networks(given["networkPolicy"].get("sources") or []))
    for name in ("scheduler", "webUI", "jupyter"):
        service = given.get(name, {})
        assert service.get("serviceType", "ClusterIP") in ("ClusterIP", "LoadBalancer")
        if service.get("serviceType") == "LoadBalancer":
            assert service["sourceRanges"] and not covers_the_world(networks(service["sourceRanges"]))
    assert not given.get("webUI", {}).get("ingress", {}).get("enabled")
    groups = given.get("additional_worker_groups") or []
    for section in (given["scheduler"], given["worker"], given["jupyter"], *groups):
        for variable in section.get("env") or []:
            valid_variable(variable["name"])


def within_limit(cluster: settings.KubernetesTarget) -> None:
    """A lower bound of the cost, from the machines alone."""
    system = cluster.cluster.system
    spent = system.node_limit * (cost.machine_price(system.machine, False, cluster.prices) or 0)
    for nodes, pool in ((nodes, nodes.pools[0].pool) for nodes in cluster.worker_nodes):
        spent += nodes.most * (cost.machine_price(pool.machine, pool.spot, cluster.prices) or 0)
        if pool.accelerators:
            each = cost.prices()["accelerators"][pool.accelerators.type] * (cost.prices()["spot"] if pool.spot else 1)
            spent += nodes.most * pool.accelerators.count * each
            assert nodes.replicas <= nodes.most * pool.accelerators.count
    assert spent <= (cluster.limits.hourly_cost or spent)
