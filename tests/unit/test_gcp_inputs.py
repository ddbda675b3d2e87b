"""What the stand-in for gcp says to arguments, without the engine; in a rehearsal's preview it is the same."""

import ipaddress
import sys
from typing import Any

import pytest

from daskstack import engine
from daskstack.engine import PROJECT
from rehearsal import programs

sys.path.append(str(PROJECT / "rehearsal" / "plugins"))  # from where plugins import each other

from command import wire
from command.output import CommandError
from gcp import checks, cloud, derive, inputs, networks
from gcp.kinds import KUBERNETES
from gcp.table import KINDS

CONFIG = {"project": "my-project", "region": "us-central1", "zone": "us-central1-a"}
NETWORK, SUBNETWORK = "compute/network:Network", "compute/subnetwork:Subnetwork"
CLUSTER, POOL = "container/cluster:Cluster", "container/nodePool:NodePool"
ROUTER, NAT = "compute/router:Router", "compute/routerNat:RouterNat"
FIREWALL, ADDRESS = "compute/firewall:Firewall", "compute/address:Address"
DISK, INSTANCE, ATTACHED = "compute/disk:Disk", "compute/instance:Instance", "compute/attachedDisk:AttachedDisk"
IMAGE = {"initializeParams": {"image": "debian-cloud/debian-13"}}
# What is right, to be made wrong in one place.
RIGHT: dict[str, dict[str, Any]] = {
    NETWORK: {"name": "net"},
    SUBNETWORK: {"name": "sub", "network": "net", "ipCidrRange": "10.8.0.0/22"},
    ROUTER: {"name": "router", "network": "net"},
    NAT: {"name": "nat", "router": "router", "sourceSubnetworkIpRangesToNat": "ALL_SUBNETWORKS_ALL_IP_RANGES"},
    CLUSTER: {"name": "c", "removeDefaultNodePool": True, "initialNodeCount": 1},
    POOL: {"name": "pool", "cluster": "c"},
    FIREWALL: {
        "name": "fw",
        "network": "net",
        "allows": [{"protocol": "tcp", "ports": ["22"]}],
        "sourceRanges": ["::/0"],
    },
    ADDRESS: {"name": "address"},
    DISK: {"name": "disk", "size": 10},
    INSTANCE: {"name": "vm", "machineType": "e2-small", "bootDisk": IMAGE, "networkInterfaces": [{"network": "net"}]},
    ATTACHED: {"disk": "disk", "instance": "vm"},
    "serviceaccount/account:Account": {"accountId": "dask-nodes"},
    "projects/iAMCustomRole:IAMCustomRole": {"roleId": "dask_gke", "title": "t", "permissions": ["compute.disks.get"]},
    "projects/iAMMember:IAMMember": {"project": "my-project", "role": "roles/viewer", "member": "user:a@b.org"},
    "projects/service:Service": {"service": "compute.googleapis.com"},
}


def problems(kind: str, changed: dict[str, Any], config: dict[str, Any] = CONFIG) -> dict[str, str]:
    return dict(inputs.problems(kind, RIGHT[kind] | changed, config))


@pytest.mark.parametrize("kind", RIGHT)
def test_valid_arguments_are_accepted(kind):
    assert problems(kind, {}) == {}


