"""The rehearsals' node: its pods, its network, its cleanup, and the validation of its API server.

The chart's manifests and the stand-in for Google Cloud are also tested here, because one Kubernetes serves all tests.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import settings
from components.gke import node_pools
from components.kubernetes import chart_values
from daskstack.engine import PROJECT
from on_this_computer import check_release
from rehearsal.kubernetes import components, network, pki
from rehearsal.kubernetes import node as node_files
from rehearsal.programs import kubernetes_programs
from settings import lock
from tests import private_index
from tests.kubernetes.chart import CHART, LOCKS, NAMES, rendered
from tests.kubernetes.support import FORBIDDEN, RESTRICTED, Cluster, control_groups, pod, server, until

sys.path.append(str(PROJECT / "rehearsal" / "plugins"))  # from where plugins import each other

from gcp import cloud, node
from gcp.kinds import CLUSTER, POOL


def service(name: str, app: str, **spec) -> dict:
    spec = {"selector": {"app": app}, "ports": [{"port": 80, "targetPort": 8000}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def ended(cluster: Cluster, name: str, namespace: str = "default") -> str:
    """The output of a pod that succeeded."""
    there = ("--namespace", namespace)
    cluster.kubectl("wait", *there, "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=60s")
    return cluster.kubectl("logs", *there, name)


def answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(url, timeout=2).status == 200
    except OSError:
        return False


def test_a_pod_of_the_python_image_runs_and_prints(kubernetes: Cluster) -> None:
    kubernetes.apply(pod("hello", "python3", "-c", "import sys; print('Python', sys.version.split('.')[1])"))
    assert ended(kubernetes, "hello") == "Python 11\n"


def test_a_pod_is_reachable_through_its_service_even_from_itself(kubernetes: Cluster) -> None:
    kubernetes.apply(server("own"), service("web", "own"))
    kubernetes.kubectl("wait", "--for=condition=Ready", "pod/own", "--timeout=60s")
    fetch = "import urllib.request as u; print(u.urlopen('http://web.default.svc.cluster.local', timeout=2).status)"

    def found() -> bool:
        try:
            return kubernetes.kubectl("exec", "own", "--", "python", "-c", fetch) == "200\n"
        except subprocess.CalledProcessError:  # the node's rules are updated shortly after
            return False

    until(found)


def test_pods_install_wheels_from_the_node_and_cannot_reach_the_outside(kubernetes: Cluster) -> None:
    script = """
        set -e
        pip install --quiet --root-user-action=ignore uv
        uv pip install --quiet --target /tmp/packages dask
        PYTHONPATH=/tmp/packages python -c 'import dask; print("installed")'
        ! timeout 5 python -c 'import socket; socket.create_connection(("192.0.2.1", 443))' 2>/tmp/said
        grep --only-matching 'Network is unreachable' /tmp/said
    """
    kubernetes.apply(pod("installer", "bash", "-c", script))
    assert ended(kubernetes, "installer") == "installed\nNetwork is unreachable\n"


def test_a_claim_gets_a_volume_that_is_deleted_with_it(kubernetes: Cluster) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": spec}
    mounted = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    mounted["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    kubernetes.apply(claim, pod("writer", "touch", "/data/written", **mounted))
    ended(kubernetes, "writer")
    name = kubernetes.kubectl("get", "pvc/data", "--output=jsonpath={.spec.volumeName}")
    volume = kubernetes.directory / "volumes" / name
    assert [path.name for path in volume.iterdir()] == ["written"]

    kubernetes.kubectl("delete", "pod/writer", "pvc/data")
    until(lambda: not volume.exists())
    until(lambda: name not in kubernetes.kubectl("get", "persistentvolumes", "--output=name"))


def test_a_restricted_namespace_runs_only_restricted_pods(kubernetes: Cluster) -> None:
    kubernetes.kubectl("create", "namespace", "restricted")
    label = "pod-security.kubernetes.io/enforce=restricted"
    kubernetes.kubectl("label", "namespace", "restricted", label)
    modest = pod("modest", "python", "-c", "import os; print(os.getuid())", security=RESTRICTED)
    kubernetes.apply(modest, namespace="restricted")
    assert ended(kubernetes, "modest", "restricted") == "1000\n"

    with pytest.raises(subprocess.CalledProcessError) as refused:
        kubernetes.apply(pod("mighty", "id", security={"privileged": True}), namespace="restricted")
    assert "violates PodSecurity" in refused.value.stderr


def test_a_load_balancer_admits_this_computer_unless_its_sources_exclude_it(kubernetes: Cluster) -> None:
    kubernetes.apply(server("public"), service("public", "public", type="LoadBalancer"))
    path = "jsonpath={.status.loadBalancer.ingress[0].ip}"
    until(lambda: kubernetes.kubectl("get", "service", "public", f"--output={path}") != "")
    address = kubernetes.kubectl("get", "service", "public", f"--output={path}")
    until(lambda: answers(f"http://{address}/"))

    others = service("public", "public", type="LoadBalancer", loadBalancerSourceRanges=["192.0.2.0/24"])
    kubernetes.apply(others)
    until(lambda: not answers(f"http://{address}/"))


def test_the_node_enforces_network_policies(kubernetes: Cluster) -> None:
    for name, team in ("guarded", "a"), ("others", "b"), ("friends", "c"):
        metadata = {"name": name, "labels": {"team": team}}
        kubernetes.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    listen = "import socket, time; held = [socket.create_server(('', p)) for p in range(8000, 8005)]; time.sleep(600)"
    ports = {"ports": [{"name": "web", "containerPort": 8000}]}
    probe = {"readinessProbe": {"tcpSocket": {"port": 8004}, "periodSeconds": 1}}
    kubernetes.apply(
        pod("server", "python", "-c", listen, **ports, **probe),
        pod("friend", "sleep", "600", labels={"role": "friend"}),
        pod("stranger", "sleep", "600"),
        namespace="guarded",
    )
    kubernetes.apply(pod("stranger", "sleep", "600", labels={"role": "friend"}), namespace="others")
    kubernetes.apply(pod("guest", "sleep", "600"), namespace="friends")
    try:
        address, *_ = kubernetes.ready("guarded", "server", "friend", "stranger")
        kubernetes.ready("others", "stranger")
        kubernetes.ready("friends", "guest")
        doors = [f"{address}:{port}" for port in range(8000, 8005)]

        def open_to(namespace: str, name: str) -> list[int]:
            found = kubernetes.reach(namespace, name, *doors)
            assert set(found.values()) <= {"open", FORBIDDEN}
            return [int(door.split(":")[1]) for door in doors if found[door] == "open"]

        pods = [("guarded", "friend"), ("guarded", "stranger"), ("others", "stranger"), ("friends", "guest")]
        assert [len(open_to(*each)) for each in pods] == [5] * 4

        kubernetes.apply(
            policy(
                "ingress",
                {"matchLabels": {"app": "server"}},
                ingress=[
                    {
                        "from": [{"podSelector": {"matchExpressions": [{"key": "role", "operator": "Exists"}]}}],
                        "ports": [{"port": "web"}],
                    },
                    {
                        "from": [{"namespaceSelector": {"matchLabels": {"team": "c"}}}],
                        "ports": [{"port": 8001, "endPort": 8002}],
                    },
                ],
            ),
            namespace="guarded",
        )
        until(lambda: [open_to(*each) for each in pods] == [[8000], [], [], [8001, 8002]])

        egress = [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["100.64.0.0/10"]}}]}]
        kubernetes.apply(policy("egress", {"matchLabels": {"app": "friend"}}, egress=egress), namespace="guarded")
        until(lambda: open_to("guarded", "friend") == [])
        index = f"{network.INNER}:{components.WHEELS}"
        assert kubernetes.reach("guarded", "friend", index) == {index: "open"}

        kubernetes.kubectl("delete", "networkpolicies", "--namespace=guarded", "--all")
        until(lambda: [len(open_to(*each)) for each in pods] == [5] * 4)
    finally:
        kubernetes.kubectl("delete", "namespace", "guarded", "others", "friends", "--wait=false")


def policy(name: str, selector: dict, **rules: list[dict]) -> dict:
    spec = {"podSelector": selector, "policyTypes": [each.capitalize() for each in rules], **rules}
    metadata = {"name": name}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def installer(kubernetes: Cluster, name: str, packages: str, variables: str = "", **files: str) -> None:
    """Starts a pod that runs the chart's script with a small lock. It has no Debian mirror."""
    lightgbm = lock.read(PROJECT / "environments/ml.lock", "3.11").requirements
    data = {
        "install.sh": (CHART / "files/install.sh").read_text(),
        "uv.lock": (PROJECT / "tools/uv.txt").read_text(),
        "environment.lock": "\n".join(each for each in lightgbm if each.startswith("lightgbm==")),
        "sources": "deb [trusted=yes] http://127.0.0.1:9/ ./",
        **files,
    }
    kubernetes.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
    script = f"{variables} SYSTEM=$0 EXTRA= JUPYTER= sh /etc/dask-environment/install.sh 2>&1 && echo started"
    mounts = [
        {"name": "environment", "mountPath": "/opt/dask"},
        {"name": "files", "mountPath": "/etc/dask-environment"},
        {"name": "files", "mountPath": "/etc/apt/sources.list", "subPath": "sources"},
    ]
    volumes = [{"name": "environment", "emptyDir": {}}, {"name": "files", "configMap": {"name": name}}]
    kubernetes.apply(pod(name, "sh", "-c", script, packages, volumeMounts=mounts, volumes=volumes))


