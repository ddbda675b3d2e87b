"""The stand-in for the plugin `gcp`, which rehearsals always use, with a fake Kubernetes.

test_gcp_plugin.py tests the part that Pulumi's own plugin can do without an account.
"""

import base64
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rehearsal.environment import environment as rehearsal_environment
from tests.engine.support import Cloud, Project, processes, wait_for
from tools import google_errors

OTHERS = {"key": "others", "effect": "NoSchedule"}

# Starts and stops a fake Kubernetes: a kubeconfig, and a node in a file that the fake `kubectl` reads and changes.
KUBERNETES = """
import json, shutil, sys
from pathlib import Path

folder = Path(sys.argv[2])
with (folder.parent / "calls").open("a") as calls:
    calls.write(sys.argv[1] + "\\n")
if sys.argv[1] == "down":
    shutil.rmtree(folder)
    sys.exit()
folder.mkdir()
(folder / "kubeconfig").write_text(%r)
(folder / "node").write_text(json.dumps({"metadata": {"name": "n", "labels": {"own": "1"}}, "spec": {"taints": [%r]}}))
print(json.dumps({"kubeconfig": str(folder / "kubeconfig"), "context": "test", "node": "127.0.0.1"}))
"""
KUBECTL = """#!{python}
import json, os, sys

words = sys.argv[1:]
while words[0] in ("--kubeconfig", "--context"):
    words = words[2:]
if words[0] == "config":
    os.execv("{kubectl}", ["kubectl", *sys.argv[1:]])
node = json.load(open("{folder}/kubernetes/node"))
if words[0] == "get":
    print(json.dumps({{"items": [node]}}))
elif words[0] == "patch":
    patch = json.loads(words[words.index("--patch") + 1])
    labels = node["metadata"]["labels"] | patch["metadata"]["labels"]
    node["metadata"]["labels"] = {{key: value for key, value in labels.items() if value is not None}}
    node["spec"] = patch["spec"]
    json.dump(node, open("{folder}/kubernetes/node", "w"))
"""


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [
        {
            "name": "test",
            "cluster": {"server": "https://10.0.0.2:6443", "certificate-authority-data": encoded("authority")},
        }
    ],
    "users": [
        {
            "name": "test",
            "user": {"client-certificate-data": encoded("certificate"), "client-key-data": encoded("private key")},
        }
    ],
    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    "current-context": "test",
}


@pytest.fixture
def pulumi_environment(tmp_path: Path) -> dict[str, str]:
    """A rehearsal's environment with a fake Kubernetes made of files."""
    environ = rehearsal_environment(tmp_path / "state")
    programs, folder = tmp_path / "programs", tmp_path / "rehearsal"
    programs.mkdir()
    folder.mkdir()
    (programs / "kubernetes").write_text(KUBERNETES % (json.dumps(KUBECONFIG), OTHERS))
    kubectl = shutil.which("kubectl", path=environ["PATH"])
    (programs / "kubectl").write_text(KUBECTL.format(python=sys.executable, kubectl=kubectl, folder=folder))
    (programs / "kubectl").chmod(0o755)
    words = {
        word: [sys.executable, str(programs / "kubernetes"), argument, str(folder / "kubernetes")]
        for word, argument in (("command", "up"), ("down", "down"))
    }
    return environ | {
        "PATH": f"{programs}:{environ['PATH']}",
        "DASKSTACK_REHEARSAL": str(folder),
        "DASKSTACK_REHEARSAL_KUBERNETES": json.dumps(words | {"cwd": str(tmp_path)}),
        "GOOGLE_OAUTH_ACCESS_TOKEN": "none",
        "GOOGLE_PROJECT": "not-this-project",
    }


@pytest.fixture
def cloud(project: Project, tmp_path: Path) -> Cloud:
    return Cloud(project, tmp_path / "rehearsal")