@pytest.mark.parametrize(
    ("kind", "changed", "place", "reason"),
    [
        (NETWORK, {"mtuu": 1}, "mtuu", "did you mean mtu?"),
        (NETWORK, {"mtu": "large"}, "mtu", "expected a value of type int"),
        (NETWORK, {"mtu": 9000}, "mtu", "expected 1300 to 8896, found 9000"),
        (NETWORK, {"name": "Net"}, "name", "lower-case"),
        (NETWORK, {"name": "n" * 64}, "name", "1 to 63"),
        (NETWORK, {"routingMode": "LOCAL"}, "routingMode", "REGIONAL, GLOBAL"),
        (SUBNETWORK, {"ipCidrRange": "10.8.0.1/22"}, "ipCidrRange", "has host bits set"),
        (SUBNETWORK, {"ipCidrRange": "10.8.0.0"}, "ipCidrRange", "expected a network"),
        (SUBNETWORK, {"ipCidrRange": "10.8.0.0/30"}, "ipCidrRange", "of /4 to /29"),
        (SUBNETWORK, {"region": "here"}, "region", "expected a region"),
        (
            SUBNETWORK,
            {"secondaryIpRanges": [{"rangeName": "pods", "ipCidrRange": "10.8.1.0/24"}]},
            "secondaryIpRanges[0].ipCidrRange",
            "10.8.1.0/24 overlaps 10.8.0.0/22",
        ),
        (
            SUBNETWORK,
            {"secondaryIpRanges": [{"ipCidrRange": "10.9.0.0/24"}]},
            "secondaryIpRanges[0].rangeName",
            "required",
        ),
        (ROUTER, {"nccGateway": "g"}, "nccGateway", "conflicts with network"),
        (ROUTER, {"bgp": {"asn": 1}}, "bgp.asn", "private ASN"),
        (NAT, {"logConfig": {"enable": True}}, "logConfig.filter", "is required"),
        (NAT, {"natIps": ["a"]}, "natIps", "MANUAL_ONLY"),
        (
            NAT,
            {"subnetworks": [{"name": "a", "sourceIpRangesToNats": ["ALL_IP_RANGES"]}]},
            "subnetworks",
            "LIST_OF_SUBNETWORKS",
        ),
        (CLUSTER, {"name": "c" * 41}, "name", "1 to 40"),
        (CLUSTER, {"location": "europe"}, "location", "a region or a zone"),
        (CLUSTER, {"enableAutopilot": False}, "removeDefaultNodePool", "conflicts with enableAutopilot"),
        (CLUSTER, {"nodePools": [{}]}, "initialNodeCount", "conflicts with nodePools"),
        (CLUSTER, {"initialNodeCount": 0}, "initialNodeCount", "must be at least 1"),
        (CLUSTER, {"removeDefaultNodePool": False}, "removeDefaultNodePool", "keeps its default pool"),
        (
            CLUSTER,
            {"ipAllocationPolicy": {"clusterIpv4CidrBlock": "/14", "servicesSecondaryRangeName": "s"}},
            "ipAllocationPolicy.clusterIpv4CidrBlock",
            "conflicts with ipAllocationPolicy.servicesSecondaryRangeName",
        ),
        (
            CLUSTER,
            {"clusterIpv4Cidr": "10.0.0.0/14", "ipAllocationPolicy": {}},
            "clusterIpv4Cidr",
            "conflicts with ipAllocationPolicy",
        ),
        (CLUSTER, {"clusterIpv4Cidr": "8.0.0.0/14"}, "clusterIpv4Cidr", "within 10.0.0.0/8"),
        (CLUSTER, {"privateClusterConfig": {}}, "privateClusterConfig", "set at least one of"),
        (
            CLUSTER,
            {"privateClusterConfig": {"masterIpv4CidrBlock": "10.0.0.0/24"}},
            "privateClusterConfig.masterIpv4CidrBlock",
            "of /28",
        ),
        (
            CLUSTER,
            {"masterAuthorizedNetworksConfig": {"cidrBlocks": [{"cidrBlock": "me"}]}},
            "masterAuthorizedNetworksConfig.cidrBlocks[0].cidrBlock",
            "expected a network",
        ),
        (CLUSTER, {"networkingMode": "ROUTES", "ipAllocationPolicy": {}}, "ipAllocationPolicy", "VPC_NATIVE"),
        (CLUSTER, {"resourceLabels": {"Label": "a"}}, "resourceLabels", "lower-case letters"),
        (CLUSTER, {"nodeConfig": {"diskSizeGb": 9}}, "nodeConfig.diskSizeGb", "at least 10, found 9"),
        (CLUSTER, {"releaseChannel": {"channel": "FAST"}}, "releaseChannel.channel", "RAPID"),
        (
            CLUSTER,
            {"project": "my-project", "workloadIdentityConfig": {"workloadPool": "other.svc.id.goog"}},
            "workloadIdentityConfig.workloadPool",
            "my-project.svc.id.goog",
        ),
        (
            CLUSTER,
            {"masterAuth": {"clientCertificateConfig": {"issueClientCertificate": True}}},
            "masterAuth.clientCertificateConfig.issueClientCertificate",
            "does not support client certificates",
        ),
        (POOL, {"cluster": None}, "cluster", "is required"),
        (POOL, {"namePrefix": "p"}, "namePrefix", "conflicts with name"),
        (POOL, {"nodeCount": 1, "autoscaling": {"maxNodeCount": 2}}, "nodeCount", "conflicts with autoscaling"),
        (POOL, {"autoscaling": {"minNodeCount": 1, "totalMaxNodeCount": 2}}, "autoscaling", "is per zone"),
        (POOL, {"autoscaling": {"minNodeCount": 3, "maxNodeCount": 2}}, "autoscaling.minNodeCount", "is greater than"),
        (POOL, {"nodeConfig": {"machineType": "big"}}, "nodeConfig.machineType", "a machine type"),
        (POOL, {"nodeConfig": {"labels": {"a b": "c"}}}, "nodeConfig.labels", "Kubernetes labels"),
        (
            POOL,
            {"nodeConfig": {"taints": [{"key": "a", "value": "b", "effect": "NoSchedule"}]}},
            "nodeConfig.taints[0].effect",
            "NO_SCHEDULE",
        ),
        (
            POOL,
            {"nodeConfig": {"kubeletConfig": {"readonly": 1}}},
            "nodeConfig.kubeletConfig.readonly",
            "unknown argument",
        ),
        (POOL, {"nodeConfig": []}, "nodeConfig", "expected an object"),
        (FIREWALL, {"priority": 70000}, "priority", "0 to 65535"),
        (FIREWALL, {"sourceRanges": None}, "sourceRanges", "is required for INGRESS"),
        (FIREWALL, {"denies": [{"protocol": "tcp"}]}, "allows", "either allows or denies"),
        (FIREWALL, {"sourceRanges": ["10.0.0.1/8"]}, "sourceRanges[0]", "has host bits set"),
        (FIREWALL, {"allows": [{"protocol": "tcp", "ports": ["ssh"]}]}, "allows[0].ports[0]", "such as 22"),
        (FIREWALL, {"sourceTags": ["a"], "targetServiceAccounts": ["b"]}, "targetServiceAccounts", "sourceTags"),
        (ADDRESS, {"addressType": "PUBLIC"}, "addressType", "INTERNAL, EXTERNAL"),
        (DISK, {"size": 0}, "size", "1 to 65536"),
        (DISK, {"zone": "us-central1"}, "zone", "a zone"),
        (
            INSTANCE,
            {"bootDisk": IMAGE | {"source": "disk"}},
            "bootDisk.source",
            "conflicts with bootDisk.initializeParams",
        ),
        (INSTANCE, {"bootDisk": {}}, "bootDisk", "initializeParams or source"),
        (INSTANCE, {"networkInterfaces": None}, "networkInterfaces", "is required"),
        (INSTANCE, {"scheduling": {"provisioningModel": "SPOT"}}, "scheduling.automaticRestart", "must be false"),
        (INSTANCE, {"tags": ["A"]}, "tags[0]", "lower-case"),
        (INSTANCE, {"labels": {"a": "A"}}, "labels", "lower-case"),
        (INSTANCE, {"bootDisk": {"initializeParams": {"size": 5}}}, "bootDisk.initializeParams.size", "at least 10"),
        ("serviceaccount/account:Account", {"accountId": "dask"}, "accountId", "6 to 30"),
        ("projects/iAMMember:IAMMember", {"role": "viewer"}, "role", "such as roles/viewer"),
        ("projects/iAMMember:IAMMember", {"member": "a@b.org"}, "member", "serviceAccount:"),
        ("projects/service:Service", {"service": "compute"}, "service", "compute.googleapis.com"),
    ],
)
def test_a_wrong_argument_is_rejected_with_its_path_and_a_valid_value(kind, changed, place, reason):
    given = {key: value for key, value in (RIGHT[kind] | changed).items() if value is not None}
    found = dict(inputs.problems(kind, given, CONFIG))
    assert reason in found[place]