def test_without_a_debian_mirror_pods_start_unless_the_stack_lists_system_packages(kubernetes: Cluster) -> None:
    installer(kubernetes, "default", "libgomp1")
    installer(kubernetes, "listed", "libgomp1 libgl1")
    said = ended(kubernetes, "default")
    assert said.endswith("started\n") and "error: cannot download the system packages libgomp1; check that pods" in said
    until(lambda: kubernetes.kubectl("get", "pod", "listed", "--output=jsonpath={.status.phase}") == "Failed")
    assert "error: cannot download the system packages libgomp1 libgl1; check that" in kubernetes.kubectl(
        "logs", "listed"
    )


def test_pods_install_from_an_index_with_a_password_and_a_certificate_of_its_own(
    kubernetes: Cluster, tmp_path: Path
) -> None:
    host, keys = "private.default.svc.cluster.local", tmp_path / "pki"
    pki.make(keys, "", [host])
    pem = {"pem": (keys / "server.crt").read_text() + (keys / "server.key").read_text()}
    kubernetes.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "index"}, "data": pem})
    program = [Path(private_index.__file__).read_text(), f"http://{network.INNER}:{components.WHEELS}/"]
    program += ["/etc/index/pem", "0.0.0.0:8000"]
    mounts = [{"name": "index", "mountPath": "/etc/index"}]
    volumes = [{"name": "index", "configMap": {"name": "index"}}]
    environ = [{"name": "INDEX_PASSWORD", "value": private_index.PASSWORD}]
    kubernetes.apply(
        pod("private", "python", "-c", *program, volumeMounts=mounts, volumes=volumes, env=environ),
        service("private", "private", ports=[{"port": 443, "targetPort": 8000}]),
    )
    kubernetes.ready("default", "private")
    url = private_index.url(host)
    # The image's own configuration names the node's index.
    variables = f"PIP_CONFIG_FILE=/dev/null PIP_INDEX_URL={url} UV_NO_CONFIG=1 UV_DEFAULT_INDEX={url}"
    authority = {"authority.crt": (keys / "ca.crt").read_text()}
    installer(kubernetes, "customer", "", variables, **authority)
    installer(kubernetes, "stranger", "", variables.replace(private_index.PASSWORD, "wrong"), **authority)
    assert ended(kubernetes, "customer").endswith("started\n")
    until(lambda: kubernetes.kubectl("get", "pod", "stranger", "--output=jsonpath={.status.phase}") == "Failed")
    assert "401" in kubernetes.kubectl("logs", "stranger")