NETWORK = """
network = make("compute/network:Network", "network", name="net", autoCreateSubnetworks=False)
subnetwork = make("compute/subnetwork:Subnetwork", "nodes", name="nodes", network=network.id, ipCidrRange="10.8.0.0/22",
    secondaryIpRanges=[{"rangeName": "pods", "ipCidrRange": "10.12.0.0/17"}])
router = make("compute/router:Router", "router", name="router", network=network.selfLink)
make("compute/routerNat:RouterNat", "nat", name="nat", router=router.name, natIpAllocateOption="AUTO_ONLY",
    sourceSubnetworkIpRangesToNat="ALL_SUBNETWORKS_ALL_IP_RANGES")
"""
CLUSTER = """
cluster = make("container/cluster:Cluster", "cluster", name="c", network=network.id, subnetwork=subnetwork.id,
    removeDefaultNodePool=True, initialNodeCount=1, ipAllocationPolicy={"clusterSecondaryRangeName": "pods"},
    controlPlaneEndpointsConfig={"dnsEndpointConfig": {"allowExternalTraffic": True}}, deletionProtection=%s,
    resourceLabels={"label": "%s"})
"""
POOL = """
make("container/nodePool:NodePool", "%(name)s", name="%(name)s", cluster=cluster.name, nodeCount=%(count)s,
    nodeConfig={"machineType": "e2-standard-4", "labels": %(labels)s, "taints": %(taints)s})
"""
SECOND = (CLUSTER % (False, "two")).replace('"cluster"', '"second"').replace('name="c"', 'name="second"')
TAINT = {"key": "dask", "value": "workers", "effect": "NO_SCHEDULE"}


def pool(name: str, count: int = 1, labels: dict[str, str] | None = None, taints: list[Any] | None = None) -> str:
    return POOL % {"name": name, "count": count, "labels": labels or {}, "taints": taints or []}


SUBNETWORK_ID = "projects/my-project/regions/us-central1/subnetworks/nodes"
CLUSTER_ID = "projects/my-project/locations/us-central1-a/clusters/c"


def test_a_cluster_with_network_and_pools_can_be_created_changed_and_deleted(cloud):
    def program(label, count):
        return f"""{NETWORK}{CLUSTER % (False, label)}{pool("system")}{pool("workers", count, {"dask": "yes"}, [TAINT])}
account = make("serviceaccount/account:Account", "account", accountId="dask-nodes")
make("projects/iAMMember:IAMMember", "role", project="my-project", role="roles/viewer", member=account.member)
make("projects/service:Service", "api", service="compute.googleapis.com")
found = pulumi.runtime.invoke("gcp:organizations/getProject:getProject", {{"projectId": "my-project"}},
    pulumi.InvokeOptions(provider=google))
make("storage/bucketIAMMember:BucketIAMMember", "bucket", bucket="mine", role="roles/storage.objectViewer",
    member="principal://iam.googleapis.com/projects/" + found.value["number"])
pulumi.export("cluster", [cluster.endpoint, cluster.masterAuth, cluster.controlPlaneEndpointsConfig, cluster.id])
pulumi.export("others", [subnetwork.gatewayAddress, account.email, subnetwork.selfLink])
"""

    output = cloud.up(program("one", 1))
    assert output[output.index("Diagnostics") :].count("is a stand-in") == 1
    [endpoint, auth, endpoints, identity] = cloud.project.outputs()["cluster"]
    assert (endpoint, identity) == ("10.0.0.2:6443", CLUSTER_ID)
    assert auth["clusterCaCertificate"] == encoded("authority")
    assert endpoints["dnsEndpointConfig"] == {"allowExternalTraffic": True, "endpoint": endpoint}
    assert cloud.project.outputs()["others"] == [
        "10.8.0.1",
        "dask-nodes@my-project.iam.gserviceaccount.com",
        f"https://www.googleapis.com/compute/v1/{SUBNETWORK_ID}",
    ]
    assert "my-project/roles/viewer/serviceAccount:dask-nodes@my-project.iam.gserviceaccount.com" in cloud.files

    assert "b/mine/roles/storage.objectViewer/principal:/iam.googleapis.com/projects/123456789012" in cloud.files

    output = cloud.up(program("two", 2))
    assert "2 updated" in output
    assert "11 unchanged" in output
    assert cloud.record(CLUSTER_ID)["outputs"]["effectiveLabels"] == {"goog-pulumi-provisioned": "true", "label": "two"}
    assert "13 unchanged" in cloud.up(program("two", 2))
    assert "13 deleted" in cloud.destroy()
    assert cloud.files == {"my-project/compute.googleapis.com"}, "an API stays on for others in the project"
    assert (cloud.folder / "calls").read_text().split() == ["up", "down"]