@pytest.mark.parametrize("kind", RIGHT)
def test_unknown_values_are_accepted(kind):
    known = {"name", "accountId", "removeDefaultNodePool"}
    assert problems(kind, {key: wire.UNKNOWN for key in RIGHT[kind] if key not in known}) == {}


def test_changing_an_immutable_field_in_a_block_causes_a_replacement():
    init = {"image": "debian-cloud/debian-13", "resourcePolicies": ["a"]}
    old = RIGHT[INSTANCE] | {"bootDisk": {"initializeParams": init}}
    new = RIGHT[INSTANCE] | {"bootDisk": {"initializeParams": init | {"resourcePolicies": ["b"]}}}
    assert inputs.changes(KINDS[INSTANCE], old, new)[1] == ["bootDisk.initializeParams.resourcePolicies"]


def test_a_documented_default_equals_no_value_and_appears_in_the_outputs():
    old, new = RIGHT[INSTANCE], RIGHT[INSTANCE] | {"scheduling": {"automaticRestart": True}}
    assert inputs.changes(KINDS[INSTANCE], old, new)[0] == {}
    assert cloud.new_record(INSTANCE, new, CONFIG)[1]["outputs"]["scheduling"]["preemptible"] is False
    assert cloud.new_record(NETWORK, RIGHT[NETWORK], CONFIG)[1]["outputs"]["deletionPolicy"] == "DELETE"


