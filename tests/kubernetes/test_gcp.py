"""What stands for Google Cloud in a rehearsal, with a real Kubernetes in the place of GKE's."""

import json
import os
import subprocess
import sys

import pytest

from daskstack.engine import PROJECT, kubernetes_programs

sys.path.append(str(PROJECT / "rehearsal" / "plugins"))  # from where plugins import each other

from gcp import cloud, node
from gcp.kinds import CLUSTER, POOL

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
    """A rehearsal's folder and programs."""
    (tmp_path / "kubernetes").symlink_to(kubernetes.directory)
    command = [sys.executable, "-m", "rehearsal.kubernetes", "up", str(kubernetes.directory), "--lock", "jupyter.lock"]
    settings = {"command": command, "down": ["false"], "cwd": str(PROJECT)}
    path = f"{PROJECT / 'rehearsal' / 'cloud'}:{kubernetes_programs()}:{os.environ['PATH']}"
    monkeypatch.setenv("DASKSTACK_REHEARSAL", str(tmp_path))
    monkeypatch.setenv("DASKSTACK_REHEARSAL_KUBERNETES", json.dumps(settings))
    monkeypatch.setenv("PATH", path)
    return tmp_path


async def test_kubectl_gets_in_by_the_dns_endpoint_and_sees_the_labels_and_taints_of_pools(kubernetes, rehearsal):
    known = cloud.pretended()
    cluster, record = cloud.new_record(CLUSTER, {"name": "c"}, CONFIG, kubernetes=await node.up())
    known.write(cluster, record)
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
