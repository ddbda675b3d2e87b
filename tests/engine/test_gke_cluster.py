"""The program with a GKE cluster of its own, in the real engine with the stand-in for Google Cloud."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daskstack.engine import PROJECT
from settings.gke import GkeSource, Hardening
from tests.engine.previews import Previews
from tools.rehearse import KEY

sys.path.append(str(PROJECT / "rehearsal" / "plugins"))  # from where plugins import each other

from gcp.inputs import changes
from gcp.kinds import CLUSTER
from gcp.table import KINDS


class Stack(Previews):
    def inputs(self, **cluster: Any) -> dict[str, dict[str, Any]]:
        """What a preview would make, by name: the inputs of each resource."""
        states = self.states(cluster=self.shipped["cluster"] | cluster)
        return {state["urn"].split("::")[-1]: state.get("inputs", {}) for state in states}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return Stack("gke", tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="module")
def shipped(stack: Stack) -> dict[str, dict[str, Any]]:
    return stack.inputs()


KEY_NAME = "projects/my-project/locations/us-central1/keyRings/ring/cryptoKeys/key"
# All that a stack can have otherwise at once.
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


@pytest.fixture(scope="module")
def relaxed(stack: Stack) -> dict[str, dict[str, Any]]:
    return stack.inputs(**RELAXED)


SAME = object()  # what no setting relaxes
POOLS = ("gke-system", "gke-workers")
# What Google's hardening guide asks for: where it is said, what is said, and what instead where RELAXED has it so.
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


def at(inputs: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        inputs = (inputs or {}).get(key)
    return inputs


@pytest.mark.parametrize(
    ("name", "path", "strict", "loose"), HARDENING, ids=[f"{row[0]} {row[1]}" for row in HARDENING]
)
def test_each_line_of_the_hardening_guide_holds_unless_the_stack_relaxes_it(
    shipped: dict, relaxed: dict, name: str, path: str, strict: Any, loose: Any
) -> None:
    assert at(shipped[name], path) == strict
    assert at(relaxed[name], path) == (strict if loose is SAME else loose)


def test_a_cluster_is_protected_from_deletion_where_the_stack_says_so(shipped: dict, relaxed: dict) -> None:
    assert (shipped["gke-cluster"]["deletionProtection"], relaxed["gke-cluster"]["deletionProtection"]) == (False, True)


def test_the_hardening_table_of_the_docs_has_each_line() -> None:
    docs = (PROJECT / "components" / "gke" / "HARDENING.md").read_text()
    assert [path for _, path, *_ in HARDENING if f"`{path.removeprefix('nodeConfig.')}`" not in docs] == []


def test_every_setting_that_the_hardening_page_names_is_one_and_every_hardening_setting_is_on_it() -> None:
    docs = (PROJECT / "components" / "gke" / "HARDENING.md").read_text()
    settings = {f"hardening.{field.alias}" for field in Hardening.model_fields.values()}
    assert set(re.findall(r"`(hardening\.\w+)", docs)) == settings
    for name in ("authorizedNetworks", "securityGroup", "releaseChannel"):
        assert name in {field.alias for field in GkeSource.model_fields.values()} and f"`{name}" in docs


CIS = {2: {1: 1}, 3: {1: 0, 2: 0}, 4: {1: 10, 2: 1, 3: 2, 4: 2, 5: 1, 6: 4}}
CIS[5] = {1: 4, 2: 2, 3: 1, 4: 1, 5: 7, 6: 7, 7: 2, 8: 3, 9: 2, 10: 5}


def test_the_hardening_page_has_each_item_of_the_benchmark_with_its_state() -> None:
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


def test_a_second_up_changes_nothing_of_what_google_reports(shipped: dict, relaxed: dict) -> None:
    for inputs in (shipped["gke-cluster"], relaxed["gke-cluster"]):
        assert changes(KINDS[CLUSTER], inputs, inputs)[0] == {}


def test_nodes_have_an_account_of_their_own_with_the_least_roles(shipped: dict) -> None:
    assert shipped["gke-nodes-account"]["accountId"] == "dask-gke"
    roles = [inputs["role"] for inputs in shipped.values() if "role" in inputs and "member" in inputs]
    assert roles == ["roles/container.defaultNodeServiceAccount"]


def test_workers_nodes_are_theirs_alone_and_begin_with_none(shipped: dict) -> None:
    workers = shipped["gke-workers"]
    assert workers["autoscaling"]["totalMinNodeCount"] == 0 and workers["autoscaling"]["totalMaxNodeCount"] == 4
    [taint] = workers["nodeConfig"]["taints"]
    values = shipped["dask-release"]["values"]
    assert {"key": taint["key"], "operator": "Equal", "value": taint["value"], "effect": "NoSchedule"} in values[
        "worker"
    ]["tolerations"]
    for part, pool in (("worker", "workers"), ("scheduler", "system"), ("jupyter", "system")):
        assert values[part]["nodeSelector"].items() <= shipped[f"gke-{pool}"]["nodeConfig"]["labels"].items()


def test_all_that_can_have_a_label_has_the_stacks(shipped: dict) -> None:
    assert shipped["gke-cluster"]["resourceLabels"] == {"dask-stack": "gke"}
    assert all(shipped[pool]["nodeConfig"]["resourceLabels"] == {"dask-stack": "gke"} for pool in POOLS)
    assert shipped["gke-network"]["name"] == "dask-gke"


def test_apis_stay_enabled_when_the_stack_goes(shipped: dict) -> None:
    services = [inputs for inputs in shipped.values() if "service" in inputs and "disableOnDestroy" in inputs]
    assert {each["service"].split(".")[0] for each in services} == {"compute", "container", "iam"}
    assert not any(each["disableOnDestroy"] for each in services)


def test_a_network_that_is_there_is_used_as_it_is(stack: Stack) -> None:
    given = {"name": "ours", "subnetwork": "part", "pods": "p", "services": "s"}
    found = stack.inputs(network=given)
    assert found.keys().isdisjoint({"gke-network", "gke-subnetwork", "gke-router", "gke-nat"})
    assert found["gke-cluster"]["subnetwork"] == "projects/my-project/regions/us-central1/subnetworks/part"


def test_admins_are_bound_by_their_address(shipped: dict, relaxed: dict) -> None:
    assert not [name for name in shipped if name.startswith("gke-admin-")]
    found = relaxed["gke-admin-me@example.com"]
    assert found["subjects"][0]["name"] == "me@example.com" and found["roleRef"]["name"] == "cluster-admin"


def test_up_names_what_is_missing_on_this_computer_before_anything_is_made(stack: Stack) -> None:
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
    assert "+ 1 created" in raised.value.stdout, "more than the stack itself"