def test_a_second_up_of_the_node_changes_nothing(kubernetes: Cluster) -> None:
    first = processes(kubernetes)
    printed = kubernetes.up()
    assert printed["kubeconfig"] == str(kubernetes.kubeconfig)
    assert kubernetes.kubeconfig.stat().st_mode & 0o777 == 0o600
    assert first and processes(kubernetes) == first


def test_up_repairs_a_killed_cluster_and_keeps_its_objects(kubernetes: Cluster) -> None:
    kubernetes.kubectl("create", "configmap", "known", "--from-literal=word=kept")
    kubernetes.apply(pod("before", "sleep", "600"))
    kubernetes.ready("default", "before")
    running = [each for each in node_files.containers(kubernetes.directory) if control_groups(each)]
    assert running, "this test looks at the wrong places"
    supervisor = next(process for process, name in processes(kubernetes).items() if name == "unshare")
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not processes(kubernetes))

    kubernetes.up()
    assert kubernetes.kubectl("get", "configmap", "known", "--output=jsonpath={.data.word}") == "kept"
    assert [each for each in running if control_groups(each)] == [], "groups of its former containers are left"
    kubernetes.apply(pod("after", "python3", "-c", "print('runs')"))
    assert ended(kubernetes, "after") == "runs\n"


def test_down_without_a_cluster_does_nothing(tmp_path: Path) -> None:
    Cluster(tmp_path / "none").down()


