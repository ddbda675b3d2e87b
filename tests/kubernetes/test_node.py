"""The rehearsal's own promises: what runs on the node, what it reaches, and what is left."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from rehearsal.kubernetes import network
from rehearsal.kubernetes.supervisor import SYSCTLS
from tests.kubernetes.support import Cluster

IMAGE = "python:3.11-slim"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pod(name: str, *command: str, security: dict | None = None, **spec) -> dict:
    container = {"name": "main", "image": IMAGE, "command": list(command), "securityContext": security or {}}
    container |= {key: spec.pop(key) for key in ("volumeMounts", "readinessProbe") if key in spec}
    metadata = {"name": name, "labels": {"app": name}}
    spec = {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def server(name: str) -> dict:
    probe = {"tcpSocket": {"port": 8000}, "periodSeconds": 1}
    return pod(name, "python", "-m", "http.server", "8000", readinessProbe=probe)


def service(name: str, app: str, **spec) -> dict:
    spec = {"selector": {"app": app}, "ports": [{"port": 80, "targetPort": 8000}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def ended(cluster: Cluster, name: str, namespace: str = "default") -> str:
    """What a pod that ended well has printed."""
    there = ("--namespace", namespace)
    cluster.kubectl("wait", *there, "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=60s")
    return cluster.kubectl("logs", *there, name)


def until(reached: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not (found := reached()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(url, timeout=2).status == 200
    except OSError:
        return False


def test_a_pod_of_the_python_image_runs_and_prints(kubernetes: Cluster) -> None:
    kubernetes.apply(pod("hello", "python3", "-c", "import sys; print('Python', sys.version.split('.')[1])"))
    assert ended(kubernetes, "hello") == "Python 11\n"


def test_a_pod_is_found_by_its_service_also_from_itself(kubernetes: Cluster) -> None:
    kubernetes.apply(server("own"), service("web", "own"))
    kubernetes.kubectl("wait", "--for=condition=Ready", "pod/own", "--timeout=60s")
    fetch = "import urllib.request as u; print(u.urlopen('http://web.default.svc.cluster.local', timeout=2).status)"

    def found() -> bool:
        try:
            return kubernetes.kubectl("exec", "own", "--", "python", "-c", fetch) == "200\n"
        except subprocess.CalledProcessError:  # the node's rules follow a moment later
            return False

    assert until(found)


def test_pods_install_from_the_nodes_wheels_and_reach_nothing_outside(kubernetes: Cluster) -> None:
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


def test_a_claim_gets_a_volume_that_goes_with_it(kubernetes: Cluster) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": spec}
    mounted = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    mounted["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    kubernetes.apply(claim, pod("writer", "touch", "/data/written", **mounted))
    ended(kubernetes, "writer")
    volumes = kubernetes.directory / "volumes"
    assert [path.name for path in volumes.glob("*/*")] == ["written"]

    kubernetes.kubectl("delete", "pod/writer", "pvc/data")
    assert until(lambda: not list(volumes.iterdir()))
    assert kubernetes.kubectl("get", "persistentvolumes", "--output=name") == ""


def test_a_restricted_namespace_runs_restricted_pods_alone(kubernetes: Cluster) -> None:
    kubernetes.kubectl("create", "namespace", "restricted")
    label = "pod-security.kubernetes.io/enforce=restricted"
    kubernetes.kubectl("label", "namespace", "restricted", label)
    modest = pod("modest", "python", "-c", "import os; print(os.getuid())", security=RESTRICTED)
    kubernetes.apply(modest, namespace="restricted")
    assert ended(kubernetes, "modest", "restricted") == "1000\n"

    with pytest.raises(subprocess.CalledProcessError) as refused:
        kubernetes.apply(pod("mighty", "id", security={"privileged": True}), namespace="restricted")
    assert "violates PodSecurity" in refused.value.stderr


def test_a_load_balancer_answers_this_computer_unless_its_sources_are_others(kubernetes: Cluster) -> None:
    kubernetes.apply(server("public"), service("public", "public", type="LoadBalancer"))
    path = "jsonpath={.status.loadBalancer.ingress[0].ip}"
    assert until(lambda: kubernetes.kubectl("get", "service", "public", f"--output={path}") != "")
    address = kubernetes.kubectl("get", "service", "public", f"--output={path}")
    assert until(lambda: answers(f"http://{address}/"))

    others = service("public", "public", type="LoadBalancer", loadBalancerSourceRanges=["192.0.2.0/24"])
    kubernetes.apply(others)
    assert until(lambda: not answers(f"http://{address}/"))


def test_another_up_takes_seconds_and_changes_nothing(kubernetes: Cluster) -> None:
    first = processes(kubernetes)
    begun = time.monotonic()
    printed = kubernetes.up()
    assert time.monotonic() - begun < 10
    assert printed["kubeconfig"] == str(kubernetes.kubeconfig)
    assert kubernetes.kubeconfig.stat().st_mode & 0o777 == 0o600
    assert first and processes(kubernetes) == first


def test_up_mends_a_killed_cluster_which_knows_what_it_knew(kubernetes: Cluster) -> None:
    kubernetes.kubectl("create", "configmap", "known", "--from-literal=word=kept")
    supervisor = next(process for process, name in processes(kubernetes).items() if name == "unshare")
    os.kill(supervisor, signal.SIGKILL)
    assert until(lambda: not processes(kubernetes)), "its processes outlive it"

    kubernetes.up()
    assert kubernetes.kubectl("get", "configmap", "known", "--output=jsonpath={.data.word}") == "kept"
    kubernetes.apply(pod("after", "python3", "-c", "print('runs')"))
    assert ended(kubernetes, "after") == "runs\n"


def test_down_leaves_nothing_behind() -> None:
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="daskstack-")))
    before = [Path("/proc/sys", name).read_text() for name in SYSCTLS]
    try:
        cluster.up()
        cluster.apply(pod("left", "sleep", "600"))
        cluster.kubectl("wait", "--for=condition=Ready", "pod/left", "--timeout=60s")
        assert len(traces(cluster)) >= 5, "this test looks at the wrong places"
    finally:
        cluster.down()
    assert traces(cluster) == []
    assert [Path("/proc/sys", name).read_text() for name in SYSCTLS] == before
    cluster.down()  # nothing is there


def control_groups(name: str) -> list[str]:
    """The folders of that name; by os.walk, which passes over those that end meanwhile."""
    return [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if Path(folder).name == name]


def processes(cluster: Cluster) -> dict[int, str]:
    """The node's own with their names, without those of pods, which come and go."""
    found = []
    for group in control_groups(network.name(cluster.directory)):
        with contextlib.suppress(OSError):
            found += map(int, Path(group, "node/cgroup.procs").read_text().split())
    return {each: comm(each) for each in found if comm(each) in ("unshare", "etcd", "containerd", "kube", "coredns")}


def comm(process: int) -> str:
    """A process's name, empty where it has just ended."""
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def traces(cluster: Cluster) -> list[str]:
    """Everything of a cluster that this computer shows."""
    name = network.name(cluster.directory)
    groups = control_groups(name)
    folders = [Path("/run/netns") / name, Path("/sys/class/net") / name, cluster.directory]
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(cluster.directory) in line]
    running = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text()
        except OSError:
            continue
        if str(cluster.directory) in command:
            running.append(command)
    return groups + mounts + running + [str(folder) for folder in folders if folder.exists()]