def test_the_node_has_the_labels_of_all_pools_and_the_taints_that_all_have(cloud):
    base = f"{NETWORK}{CLUSTER % (False, 'one')}"
    taint = {"key": "dask", "value": "workers", "effect": "NoSchedule"}

    cloud.up(base + pool("workers", labels={"dask-workers": "yes", "both": "workers"}, taints=[TAINT]))
    assert cloud.node["spec"]["taints"] == [OTHERS, taint]
    labels = cloud.node["metadata"]["labels"]
    assert labels["cloud.google.com/gke-nodepool"] == "workers"
    assert labels["node.kubernetes.io/instance-type"] == "e2-standard-4"
    assert (labels["own"], labels["dask-workers"]) == ("1", "yes")

    workers = pool("workers", labels={"both": "workers"}, taints=[TAINT])
    output = cloud.up(base + workers + pool("system", labels={"dask-system": "yes", "both": "system"}))
    assert "has both=workers instead of system from pool system" in output
    assert cloud.node["spec"]["taints"] == [OTHERS]
    labels = cloud.node["metadata"]["labels"]
    assert labels["dask-system"] == "yes"
    assert "dask-workers" not in labels

    cloud.up(base + pool("system", labels={"both": "system"}))
    labels = cloud.node["metadata"]["labels"]
    assert (labels["cloud.google.com/gke-nodepool"], labels["both"]) == ("system", "system")
    cloud.up(base)
    assert cloud.node["metadata"]["labels"] == {"own": "1"}
    assert cloud.node["spec"]["taints"] == [OTHERS]


def test_a_preview_knows_arguments_but_not_computed_values_and_changes_nothing(cloud):
    output = cloud.preview(
        f"""{NETWORK}{CLUSTER % (False, "one")}{pool("system")}
for output in (cluster.endpoint, cluster.controlPlaneEndpointsConfig, cluster.masterAuth, network.id):
    output.apply(lambda value: print(f"known: {{value}}"))
network.name.apply(lambda value: print(f"known: {{value}}"))
"""
    )
    assert set(re.findall("known: .*", output)) == {"known: net"}
    assert "+ 8 to create" in output
    assert cloud.files == set()
    assert not (cloud.folder / "calls").exists()


def test_refresh_detects_deleted_resources_and_up_recreates_them(cloud):
    cloud.up(NETWORK)
    (cloud.folder / "gcp" / f"{SUBNETWORK_ID}.json").unlink()
    assert "1 deleted" in cloud.project.run("refresh", "--yes", "--skip-preview")
    assert "1 created" in cloud.up(NETWORK)


def test_existing_names_and_missing_references_are_rejected(cloud):
    cloud.up('make("compute/network:Network", "one", name="net")')
    report = cloud.fails(
        """
make("compute/network:Network", "one", name="net")
make("compute/network:Network", "two", name="net")
make("compute/router:Router", "router", name="router", network="gone")
"""
    )
    assert "projects/my-project/global/networks/net already exists (alreadyExists)" in report
    assert "projects/my-project/global/networks/gone was not found (notFound)" in report


def test_a_protected_cluster_and_a_network_in_use_are_not_deleted(cloud):
    cloud.up(f"{NETWORK}{CLUSTER % (True, 'one')}")
    report = cloud.project.run("destroy", "--yes", "--skip-preview", succeeds=False)
    assert f"{CLUSTER_ID} while deletionProtection is true" in report
    assert CLUSTER_ID in cloud.files

    cloud.up(f"{NETWORK}{CLUSTER % (False, 'one')}")
    routers = cloud.folder / "gcp" / "projects/my-project/regions/us-central1/routers"
    shutil.copy(routers / "router.json", routers / "theirs.json")
    report = cloud.project.run("destroy", "--yes", "--skip-preview", succeeds=False)
    used = "projects/my-project/regions/us-central1/routers/theirs (resourceInUseByAnotherResource)"
    assert f"projects/my-project/global/networks/net is used by {used}" in report


def test_changes_that_are_impossible_in_place_cause_a_replacement(cloud):
    made = 'make("compute/network:Network", "auto", mtu=%s, description="%s")'
    cloud.up(made % (1460, "one"))
    [first] = cloud.files
    assert re.fullmatch("projects/my-project/global/networks/auto-[0-9a-f]{7}", first)
    assert "1 updated" in cloud.up(made % (1500, "one"))
    assert cloud.files == {first}
    assert "1 replaced" in cloud.up(made % (1500, "two"))
    [second] = cloud.files
    assert second != first


