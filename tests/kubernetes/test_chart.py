"""What the chart renders, judged by helm and by a real API server."""

import json
import subprocess
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import lock
import settings
from components.gke import values
from daskstack.engine import PROJECT
from tests.kubernetes.support import Cluster

CHART = PROJECT / "charts" / "dask"
LOCKS = {
    "environment": lock.read(PROJECT / "environment.lock", "3.11"),
    "jupyter": lock.read(PROJECT / "jupyter.lock", "3.11", dask=False),
}
NAMES = values.Names("dask-tls-scheduler", "dask-tls-worker", "dask-tls-client", "dask-jupyter-password")


def helm(cluster: Cluster, *words: str, given: dict[str, Any], check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [cluster.programs / "helm", *words, "--values", "-", "--kubeconfig", cluster.kubeconfig]
    return subprocess.run(command, input=yaml.safe_dump(given), capture_output=True, text=True, check=check)


PODS = {
    "cpu": st.sampled_from([0.1, 0.25, 1, 2.5, 64]),
    "memory": st.sampled_from(["512 MB", "1.5 GiB", "4GB", "64 kB"]),
    "nodeSelector": st.sampled_from([{}, {"disk": "ssd"}, {"cloud.google.com/gke-spot": "true"}]),
    "tolerations": st.sampled_from(
        [[], [{"operator": "Exists"}], [{"key": "spot", "value": "x", "effect": "NoSchedule"}]]
    ),
    "serviceAccount": st.sampled_from([None, "dask"]),
}
EXPOSED = st.none() | st.fixed_dictionaries(
    {"sources": st.sampled_from([["203.0.113.7/32"], ["10.0.0.0/8", "2001:db8::/48"]]), "internal": st.booleans()}
)
ACCEPTED = st.fixed_dictionaries(
    {
        "scheduler": st.fixed_dictionaries({}, optional=PODS),
        "workers": st.fixed_dictionaries(
            {}, optional=PODS | {"replicas": st.integers(0, 1000), "threads": st.none() | st.integers(1, 9)}
        ),
        "jupyter": st.fixed_dictionaries({"enabled": st.just(True)}, optional=PODS | {"storage": st.just("2Ti")}),
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
            {"source": st.just("gcp"), "project": st.just("my-project"), "location": st.just("us-central1-a")},
            optional={"workers": st.just({"machine": "a3-mega", "accelerators": {"type": "nvidia-l4"}})},
        ),
        "limits": st.sampled_from([{"idle": "30m"}, {"idle": "90d"}]),
        "image": st.sampled_from(["ghcr.io/me/dask:1.4", "localhost:5000/dask:latest"]),
        "values": st.sampled_from(
            [{"additional_worker_groups": [{"name": "gpu", "replicas": 2}]}, {"webUI": {"ingress": {"enabled": True}}}]
        ),
    },
)


@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(said=ACCEPTED)
def test_whatever_settings_accept_the_api_server_accepts(kubernetes: Cluster, said: dict[str, Any]) -> None:
    access = {"source": "existing", "kubeconfig": str(kubernetes.kubeconfig)}
    if "cluster" in said:  # where no node's size is known, every pod is accepted
        said["cluster"].setdefault("workers", {"machine": "a3-mega"})
    cluster = settings.parse({"target": "gke", "cluster": access} | said, PROJECT)
    given = values.own(cluster, NAMES, LOCKS, "uv==1", "r")
    manifests = helm(kubernetes, "template", "dask", str(CHART), given=given).stdout
    kubernetes.kubectl("apply", "--dry-run=server", "--filename=-", input=manifests)


def test_the_chart_is_clean_to_helm_lint(kubernetes: Cluster) -> None:
    done = helm(kubernetes, "lint", str(CHART), "--strict", given={"jupyter": {"passwordSecret": "p"}}, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"worker": {"replicaCount": 3}}, "'replicaCount' not allowed"),
        ({"jupyter": {"enabled": True}}, "jupyter.passwordSecret is missing"),
        ({"webUI": {"serviceType": "LoadBalancer"}}, "webUI.serviceType is LoadBalancer without sourceRanges"),
    ],
)
def test_the_chart_refuses_what_would_not_work(kubernetes: Cluster, given: dict[str, Any], text: str) -> None:
    password = {} if "jupyter" in given else {"jupyter": {"passwordSecret": "p"}}
    done = helm(kubernetes, "template", "dask", str(CHART), given=password | given, check=False)
    assert done.returncode and text in done.stderr


def test_pods_of_the_chart_meet_the_restricted_standard(kubernetes: Cluster) -> None:
    name = "restricted-chart"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubernetes.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "dask"}}
    kubernetes.apply(account, namespace=name)
    rendered = helm(kubernetes, "template", "dask", str(CHART), given={"jupyter": {"passwordSecret": "p"}}).stdout
    for manifest in yaml.safe_load_all(rendered):
        if manifest and manifest["kind"] == "Deployment":
            pod = manifest["spec"]["template"] | {"apiVersion": "v1", "kind": "Pod"}
            pod["metadata"]["name"] = manifest["metadata"]["name"]
            kubernetes.kubectl("apply", "--dry-run=server", "--namespace", name, "--filename=-", input=json.dumps(pod))
    kubernetes.kubectl("delete", "namespace", name, "--wait=false")