def processes(cluster: Cluster) -> dict[int, str]:
    """The node's own processes by name, without those of pods, which change."""
    found = []
    for group in control_groups(network.name(cluster.directory)):
        with contextlib.suppress(OSError):
            found += map(int, Path(group, "node/cgroup.procs").read_text().split())
    return {each: comm(each) for each in found if comm(each) in ("unshare", "etcd", "containerd", "kube", "coredns")}


def comm(process: int) -> str:
    """A process's name; empty if it has just exited."""
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


# Validation of the chart by the API server


PODS = {
    "cpu": st.sampled_from([0.1, 0.25, 1, 2.5, 64]),
    "memory": st.sampled_from(["512 MB", "1.5 GiB", "4GB", "64 MB"]),
    "nodeSelector": st.sampled_from([{}, {"disk": "ssd"}, {"cloud.google.com/gke-spot": "true"}]),
    "tolerations": st.sampled_from(
        [[], [{"operator": "Exists"}], [{"key": "spot", "value": "x", "effect": "NoSchedule"}]]
    ),
    "serviceAccount": st.sampled_from([None, "dask"]),
}
SPILLED = st.sampled_from([{}, {"size": "2Ti"}, {"className": "premium-rwo"}])
EXPOSED = st.none() | st.fixed_dictionaries(
    {"sources": st.sampled_from([["203.0.113.7/32"], ["10.0.0.0/8", "2001:db8::/48"]]), "internal": st.just(True)}
)
ACCEPTED = st.fixed_dictionaries(
    {
        "scheduler": st.fixed_dictionaries({}, optional=PODS),
        "workers": st.fixed_dictionaries(
            {},
            optional=PODS
            | {
                "replicas": st.integers(0, 1000),
                "threads": st.none() | st.integers(1, 9),
                "spill": SPILLED,
                "groups": st.just([{"name": "big", "resources": {"GPU": 1}, "nodeSelector": {"a": "b"}}]),
            },
        ),
        "jupyter": st.fixed_dictionaries({"enabled": st.just(True)}, optional=PODS | {"storage": st.just("2Ti")}),
        "egress": st.sampled_from([[], ["10.2.0.0/24", "fd00:1::/64"]]),
        "expose": st.fixed_dictionaries({}, optional=dict.fromkeys(("scheduler", "dashboard", "jupyter"), EXPOSED)),
        "dask": st.fixed_dictionaries(
            {},
            optional={
                "env": st.dictionaries(st.sampled_from(["A", "b_1"]), st.text("x: '\"{}\n$%", max_size=9)),
                "config": st.dictionaries(st.sampled_from(["x", "y"]), st.text("x: '\"{}\n$%-", max_size=9)),
                "workerArgs": st.sampled_from([[], ["--preload", "my.module"], ["--resources", "GPU=1"]]),
            },
        ),
        "packages": st.fixed_dictionaries(
            {"pip": st.sampled_from([[], ["dask-ml[complete]>=2025; os_name=='posix'"]])}
        ),
    },
    optional={
        "cluster": st.fixed_dictionaries(
            {"source": st.just("gke"), "project": st.just("my-project"), "location": st.just("us-central1-a")},
            optional={"workers": st.just({"machine": "a3-mega", "accelerators": {"type": "nvidia-l4"}})},
        ),
        "data": st.just({"size": "1Ti", "delete": True}),
        "limits": st.sampled_from([{"idle": "30m"}, {"idle": "90d"}]),
        "image": st.sampled_from(["ghcr.io/me/dask:1.4", "localhost:5000/dask:latest"]),
        "values": st.sampled_from(
            [
                {"additional_worker_groups": [{"name": "gpu", "replicas": 2}]},
                {"jupyter": {"ingress": {"enabled": True, "tls": True}}},
            ]
        ),
    },
)