def test_a_machine_has_addresses_and_its_dependencies_cannot_be_deleted(cloud):
    machine = """
make("compute/network:Network", "net", name="default-net")
address = make("compute/address:Address", "address", name="address")
disk = make("compute/disk:Disk", "disk", name="data", size=10, labels={"a": "b"})
vm = make("compute/instance:Instance", "vm", name="vm", machineType="%s", bootDisk={"initializeParams": {}},
    networkInterfaces=[{"network": "default", "accessConfigs": [{}]}])
make("compute/attachedDisk:AttachedDisk", "attached", disk=disk.id, instance=vm.selfLink)
make("compute/firewall:Firewall", "ssh", name="ssh", network="default", allows=[{"protocol": "tcp", "ports": ["22"]}],
    sourceRanges=["35.235.240.0/20"])
pulumi.export("vm", [vm.networkInterfaces, vm.id])
"""
    cloud.up(machine % "e2-small")
    [[interface], identity] = cloud.project.outputs()["vm"]
    assert identity == "projects/my-project/zones/us-central1-a/instances/vm"
    assert interface["accessConfigs"][0]["natIp"].startswith("198.1")
    assert interface["networkIp"] == "10.128.0.2"
    assert f"{identity}/data" in cloud.files
    [instance] = cloud.list("compute instances")
    zone = "https://www.googleapis.com/compute/v1/projects/my-project/zones/us-central1-a"
    assert (instance["zone"], instance["machineType"]) == (zone, f"{zone}/machineTypes/e2-small")
    [disk] = cloud.list("compute disks")
    assert (disk["sizeGb"], disk["users"]) == ("10", [instance["selfLink"]])
    assert disk["labels"] == {"goog-pulumi-provisioned": "true", "a": "b"}
    for group in ("addresses", "firewall-rules"):
        assert len(cloud.list(f"compute {group}")) == 1

    assert "cannot change machineType while the machine runs" in cloud.fails(machine % "e2-large")
    assert "8 deleted" in cloud.destroy()
    assert cloud.files == set()


LIMITS = {
    "quotas": {"CPUS": 24, "SSD_TOTAL_GB": 500, "GPUS_ALL_REGIONS": 0},
    "constraints": ["compute.requireOsLogin", "compute.vmExternalIpAccess"],
    "labels": ["cost-center"],
    "missing": ["c4-standard-4"],
    "denied": ["compute.firewalls.create"],
}
# Each of these asks for one thing that the limits forbid.
LIMITED = """
def machine(name, size=10, machineType="e2-standard-4", labels={"cost-center": "1"}, outside=None, **more):
    interfaces = [{"network": "default", "accessConfigs": outside}]
    make("compute/instance:Instance", name, name=name, machineType=machineType, labels=labels,
         networkInterfaces=interfaces, bootDisk={"initializeParams": {"size": size}}, **more)


machine("cpus", machineType="e2-standard-32")
machine("disk", size=501)
machine("gpus", guestAccelerators=[{"type": "nvidia-tesla-t4", "count": 1}])
machine("login", metadata={"enable-oslogin": "FALSE"})
machine("address", outside=[{}])
machine("labels", labels={"team": "a"})
machine("type", machineType="c4-standard-4")
make("compute/firewall:Firewall", "ssh", name="ssh", network="default", allows=[{"protocol": "tcp", "ports": ["22"]}],
    project="our-host", sourceRanges=["35.235.240.0/20"])
"""
SENTENCES = [
    "the project's quota CPUS in region us-central1 is 24.0: write fewer or smaller machines",
    "the project's quota SSD_TOTAL_GB in region us-central1 is 500.0: write smaller disks",
    "the project's quota GPUS_ALL_REGIONS globally is 0.0: new projects have a quota of 0 GPUs",
    "the organization's policy compute.requireOsLogin forbids machines with SSH keys in their metadata",
    "the organization's policy compute.vmExternalIpAccess forbids external addresses: set machines.iapPort: 2222",
    "the organization's own policy custom.requireLabels forbids this: if it asks for labels, write them as",
    "zone us-central1-a has no c4-standard-4: write another machine type or zone",
    "you may not change firewall rules of project our-host: in a Shared VPC you need roles/compute.securityAdmin",
]


def test_each_of_googles_refusals_is_explained_in_one_sentence(cloud: Cloud, tmp_path: Path) -> None:
    (cloud.folder / "limits.json").write_text(json.dumps(LIMITS))
    log = tmp_path / "events"
    options = {"EVENT_LOG": str(log), "CONTINUE_ON_ERROR": "true"}
    cloud.project.environment |= {f"PULUMI_OPTION_{name}": value for name, value in options.items()}
    cloud.project.environment |= {"PULUMI_DEBUG_COMMANDS": "true"}
    cloud.fails(LIMITED)
    found = sorted(google_errors.explanations(google_errors.messages(log.read_text())))
    for sentence, text in zip(found, sorted(SENTENCES), strict=True):
        assert sentence.startswith(text)
    assert cloud.files == set()