def test_known_fields_are_checked_even_if_others_are_unknown():
    config = {"serviceAccount": wire.UNKNOWN, "labels": {"key": wire.UNKNOWN}}
    assert problems(POOL, {"nodeConfig": config, "nodeLocations": [wire.UNKNOWN]}) == {}
    assert set(problems(POOL, {"nodeConfig": config | {"diskSizeGb": 9}})) == {"nodeConfig.diskSizeGb"}


def test_a_missing_zone_or_region_is_an_error():
    assert set(problems(CLUSTER, {}, {})) == {"project", "location"}
    assert set(problems(SUBNETWORK, {}, {})) == {"project", "region"}
    assert problems(SUBNETWORK, {}, {"project": "my-project", "zone": "us-central1-a"}) == {}
    assert problems(POOL, {"cluster": "projects/my-project/locations/us-central1/clusters/c"}, {}) == {}


@pytest.mark.parametrize(
    ("kind", "old", "new", "expected"),
    [
        (NETWORK, {}, {"mtu": 1500}, "update"),
        (NETWORK, {}, {"autoCreateSubnetworks": True}, "same"),
        (NETWORK, {}, {"autoCreateSubnetworks": False}, "replace"),
        (SUBNETWORK, {}, {"network": "projects/my-project/global/networks/net"}, "same"),
        (SUBNETWORK, {}, {"network": "other"}, "replace"),
        (SUBNETWORK, {}, {"ipCidrRange": "10.8.0.0/20"}, "update"),
        (SUBNETWORK, {}, {"ipCidrRange": "10.8.0.0/24"}, "replace"),
        (CLUSTER, {}, {"deletionProtection": False}, "update"),
        (CLUSTER, {}, {"resourceLabels": {"a": "b"}}, "update"),
        (CLUSTER, {}, {"location": "us-central1"}, "replace"),
        (CLUSTER, {}, {"datapathProvider": "ADVANCED_DATAPATH"}, "replace"),
        (CLUSTER, {}, {"releaseChannel": {"channel": "RAPID"}}, "update"),
        (POOL, {"nodeCount": 1}, {"nodeCount": 2}, "update"),
        (POOL, {}, {"autoscaling": {"maxNodeCount": 2}}, "update"),
        (POOL, {"nodeConfig": {"machineType": "e2-small"}}, {"nodeConfig": {"machineType": "e2-large"}}, "update"),
        (POOL, {"nodeConfig": {}}, {"nodeConfig": {"spot": False}}, "same"),
        (POOL, {"nodeConfig": {}}, {"nodeConfig": {"spot": True}}, "replace"),
        (POOL, {"nodeConfig": {"oauthScopes": ["a"]}}, {"nodeConfig": {"oauthScopes": ["b"]}}, "replace"),
        (POOL, {}, {"name": "other"}, "replace"),
        (CLUSTER, {}, {"masterAuth": {"clientCertificateConfig": {"issueClientCertificate": False}}}, "same"),
        (FIREWALL, {}, {"priority": 1}, "update"),
        (FIREWALL, {}, {"direction": "EGRESS"}, "replace"),
        (ADDRESS, {}, {"labels": {"a": "b"}}, "update"),
        (ADDRESS, {}, {"networkTier": "STANDARD"}, "replace"),
        (DISK, {}, {"size": 20}, "update"),
        (DISK, {}, {"size": 5}, "replace"),
        (INSTANCE, {}, {"machineType": "e2-large"}, "update"),
        (INSTANCE, {}, {"scheduling": {"onHostMaintenance": "TERMINATE"}}, "update"),
        (INSTANCE, {}, {"scheduling": {"preemptible": True}}, "replace"),
        (INSTANCE, {}, {"attachedDisks": [{"source": "disk"}]}, "update"),
        (INSTANCE, {}, {"networkInterfaces": [{"network": "projects/my-project/global/networks/net"}]}, "same"),
        (INSTANCE, {}, {"networkInterfaces": [{"network": "net", "accessConfigs": [{}]}]}, "update"),
        (INSTANCE, {}, {"networkInterfaces": [{"network": "net", "nicType": "GVNIC"}]}, "replace"),
        (INSTANCE, {}, {"networkInterfaces": [{"network": "net"}, {"network": "other"}]}, "replace"),
        (INSTANCE, {}, {"bootDisk": {"initializeParams": {"image": "other"}}}, "replace"),
    ],
)
def test_changes_are_in_place_where_the_official_plugin_supports_it(kind, old, new, expected):
    found, replacing, first = inputs.changes(KINDS[kind], RIGHT[kind] | old, RIGHT[kind] | new)
    assert ("replace" if replacing else "update" if found else "same") == expected
    assert first == (expected == "replace" and "name" not in new), "a given name is free only once the old one has gone"


