"""The program with a new GKE cluster, run by the real engine with the stand-in for Google Cloud."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daskstack.engine import PROJECT
from settings.buckets import MEMBER
from settings.gke import GkeSource, Hardening
from tests.engine.previews import Previews, inputs
from tools.rehearse import KEY

sys.path.append(str(PROJECT / "rehearsal" / "plugins"))  # plugins import each other from there

from gcp.inputs import changes
from gcp.kinds import CLUSTER
from gcp.table import KINDS


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Previews:
    return Previews("gke", tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="module")
def states(stack: Previews) -> dict[str, dict[str, Any]]:
    return stack.resources()


@pytest.fixture(scope="module")
def shipped(states: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return inputs(states)


KEY_NAME = "projects/my-project/locations/us-central1/keyRings/ring/cryptoKeys/key"
# Settings that all differ from the shipped ones.
RELAXED: dict[str, Any] = {
    "authorizedNetworks": ["203.0.113.0/24"],
    "releaseChannel": "RAPID",
    "securityGroup": "gke-security-groups@example.com",
    "deletionProtection": True,
    "admins": ["me@example.com"],
    "hardening": {
        "privateNodes": False,
        "dataplane": "LEGACY_DATAPATH",
        "workloadIdentity": False,
        "shieldedNodes": False,
        "secureBoot": False,
        "integrityMonitoring": False,
        "imageType": "UBUNTU_CONTAINERD",
        "autoRepair": False,
        "logging": ["SYSTEM_COMPONENTS", "APISERVER", "CONTROLLER_MANAGER", "SCHEDULER"],
        "monitoring": [],
        "securityPosture": "DISABLED",
        "costAllocation": False,
        "databaseKey": KEY_NAME,
        "diskKey": KEY_NAME,
        "binaryAuthorization": True,
        "sandbox": True,
        "intranodeVisibility": True,
        "flowLogs": True,
    },
}


GROUPS: list[dict[str, Any]] = [
    {
        "name": "big",
        "replicas": 2,
        "memory": "16 GiB",
        "resources": {"BIG": 1},
        "pool": {"machine": "n2-highmem-8", "spot": True, "minNodes": 1, "labels": {"disk": "ssd"}},
    },
    {"name": "small"},
]


@pytest.fixture(scope="module")
def relaxed(stack: Previews) -> dict[str, dict[str, Any]]:
    data = {"size": "100Gi", "delete": True}
    cluster = stack.shipped["cluster"] | RELAXED | {"workers": {"machine": "n1-standard-4", "localSsds": 2}}
    workers = {"groups": GROUPS}
    return inputs(stack.resources(cluster=cluster, data=data, workers=workers, limits={"idle": "30m"}))


SAME = object()  # no setting relaxes the argument
POOLS = ("gke-system", "gke-workers")
# Arguments that Google's hardening guide requires: resource, path, value, and value with the settings RELAXED.
HARDENING: list[tuple[str, str, Any, Any]] = [
    ("gke-cluster", "privateClusterConfig.enablePrivateNodes", True, False),
    ("gke-cluster", "controlPlaneEndpointsConfig.dnsEndpointConfig.allowExternalTraffic", True, SAME),
    ("gke-cluster", "controlPlaneEndpointsConfig.ipEndpointsConfig.enabled", False, True),
    ("gke-cluster", "privateClusterConfig.enablePrivateEndpoint", True, False),
    ("gke-cluster", "masterAuthorizedNetworksConfig.cidrBlocks", None, [{"cidrBlock": "203.0.113.0/24"}]),
    ("gke-cluster", "masterAuthorizedNetworksConfig.gcpPublicCidrsAccessEnabled", None, False),
    ("gke-cluster", "masterAuthorizedNetworksConfig.privateEndpointEnforcementEnabled", None, True),
    ("gke-cluster", "networkingMode", "VPC_NATIVE", SAME),
    ("gke-cluster", "ipAllocationPolicy.clusterSecondaryRangeName", "pods", SAME),
    ("gke-cluster", "datapathProvider", "ADVANCED_DATAPATH", "LEGACY_DATAPATH"),
    ("gke-cluster", "workloadIdentityConfig.workloadPool", "my-project.svc.id.goog", None),
    ("gke-cluster", "masterAuth.clientCertificateConfig.issueClientCertificate", False, SAME),
    ("gke-cluster", "enableLegacyAbac", False, SAME),
    ("gke-cluster", "enableShieldedNodes", True, False),
    ("gke-cluster", "releaseChannel.channel", "REGULAR", "RAPID"),
    (
        "gke-cluster",
        "loggingConfig.enableComponents",
        ["SYSTEM_COMPONENTS", "WORKLOADS"],
        RELAXED["hardening"]["logging"],
    ),
    ("gke-cluster", "enableIntranodeVisibility", False, True),
    ("gke-cluster", "authenticatorGroupsConfig.securityGroup", None, "gke-security-groups@example.com"),
    ("gke-subnetwork", "logConfig.metadata", None, "INCLUDE_ALL_METADATA"),
    ("gke-cluster", "monitoringConfig.enableComponents", ["SYSTEM_COMPONENTS"], []),
    ("gke-cluster", "securityPostureConfig.mode", "BASIC", "DISABLED"),
    ("gke-cluster", "removeDefaultNodePool", True, SAME),
    ("gke-cluster", "costManagementConfig.enabled", True, False),
    ("gke-cluster", "databaseEncryption.keyName", None, KEY_NAME),
    ("gke-cluster", "binaryAuthorization.evaluationMode", None, "PROJECT_SINGLETON_POLICY_ENFORCE"),
    *[
        (pool, path, strict, relaxed)
        for pool in POOLS
        for path, strict, relaxed in [
            ("nodeConfig.workloadMetadataConfig.mode", "GKE_METADATA", "GCE_METADATA"),
            ("nodeConfig.oauthScopes", ["https://www.googleapis.com/auth/cloud-platform"], SAME),
            ("nodeConfig.shieldedInstanceConfig.enableIntegrityMonitoring", True, False),
            ("nodeConfig.shieldedInstanceConfig.enableSecureBoot", True, False),
            ("nodeConfig.imageType", "COS_CONTAINERD", "UBUNTU_CONTAINERD"),
            ("nodeConfig.kubeletConfig.insecureKubeletReadonlyPortEnabled", "FALSE", SAME),
            ("nodeConfig.metadata.disable-legacy-endpoints", "true", SAME),
            ("management.autoRepair", True, False),
            ("management.autoUpgrade", True, SAME),
            ("nodeConfig.bootDiskKmsKey", None, KEY_NAME),
        ]
    ],
    ("gke-workers", "nodeConfig.sandboxConfig.sandboxType", None, "gvisor"),
]


def at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = (value or {}).get(key)
    return value


@pytest.mark.parametrize(
    ("name", "path", "strict", "loose"), HARDENING, ids=[f"{row[0]} {row[1]}" for row in HARDENING]
)
def test_the_hardening_guide_is_followed_unless_a_setting_relaxes_it(
    shipped: dict, relaxed: dict, name: str, path: str, strict: Any, loose: Any
) -> None:
    assert at(shipped[name], path) == strict
    assert at(relaxed[name], path) == (strict if loose is SAME else loose)


def test_deletion_protection_follows_the_setting(shipped: dict, relaxed: dict) -> None:
    assert (shipped["gke-cluster"]["deletionProtection"], relaxed["gke-cluster"]["deletionProtection"]) == (False, True)


def test_hardening_md_lists_every_argument() -> None:
    docs = (PROJECT / "components" / "gke" / "HARDENING.md").read_text()
    assert [path for _, path, *_ in HARDENING if f"`{path.removeprefix('nodeConfig.')}`" not in docs] == []


def test_hardening_md_names_exactly_the_existing_settings() -> None:
    docs = (PROJECT / "components" / "gke" / "HARDENING.md").read_text()
    settings = {f"hardening.{field.alias}" for field in Hardening.model_fields.values()}
    assert set(re.findall(r"`(hardening\.\w+)", docs)) == settings
    for name in ("authorizedNetworks", "securityGroup", "releaseChannel"):
        assert name in {field.alias for field in GkeSource.model_fields.values()} and f"`{name}" in docs


CIS = {2: {1: 1}, 3: {1: 0, 2: 0}, 4: {1: 10, 2: 1, 3: 2, 4: 2, 5: 1, 6: 4}}
CIS[5] = {1: 4, 2: 2, 3: 1, 4: 1, 5: 7, 6: 7, 7: 2, 8: 3, 9: 2, 10: 5}


def test_hardening_md_has_the_state_of_every_benchmark_item() -> None:
    docs = (PROJECT / "components" / "gke" / "HARDENING.md").read_text()
    rows = re.findall(r"^\| ((?:\d+\.\d+(?:\.\d+)?(?:, )?)+) [^|]+ \| (on|off|missing)\b", docs, re.MULTILINE)
    found = [item for numbers, _ in rows for item in numbers.split(", ")]
    expected = {
        f"{chapter}.{section}.{item}" if items else f"{chapter}.{section}"
        for chapter, sections in CIS.items()
        for section, items in sections.items()
        for item in range(1, max(items, 1) + 1)
    }
    assert set(found) == expected and len(found) == len(expected)


def test_a_second_up_does_not_change_the_cluster(shipped: dict, relaxed: dict) -> None:
    for each in (shipped["gke-cluster"], relaxed["gke-cluster"]):
        assert changes(KINDS[CLUSTER], each, each)[0] == {}


def test_nodes_use_a_dedicated_account_with_one_role(states: dict, shipped: dict) -> None:
    assert shipped["gke-nodes-account"]["accountId"] == "dask-gke"
    roles = [each["role"] for each in shipped.values() if "role" in each and "member" in each]
    assert roles == ["roles/container.defaultNodeServiceAccount"]
    for pool in POOLS:
        # The account's address is unknown in a preview.
        accounts = [urn.rpartition("::")[2] for urn in states[pool]["propertyDependencies"]["nodeConfig"]]
        assert accounts == ["gke-nodes-account"] and shipped[pool]["nodeConfig"]["serviceAccount"]


def test_worker_nodes_run_only_workers_and_scale_to_zero(shipped: dict) -> None:
    workers = shipped["gke-workers"]
    assert workers["autoscaling"]["totalMinNodeCount"] == 0 and workers["autoscaling"]["totalMaxNodeCount"] == 4
    assert not workers["initialNodeCount"]
    [taint] = workers["nodeConfig"]["taints"]
    assert taint["effect"] == "NO_SCHEDULE"
    values = shipped["dask-release"]["values"]
    toleration = {"key": taint["key"], "operator": "Equal", "value": taint["value"], "effect": "NoSchedule"}
    assert [
        part for part in ("worker", "scheduler", "jupyter") if toleration in values[part].get("tolerations", [])
    ] == ["worker"]
    for part, pool in (("worker", "workers"), ("scheduler", "system"), ("jupyter", "system")):
        assert values[part]["nodeSelector"].items() <= shipped[f"gke-{pool}"]["nodeConfig"]["labels"].items()


def test_only_a_groups_pods_run_on_its_pool_which_is_hardened_like_the_others(relaxed: dict) -> None:
    common, pool = relaxed["gke-workers"], relaxed["gke-workers-big"]
    assert (common["autoscaling"]["totalMaxNodeCount"], pool["autoscaling"]["totalMaxNodeCount"]) == (3 + 1 + 1, 3)
    assert pool["autoscaling"]["totalMinNodeCount"] == pool["initialNodeCount"] == 1
    own = {"machineType": "n2-highmem-8", "spot": True}
    own["labels"] = {"dask-workers-big": "yes", "disk": "ssd"}
    own["taints"] = [{"key": "dask", "value": "workers-big", "effect": "NO_SCHEDULE"}]
    shared = {key: value for key, value in common["nodeConfig"].items() if key != "ephemeralStorageLocalSsdConfig"}
    assert pool["nodeConfig"] == shared | own
    values = relaxed["dask-release"]["values"]
    big, small = values["additional_worker_groups"]
    toleration = {"key": "dask", "operator": "Equal", "value": "workers-big", "effect": "NoSchedule"}
    assert big["tolerations"] == [toleration]
    assert all(toleration not in each["tolerations"] for each in (small, values["worker"], values["scheduler"]))
    assert (big["nodeSelector"], big["replaces"]) == ({"dask-workers-big": "yes"}, ["nodeSelector"])
    assert small["nodeSelector"] == values["worker"]["nodeSelector"] == {"dask-workers": "yes"}
    check = json.loads(relaxed["dask-check"]["environment"]["EXPECT"])
    assert check["workers"] == 3 + 2 + 1


def test_gke_tries_the_entries_of_capacity_in_order_and_returns_to_better_ones(stack: Previews) -> None:
    kinds = [{"spot": True, "zone": "us-central1-b"}, {"machine": "n2-standard-4"}]
    given = {
        "workers": {"maxNodes": 5, "taints": [{"key": "team", "value": "a", "effect": "NO_EXECUTE"}], "capacity": kinds}
    }
    found = inputs(stack.resources(cluster=stack.shipped["cluster"] | given | {"location": "us-central1"}))
    names = ["workers-b-e2-standard-4-spot", "workers-n2-standard-4"]
    pools = [found[f"gke-{name}"] for name in names]
    assert {name for name in found if name.startswith("gke-workers")} == {
        "gke-workers-class",
        *(f"gke-{name}" for name in names),
    }
    assert [pool.get("nodeLocations") for pool in pools] == [["us-central1-b"], None]
    assert [pool["nodeConfig"]["spot"] for pool in pools] == [True, False]
    for pool in pools:
        assert (pool["autoscaling"]["totalMinNodeCount"], pool["autoscaling"]["totalMaxNodeCount"]) == (0, 5)
        label = {"cloud.google.com/compute-class": "dask-workers"}
        assert pool["nodeConfig"]["labels"] == {"dask-workers": "yes"} | label
        taints = {each["key"]: each["value"] for each in pool["nodeConfig"]["taints"]}
        assert taints == {"dask": "workers", "team": "a"} | label
    compute_class = found["gke-workers-class"]
    assert compute_class["metadata"]["name"] == "dask-workers"
    assert compute_class["spec"] == {
        "priorities": [{"nodepools": [name]} for name in names],
        "activeMigration": {"optimizeRulePriority": True},
        "whenUnsatisfiable": "DoNotScaleUp",
    }


def test_worker_nodes_have_local_ssds_for_their_pods_files(shipped: dict, relaxed: dict) -> None:
    found = [
        pools[name]["nodeConfig"].get("ephemeralStorageLocalSsdConfig")
        for pools in (shipped, relaxed)
        for name in POOLS
    ]
    assert found == [None, None, None, {"localSsdCount": 2}]


def test_resources_have_the_stacks_label(shipped: dict) -> None:
    assert shipped["gke-cluster"]["resourceLabels"] == {"dask-stack": "gke"}
    assert all(shipped[pool]["nodeConfig"]["resourceLabels"] == {"dask-stack": "gke"} for pool in POOLS)
    assert shipped["gke-nodes-account"]["description"] == "dask-stack: gke", "accounts have no labels"
    assert shipped["gke-network"]["name"] == "dask-gke"


def test_destroy_leaves_apis_enabled(shipped: dict) -> None:
    services = [each for each in shipped.values() if "service" in each and "disableOnDestroy" in each]
    assert {each["service"].split(".")[0] for each in services} == {"compute", "container", "iam"}
    assert not any(each["disableOnDestroy"] for each in services)


def test_an_existing_network_is_used_unchanged(stack: Previews) -> None:
    given = {"name": "ours", "project": "our-host", "subnetwork": "part", "pods": "p", "services": "s"}
    settings = {"network": given, "labels": {"cost-center": "1"}}
    found = inputs(stack.resources(cluster=stack.shipped["cluster"] | settings))
    assert found.keys().isdisjoint({"gke-network", "gke-subnetwork", "gke-router", "gke-nat"})
    cluster = found["gke-cluster"]
    assert cluster["network"] == "projects/our-host/global/networks/ours"
    labels = {"cost-center": "1", "dask-stack": "gke"}
    assert cluster["resourceLabels"] == labels
    assert all(found[pool]["nodeConfig"]["resourceLabels"] == labels for pool in POOLS)
    assert cluster["subnetwork"] == "projects/our-host/regions/us-central1/subnetworks/part"
    assert cluster["ipAllocationPolicy"] == {"clusterSecondaryRangeName": "p", "servicesSecondaryRangeName": "s"}


def test_a_shared_directory_is_a_filestore_volume_in_the_clusters_network(shipped: dict, relaxed: dict) -> None:
    assert "gke-data" not in shipped and not shipped["gke-cluster"].get("addonsConfig")
    assert relaxed["gke-cluster"]["addonsConfig"]["gcpFilestoreCsiDriverConfig"]["enabled"]
    assert relaxed["gke-data"]["provisioner"] == "filestore.csi.storage.gke.io"
    assert relaxed["gke-data"]["parameters"] == {"tier": "standard", "network": relaxed["gke-network"]["name"]}
    assert relaxed["dask-release"]["values"]["data"]["className"] == relaxed["gke-data"]["metadata"]["name"]
    assert [each for each in relaxed.values() if str(each.get("service")) == "file.googleapis.com"]


def test_each_service_account_gets_the_smallest_role_on_each_bucket(stack: Previews, shipped: dict) -> None:
    assert not [each for each in shipped.values() if "bucket" in each]
    buckets = [{"name": "readable"}, {"name": "writable", "write": True}]
    found = inputs(stack.resources(data={"buckets": buckets}, workers={"serviceAccount": "mine"}))
    roles = {name: (each["bucket"], each["role"]) for name, each in found.items() if "bucket" in each}
    assert roles == {
        f"gke-{account}-bucket-{bucket}": (bucket, f"roles/storage.object{role}")
        for account in ("dask", "dask-scheduler", "mine")
        for bucket, role in (("readable", "Viewer"), ("writable", "User"))
    }
    assert MEMBER.format(12, "my-project", "dask-gke", "mine") == (
        "principal://iam.googleapis.com/projects/12/locations/global/workloadIdentityPools/my-project.svc.id.goog"
        "/subject/ns/dask-gke/sa/mine"
    )


def test_admins_become_cluster_admins(shipped: dict, relaxed: dict) -> None:
    assert not [name for name in shipped if name.startswith("gke-admin-")]
    found = relaxed["gke-admin-me@example.com"]
    assert found["subjects"][0]["name"] == "me@example.com" and found["roleRef"]["name"] == "cluster-admin"


def test_up_lists_missing_prerequisites_before_creating_anything(stack: Previews) -> None:
    stack.start({"config": {KEY: stack.shipped}})
    bare = {name: value for name, value in stack.environ.items() if not name.startswith("GOOGLE_")}
    folder = stack.folder / "bin"
    folder.mkdir()
    for name in ("pulumi", "bash", "sh", "env", "python3", "sed", "dirname", "uname"):
        if found := next((p for d in bare["PATH"].split(os.pathsep) if (p := Path(d) / name).exists()), None):
            (folder / name).symlink_to(found)
    whole, stack.environ = stack.environ, {**bare, "PATH": str(folder), "HOME": str(stack.folder)}
    try:
        with pytest.raises(subprocess.CalledProcessError) as raised:
            stack.pulumi("up", "--yes", "--skip-preview", capture_output=True, text=True)
    finally:
        stack.environ = whole
    for word in ("an account: run `gcloud auth", "kubectl: run `gcloud components", "gke-gcloud-auth-plugin: run"):
        assert word in raised.value.stdout
    assert "+ 1 created" in raised.value.stdout, "more than the stack itself was created"