def test_gcloud_lists_the_created_resources_and_its_plugin_logs_in_as_admin(cloud):
    assert cloud.run("gcloud", "--version").startswith("Google Cloud SDK")
    assert cloud.run("gcloud", "config", "get", "project") == "(unset)\n"
    account = 'make("serviceaccount/account:Account", "account", accountId="dask-nodes")'
    cloud.up(f"{NETWORK}{CLUSTER % (False, 'one')}{pool('system')}{account}")
    assert cloud.run("gcloud", "config", "get", "project") == "my-project\n"

    base = "https://www.googleapis.com/compute/v1/projects/my-project"
    [network] = cloud.list("compute networks")
    assert (network["name"], network["selfLink"]) == ("net", f"{base}/global/networks/net")
    [subnetwork] = cloud.list("compute networks subnets")
    assert subnetwork["network"] == network["selfLink"]
    assert subnetwork["region"] == f"{base}/regions/us-central1"
    [router] = cloud.list("compute routers")
    assert (router["network"], router["nats"]) == (network["selfLink"], [{"name": "nat"}])
    [cluster] = cloud.list("container clusters")
    assert cluster["resourceLabels"]["label"] == "one"
    assert (cluster["network"], cluster["status"], cluster["nodePools"]) == ("net", "RUNNING", [{"name": "system"}])
    [account] = cloud.list("iam service-accounts")
    assert account["email"] == "dask-nodes@my-project.iam.gserviceaccount.com"
    for group in ("instances", "disks", "addresses", "forwarding-rules", "firewall-rules"):
        assert cloud.list(f"compute {group}") == []
    assert cloud.list("compute networks", "other-project") == []
    for words in (["compute", "networks", "delete", "net"], ["compute", "networks", "list", "--filter=x"]):
        said = cloud.run("gcloud", *words, status=2)
        assert said == f"the stand-in for gcloud does not support `gcloud {' '.join(words)}`\n"

    assert "stand-in" in cloud.run("gke-gcloud-auth-plugin", "--version")
    answer = json.loads(cloud.run("gke-gcloud-auth-plugin"))
    assert (answer["kind"], answer["apiVersion"]) == ("ExecCredential", "client.authentication.k8s.io/v1beta1")
    assert answer["status"] == {"clientCertificateData": "certificate", "clientKeyData": "private key"}
    assert (cloud.folder / "gcp" / "ca.pem").read_text() == "authority"


@pytest.mark.parametrize(
    ("program", "config", "refused"),
    [
        ('make("storage/bucket:Bucket", "it")', {}, "does not support gcp:storage/bucket:Bucket"),
        (NETWORK + CLUSTER % (False, "a") + SECOND, {}, "does not support a second cluster"),
        (
            'pulumi.runtime.invoke("gcp:compute/a:a", {}, pulumi.InvokeOptions(provider=google))',
            {},
            "does not support gcp:compute/a:a",
        ),
        ("", {"impersonateServiceAccount": "a@b"}, "does not support impersonateServiceAccount of the provider"),
    ],
    ids=["type", "second cluster", "function", "provider"],
)
def test_the_stand_in_rejects_unsupported_inputs_by_name(cloud, program, config, refused):
    cloud.project.write(cloud.program(program, **config))
    report = cloud.project.run("up", "--yes", "--skip-preview", succeeds=False)
    assert f"the stand-in for gcp {refused}" in report


def test_without_credentials_nothing_starts_and_the_error_names_a_remedy(cloud):
    del cloud.project.environment["GOOGLE_OAUTH_ACCESS_TOKEN"]
    assert "no credentials for Google Cloud; set GOOGLE_OAUTH_ACCESS_TOKEN" in cloud.fails(NETWORK)
    assert "1 updated" in cloud.up("", accessToken="none")


def test_no_starting_kubernetes_remains_after_the_engine_exits(cloud):
    words = json.loads(cloud.project.environment["DASKSTACK_REHEARSAL_KUBERNETES"])
    word = f"{time.time_ns()}"
    words["command"] = ["sh", "-c", f"sleep 60; : {word}"]
    cloud.project.environment["DASKSTACK_REHEARSAL_KUBERNETES"] = json.dumps(words)
    cloud.project.write(cloud.program(NETWORK + CLUSTER % (False, "one")))
    with cloud.project.started("up", "--yes", "--skip-preview") as pulumi:
        wait_for("the start", lambda: processes(word))
        pulumi.send_signal(signal.SIGINT)
        pulumi.wait(60)
        wait_for("its end", lambda: not processes(word))
    assert CLUSTER_ID not in cloud.files