def test_a_generated_name_does_not_change():
    made = inputs.complete(KINDS[CLUSTER], {}, {}, "My-Cluster")
    assert made["name"].startswith("my-cluster-") and len(made["name"]) == len("my-cluster-") + 7
    assert inputs.complete(KINDS[CLUSTER], {}, made, "My-Cluster") == made
    assert inputs.complete(KINDS[CLUSTER], {"name": "c"}, made, "My-Cluster")["name"] == "c"


def test_the_projects_own_labels_and_the_providers_are_effective():
    config = CONFIG | {"defaultLabels": {"team": "a", "stack": "default"}}
    _, record = cloud.new_record(
        CLUSTER,
        RIGHT[CLUSTER] | {"resourceLabels": {"stack": "mine"}},
        config,
        kubernetes={"server": "", "authority": ""},
    )
    assert record["outputs"]["effectiveLabels"] == {"goog-pulumi-provisioned": "true", "team": "a", "stack": "mine"}


def test_addresses_are_free_in_their_range_and_never_the_callers(monkeypatch):
    known: dict[str, Any] = {}

    def make(kind: str, name: str, **arguments: Any) -> dict[str, Any]:
        inputs = RIGHT[kind] | {"name": name} | arguments
        made = next((record["made"] for record in known.values() if record["inputs"].get("name") == name), 0)
        identity, record = cloud.new_record(kind, inputs, CONFIG, made, known=known.items())
        known[identity] = record
        return record["outputs"]

    make(SUBNETWORK, "sub", ipCidrRange="10.9.0.0/29")
    inner = {"addressType": "INTERNAL", "subnetwork": "sub"}
    assert [make(ADDRESS, name, **inner)["address"] for name in ("a", "b")] == ["10.9.0.2", "10.9.0.3"]
    interface = {"subnetwork": "sub", "networkIp": "10.9.0.3"}
    make(INSTANCE, "given", networkInterfaces=[interface])
    [own] = make(INSTANCE, "own", networkInterfaces=[{"subnetwork": "sub", "accessConfigs": [{}]}])["networkInterfaces"]
    assert own["networkIp"] == "10.9.0.4"
    # A change of something else leaves it, also where a lower one is free by now.
    del known["projects/my-project/regions/us-central1/addresses/a"]
    changed = make(INSTANCE, "own", networkInterfaces=[{"subnetwork": "sub", "accessConfigs": [{}]}], labels={"a": "b"})
    assert changed["networkInterfaces"] == [own]
    assert make(ADDRESS, "b", **inner, labels={"a": "b"})["address"] == "10.9.0.3"
    assert [make(ADDRESS, name, **inner)["address"] for name in ("c", "d")] == ["10.9.0.2", "10.9.0.5"]
    with pytest.raises(CommandError, match="no address is left for"):
        make(ADDRESS, "e", **inner)

    monkeypatch.setattr(networks, "TESTS", ipaddress.IPv4Network("198.18.0.0/30"))
    monkeypatch.setenv("DASKSTACK_REHEARSAL_CALLER", "198.18.0.1")
    known.clear()
    found = {make(ADDRESS, name)["address"] for name in ("one", "two", "three")}
    assert found == {"198.18.0.0", "198.18.0.2", "198.18.0.3"}


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"desiredStatus": "SUSPENDED"}, "desiredStatus"),
        ({"metadataStartupScript": "true"}, "metadataStartupScript"),
        ({"metadata": {"shutdown-script": "true"}}, "metadata.shutdown-script"),
        ({"metadata": {"enable-oslogin": "TRUE"}}, "metadata.enable-oslogin"),
        ({"metadata": {"ssh-keys": "admin:ssh-ed25519 A\nroot:ssh-ed25519 B\n"}}, "metadata.ssh-keys"),
        ({"networkInterfaces": [{"network": "net"}, {"network": "other"}]}, "networkInterfaces"),
    ],
)
def test_arguments_that_a_rehearsed_machine_would_ignore_are_rejected(monkeypatch, changed, place):
    assert problems(INSTANCE, changed) == {}
    monkeypatch.setenv("DASKSTACK_REHEARSAL_MACHINES", "{}")
    assert list(problems(INSTANCE, changed)) == [place]
    assert problems(INSTANCE, {"metadata": {"enable-oslogin": "FALSE", "ssh-keys": "admin:ssh-ed25519 A\n"}}) == {}