@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None, phases=[Phase.generate]
)
@given(said=ACCEPTED)
def test_the_api_server_accepts_all_values_that_the_settings_accept(kubernetes: Cluster, said: dict[str, Any]) -> None:
    access = {"source": "existing", "kubeconfig": str(kubernetes.kubeconfig)}
    if "image" in said:  # it has all packages
        del said["packages"]
    if "groups" in said["workers"]:
        said.get("values", {}).pop("additional_worker_groups", None)
    if "cluster" in said:  # without a known node size every pod is accepted, and the ranges have room for all nodes
        big = {"system": {"machine": "a3-mega"}, "workers": {"machine": "a3-mega"}, "ranges": {"pods": "10.64.0.0/14"}}
        said["cluster"] = big | said["cluster"]
    cluster = settings.parse({"target": "kubernetes", "cluster": access} | said, PROJECT)
    given = chart_values.own(cluster, NAMES, LOCKS, "uv==1", "r")
    manifests = yaml.safe_dump_all(rendered(**given))
    kubernetes.kubectl("create", "--dry-run=server", "--filename=-", input=manifests)


def test_pods_of_the_chart_meet_the_restricted_standard(kubernetes: Cluster) -> None:
    name = "restricted-chart"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubernetes.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "dask"}}
    kubernetes.apply(account, namespace=name)
    for manifest in rendered():
        if manifest["kind"] == "Deployment":
            pod = manifest["spec"]["template"] | {"apiVersion": "v1", "kind": "Pod"}
            pod["metadata"]["name"] = manifest["metadata"]["name"]
            kubernetes.kubectl("apply", "--dry-run=server", "--namespace", name, "--filename=-", input=json.dumps(pod))
    kubernetes.kubectl("delete", "namespace", name, "--wait=false")


# The stand-in for Google Cloud, with this Kubernetes instead of GKE


CONFIG = {"project": "my-project", "zone": "us-central1-a"}
TAINT = {"key": "test", "value": "yes", "effect": "PREFER_NO_SCHEDULE"}
EXEC = {
    "apiVersion": "client.authentication.k8s.io/v1beta1",
    "command": "gke-gcloud-auth-plugin",
    "interactiveMode": "Never",
    "provideClusterInfo": True,
}


@pytest.fixture
def rehearsal(kubernetes, tmp_path, monkeypatch):
    """The folder and programs of a rehearsal."""
    (tmp_path / "kubernetes").symlink_to(kubernetes.directory)
    settings = {"command": kubernetes.command("up"), "down": ["false"], "cwd": str(PROJECT)}
    path = f"{PROJECT / 'rehearsal' / 'cloud'}:{kubernetes_programs()}:{os.environ['PATH']}"
    monkeypatch.setenv("DASKSTACK_REHEARSAL", str(tmp_path))
    monkeypatch.setenv("DASKSTACK_REHEARSAL_KUBERNETES", json.dumps(settings))
    monkeypatch.setenv("PATH", path)
    return tmp_path


async def new_cluster() -> tuple[cloud.Cloud, str, cloud.Record]:
    known = cloud.simulated_cloud()
    cluster, record = cloud.new_record(CLUSTER, {"name": "c"}, CONFIG, kubernetes=await node.up())
    known.write(cluster, record)
    return known, cluster, record