def test_a_change_stops_a_machine_only_if_the_program_allows_it():
    old, new = RIGHT[INSTANCE], RIGHT[INSTANCE] | {"machineType": "e2-large"}
    with pytest.raises(CommandError, match="cannot change machineType while the machine runs"):
        inputs.refuse_to_stop(INSTANCE, old, new)
    inputs.refuse_to_stop(INSTANCE, old, new | {"allowStoppingForUpdate": True})
    inputs.refuse_to_stop(INSTANCE, old, old | {"labels": {"a": "b"}})


def test_versions_are_those_of_the_kubernetes_and_of_the_package():
    assert KUBERNETES == programs.KUBERNETES
    assert checks.KNOWN["version"] == engine.GCP_PLUGIN
    assert checks.KNOWN["resources"].keys() == KINDS.keys()


def test_the_stand_ins_arguments_match_the_official_package():
    committed = PROJECT / "rehearsal" / "plugins" / "gcp" / "arguments.json"
    assert committed.read_text() == derive.derived(), f"run {sys.executable} rehearsal/plugins/gcp/derive.py"


def said(token: str, path: str) -> dict[str, Any]:
    """What the package's documentation says of an argument; fails where there is unknown argument."""
    kind, facts = checks.KNOWN["resources"][token], {}
    for key in path.replace("[]", "").split("."):
        facts = checks.KNOWN["said"].get(kind, {}).get(key, {})
        kind = checks.KNOWN["types"][kind][key].strip("!{}[]")
    return facts


@pytest.mark.parametrize("token", KINDS)
def test_only_facts_missing_from_the_package_are_written_by_hand(token):
    kind = KINDS[token]
    by_hand = [
        *(("of", path) for path in kind.checks),
        *(("least", path) for path in kind.checks),
        *(("fixed", path) for path in kind.fixed),
        *(("default", path) for path in kind.defaults),
    ]
    assert [pair for pair in by_hand if pair[0] in said(token, pair[1])] == []


def test_each_correction_of_the_documentation_corrects_something():
    for kind, argument, instead, reason in checks.CORRECTIONS:
        facts = checks.KNOWN["said"][kind][argument]
        assert all(facts[what] != value for what, value in instead.items()), f"{kind}.{argument}: {reason}"


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("The mode. Possible values are: `A`, `B`.", "str", {"of": ["A", "B"]}),
        ("One of SCSI or NVME. More.", "str", {"of": ["SCSI", "NVME"]}),
        ('Accepted values are:\n\n* `"A_B"`: text\n* `"C"`: other C_D', "str", {"of": ["A_B", "C"]}),
        ("Which to use. `A` (default) or `B_C` or `D`.", "str", {"of": ["A", "B_C", "D"]}),
        ("The name. Defaults to `a-b`.", "str", {"default": "a-b"}),
        ("Defaults to `true`.", "bool", {"default": True}),
        ("Defaults to 100GB.", "int", {"default": 100}),
        ("Defaults to `a` if that is there; otherwise defaults to `b`.", "str", {}),
        ("Valid values are described in the GUIDE.", "str", {}),
        ("This must be between 2 and 10, inclusive.", "int", {"least": 2, "most": 10}),
        ("A name. Changing this forces a new resource to be created.", "str", {"fixed": True}),
        ("Conflicts with `other_name`.", "str", {"apart": ["otherName"]}),
    ],
)
def test_documentation_is_read_as_it_is_meant(text, kind, expected):
    assert derive.facts_of(text, "name", kind, {"name": "name", "other_name": "otherName"}) == expected