async def test_kubectl_connects_through_the_dns_endpoint_and_sees_labels_and_taints_of_pools(kubernetes, rehearsal):
    known, cluster, record = await new_cluster()
    known.trust(record["kubernetes"]["authority"])
    endpoint = record["outputs"]["controlPlaneEndpointsConfig"]["dnsEndpointConfig"]["endpoint"]
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"https://{endpoint}"}}],
        "users": [{"name": "c", "user": {"exec": EXEC}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "current-context": "c",
    }
    (rehearsal / "kubeconfig").write_text(json.dumps(kubeconfig))

    def look() -> dict:
        command = ["kubectl", f"--kubeconfig={rehearsal}/kubeconfig", "get", "nodes", "--output=json"]
        environ = os.environ | {"SSL_CERT_FILE": str(rehearsal / "gcp" / "ca.pem")}
        [found] = json.loads(subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE).stdout)["items"]
        return found

    before = look()
    config = {"machineType": "e2-standard-2", "labels": {"test": "yes"}, "taints": [TAINT]}
    identity, pool = cloud.new_record(POOL, {"name": "pool", "cluster": "c", "nodeConfig": config}, CONFIG)
    async with node.changing(known, cluster):
        known.create(identity, pool)
    labels = look()["metadata"]["labels"]
    assert (labels["test"], labels["cloud.google.com/gke-nodepool"]) == ("yes", "pool")
    assert {"key": "test", "value": "yes", "effect": "PreferNoSchedule"} in look()["spec"]["taints"]
    async with node.changing(known, cluster):
        known.delete(identity)
    after = look()
    assert after["metadata"]["labels"] == before["metadata"]["labels"]
    assert after["spec"].get("taints", []) == before["spec"].get("taints", [])


async def test_workers_run_on_each_kind_of_nodes_of_a_list_and_other_pods_on_none(kubernetes, rehearsal):
    known, cluster, _ = await new_cluster()
    config = {
        "labels": node_pools.label("workers") | node_pools.class_label("workers"),
        "taints": [node_pools.taint("workers"), node_pools.class_taint("workers")],
    }
    names = ["workers-spot", "workers-standard"]
    inputs = [{"name": name, "cluster": "c", "nodeConfig": config} for name in names]
    pools = dict(cloud.new_record(POOL, each, CONFIG) for each in inputs)
    preferred, _ = pools
    async with node.changing(known, cluster):
        for identity, pool in pools.items():
            known.create(identity, pool)
    metadata, spec = {"name": "dask-workers"}, node_pools.compute_class(names)
    compute_class = {"apiVersion": "cloud.google.com/v1", "kind": "ComputeClass", "metadata": metadata, "spec": spec}
    try:
        kubernetes.apply(compute_class, server("first", **node_pools.placement("workers", classed=True)))
        kubernetes.ready("default", "first")
        async with node.changing(known, cluster):
            known.delete(preferred)
        kubernetes.apply(server("second", **node_pools.placement("workers", classed=True)), server("third"))
        kubernetes.ready("default", "second")
        kubernetes.kubectl("wait", "--for=condition=PodScheduled=False", "pod/third", "--timeout=30s")
    finally:
        async with node.changing(known, cluster):
            for identity in pools:
                known.delete(identity)
        kubernetes.kubectl("delete", "pod/first", "pod/second", "pod/third", "--ignore-not-found", "--wait=false")
        kubernetes.kubectl("delete", "crd/computeclasses.cloud.google.com")


def test_a_check_that_exceeds_a_quota_fails_soon_with_the_reason(
    kubernetes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}}
    labels = {"app": "dask", "release": "dask", "component": "worker"}
    template = {"metadata": {"labels": labels}, "spec": pod("worker", "true")["spec"] | {"restartPolicy": "Always"}}
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
    worker = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "dask-worker", "labels": labels}}
    kubernetes.kubectl("create", "namespace", "full")
    kubernetes.apply(quota, worker | {"spec": spec}, namespace="full")
    monkeypatch.setattr(check_release, "PATIENCE", 2)
    command = [str(kubernetes.programs / "kubectl"), f"--kubeconfig={kubernetes.kubeconfig}"]
    with pytest.raises(check_release.Failure, match=r"the check's job cannot start: .*exceeded quota: few"):
        check_release.job(check_release.Cluster(command, "full", "dask"), "print(1)", "{}")
    kubernetes.kubectl("delete", "namespace", "full", "--wait=false")
