"""GKE clusters and node pools."""

import re
from collections.abc import Iterator
from typing import Any

from command.output import Found
from gcp import checks
from gcp.checks import Check, between, network, one_of
from gcp.kinds import (
    CLUSTER,
    COMPUTE,
    KUBERNETES,
    NETWORK,
    POOL,
    SUBNETWORK,
    Kind,
    Link,
    State,
    always,
    digest,
    label_fingerprint,
    last,
)


def cluster_rules(inputs: dict[str, Any]) -> Iterator[Found]:
    pools, autopilot, removed = (inputs.get(name) for name in ("nodePools", "enableAutopilot", "removeDefaultNodePool"))
    if not pools and autopilot is not True and not inputs.get("initialNodeCount"):
        yield "initialNodeCount", "must be at least 1, even if removeDefaultNodePool is true"
    if removed is True and "nodeVersion" in inputs:
        yield "nodeVersion", "applies to the default pool, which removeDefaultNodePool removes"
    if inputs.get("networkingMode") == "ROUTES" and "ipAllocationPolicy" in inputs:
        yield "ipAllocationPolicy", "needs networkingMode VPC_NATIVE"
    for block, names in AT_LEAST_ONE.items():
        for _, value in checks.at(inputs, block):
            if not any(name in value for name in names):
                yield block, f"set at least one of {', '.join(names)}"
    for _, value in checks.at(inputs, "maintenancePolicy"):
        if ("dailyMaintenanceWindow" in value) == ("recurringWindow" in value):
            yield "maintenancePolicy", "set either dailyMaintenanceWindow or recurringWindow"
    project = inputs.get("project")
    for place, value in checks.at(inputs, "workloadIdentityConfig.workloadPool"):
        if project and checks.PROJECT(project) == "" and value != f"{project}.svc.id.goog":
            yield place, f"expected this project's pool {project}.svc.id.goog, found {value}"
    if autopilot is True and isinstance(scaling := inputs.get("clusterAutoscaling"), dict) and "enabled" in scaling:
        yield "clusterAutoscaling.enabled", "conflicts with enableAutopilot; use only one of them"


AT_LEAST_ONE = {
    "privateClusterConfig": (
        "enablePrivateEndpoint",
        "enablePrivateNodes",
        "masterIpv4CidrBlock",
        "privateEndpointSubnetwork",
        "masterGlobalAccessConfig",
    ),
    "protectConfig": ("workloadConfig", "workloadVulnerabilityMode"),
}


def pool_rules(inputs: dict[str, Any]) -> Iterator[Found]:
    scaling = inputs.get("autoscaling")
    if isinstance(scaling, dict):
        zonal = {"minNodeCount", "maxNodeCount"} & scaling.keys()
        total = {"totalMinNodeCount", "totalMaxNodeCount"} & scaling.keys()
        if zonal and total:
            yield (
                "autoscaling",
                f"{sorted(zonal)[0]} is per zone, but {sorted(total)[0]} is for all zones; use only one kind",
            )
        if not zonal and not total:
            yield "autoscaling", "set maxNodeCount or totalMaxNodeCount"
        for least, most in (("minNodeCount", "maxNodeCount"), ("totalMinNodeCount", "totalMaxNodeCount")):
            pair = [value for name in (least, most) for _, value in checks.at(scaling, name)]
            if len(pair) == 2 and int(pair[0]) > int(pair[1]):
                yield f"autoscaling.{least}", f"{pair[0]} is greater than {most}, {pair[1]}"
    settings = inputs.get("upgradeSettings")
    if isinstance(settings, dict) and settings.get("maxSurge") == 0 and settings.get("maxUnavailable", 0) == 0:
        yield "upgradeSettings", "maxSurge and maxUnavailable are both 0, so nodes could not be upgraded"


def private_endpoint(inputs: dict[str, Any]) -> dict[str, Any]:
    """If IP endpoints are disabled, Google reports the endpoint as private."""
    enabled = dict(checks.at(inputs, "controlPlaneEndpointsConfig.ipEndpointsConfig.enabled"))
    return {"privateClusterConfig": {"enablePrivateEndpoint": True}} if False in enabled.values() else {}


def cluster_link(state: State) -> str:
    place = "locations" if re.fullmatch(r"[a-z]+-[a-z]+\d+", state.where["location"]) else "zones"
    return f"https://container.googleapis.com/v1beta1/{state.identity.replace('locations', place, 1)}"


def node_zones(state: State) -> list[str]:
    location = state.where["location"]
    if checks.ZONE(location) == "":
        return state.given.get("nodeLocations") or [location]
    return state.given.get("nodeLocations") or [f"{location}-{letter}" for letter in "abc"]


def more_zones(state: State) -> list[str]:
    return [zone for zone in node_zones(state) if zone != state.where["location"]]


def group_urls(state: State) -> list[str]:
    cluster, name = last(state.given["cluster"]), state.given["name"]
    group = f"gke-{cluster}-{name}"[:44].rstrip("-") + f"-{digest(state.identity)[:8]}-grp"
    project = state.where["project"]
    return [f"{COMPUTE}/projects/{project}/zones/{zone}/instanceGroupManagers/{group}" for zone in node_zones(state)]


def first_count(state: State) -> int:
    given = state.given
    scaling = given.get("autoscaling", {})
    return given.get("nodeCount", scaling.get("minNodeCount", scaling.get("totalMinNodeCount", 1)))


def node_checks(path: str) -> dict[str, Check]:
    return {
        f"{path}.diskSizeGb": between(10),
        f"{path}.bootDisk.sizeGb": between(10),
        f"{path}.machineType": checks.MACHINE,
        f"{path}.labels": checks.node_labels,
        f"{path}.resourceLabels": checks.labels,
        f"{path}.localSsdCount": between(0),
        f"{path}.serviceAccount": checks.EMAIL,
        f"{path}.confidentialNodes.confidentialInstanceType": one_of("SEV", "SEV_SNP", "TDX"),
    }


# Changes of all other node settings are applied in place, by replacing the nodes one after another.
NODE_FIXED = (
    "bootDiskKmsKey",
    "confidentialNodes",
    "ephemeralStorageConfig",
    "ephemeralStorageLocalSsdConfig",
    "guestAccelerators",
    "localNvmeSsdBlockConfig",
    "localSsdCount",
    "metadata",
    "minCpuPlatform",
    "nodeGroup",
    "oauthScopes",
    "preemptible",
    "reservationAffinity",
    "sandboxConfig",
    "secondaryBootDisks",
    "serviceAccount",
    "shieldedInstanceConfig",
    "soleTenantConfig",
    "spot",
)


def node_fixed(path: str) -> tuple[str, ...]:
    return tuple(f"{path}.{name}" for name in NODE_FIXED)


def ranges(path: str) -> Iterator[tuple[str, str]]:
    for block in ("clusterIpv4CidrBlock", "servicesIpv4CidrBlock"):
        for name in ("clusterSecondaryRangeName", "servicesSecondaryRangeName"):
            yield f"{path}.{block}", f"{path}.{name}"


CLUSTERS = {
    CLUSTER: Kind(
        "projects/{project}/locations/{location}/clusters/{name}",
        longest=40,
        checks={
            "name": checks.SHORT_NAME,
            "location": checks.LOCATION,
            "nodeLocations[]": checks.ZONE,
            "project": checks.PROJECT,
            "resourceLabels": checks.labels,
            "initialNodeCount": between(0),
            "clusterIpv4Cidr": network(8, 32, private=True),
            "ipAllocationPolicy.clusterIpv4CidrBlock": checks.network_or_size,
            "ipAllocationPolicy.servicesIpv4CidrBlock": checks.network_or_size,
            "privateClusterConfig.masterIpv4CidrBlock": network(28, 28),
            "masterAuthorizedNetworksConfig.cidrBlocks[].cidrBlock": network(),
            "datapathProvider": one_of("DATAPATH_PROVIDER_UNSPECIFIED", "LEGACY_DATAPATH", "ADVANCED_DATAPATH"),
            "networkingMode": one_of("VPC_NATIVE", "ROUTES"),
            "clusterAutoscaling.autoscalingProfile": one_of("BALANCED", "OPTIMIZE_UTILIZATION"),
            "networkPolicy.provider": one_of("PROVIDER_UNSPECIFIED", "CALICO"),
            "confidentialNodes.confidentialInstanceType": one_of("SEV", "SEV_SNP", "TDX"),
            **node_checks("nodeConfig"),
        },
        apart=(
            ("clusterIpv4Cidr", "ipAllocationPolicy"),
            ("binaryAuthorization.enabled", "binaryAuthorization.evaluationMode"),
            ("enableTpu", "tpuConfig"),
            ("loggingService", "clusterTelemetry"),
            ("monitoringService", "clusterTelemetry"),
            ("initialNodeCount", "nodePools"),
            ("removeDefaultNodePool", "nodePools"),
            *ranges("ipAllocationPolicy"),
            *(
                (name, "enableAutopilot")
                for name in (
                    "addonsConfig.networkPolicyConfig",
                    "binaryAuthorization.enabled",
                    "defaultMaxPodsPerNode",
                    "enableIntranodeVisibility",
                    "enableShieldedNodes",
                    "networkPolicy",
                    "nodePools",
                    "removeDefaultNodePool",
                )
            ),
        ),
        rules=cluster_rules,
        reported=private_endpoint,
        fixed=(
            "clusterIpv4Cidr",
            "confidentialNodes",
            "datapathProvider",
            "defaultMaxPodsPerNode",
            "description",
            "enableAutopilot",
            "enableKubernetesAlpha",
            "enableTpu",
            "initialNodeCount",
            "ipAllocationPolicy.clusterIpv4CidrBlock",
            "ipAllocationPolicy.clusterSecondaryRangeName",
            "ipAllocationPolicy.podCidrOverprovisionConfig",
            "ipAllocationPolicy.servicesIpv4CidrBlock",
            "ipAllocationPolicy.servicesSecondaryRangeName",
            "location",
            "masterAuth.clientCertificateConfig",
            "name",
            "network",
            "networkingMode",
            "nodePools",
            "privateClusterConfig.masterIpv4CidrBlock",
            "privateClusterConfig.privateEndpointSubnetwork",
            "project",
            "subnetwork",
            "tpuConfig",
            *node_fixed("nodeConfig"),
        ),
        defaults={
            "deletionProtection": True,
            "disableL4LbFirewallReconciliation": False,
            "enableFqdnNetworkPolicy": False,
            "enableKubernetesAlpha": False,
            "enableMultiNetworking": False,
            "masterAuth": {"clientCertificateConfig": {"issueClientCertificate": False}},
            "network": "default",
        },
        filled={
            "controlPlaneEndpointsConfig.dnsEndpointConfig.endpoint": lambda state: state.kubernetes["server"],
            "databaseEncryption.state": always("DECRYPTED"),
            "datapathProvider": always("LEGACY_DATAPATH"),
            "defaultMaxPodsPerNode": always(110),
            "endpoint": lambda state: state.kubernetes["server"],
            "labelFingerprint": label_fingerprint,
            "location": lambda state: state.where["location"],
            "masterAuth.clientCertificate": always(""),
            "masterAuth.clientKey": always(""),
            "masterAuth.clusterCaCertificate": lambda state: state.kubernetes["authority"],
            "masterVersion": always(KUBERNETES),
            "networkingMode": always("VPC_NATIVE"),
            "nodeLocations": more_zones,
            "nodeVersion": always(KUBERNETES),
            "privateClusterConfig.privateEndpoint": lambda state: state.kubernetes["server"],
            "privateClusterConfig.publicEndpoint": lambda state: state.kubernetes["server"],
            "releaseChannel.channel": always("REGULAR"),
            "selfLink": cluster_link,
            "servicesIpv4Cidr": always("10.96.0.0/16"),
        },
        links={"network": Link(NETWORK), "subnetwork": Link(SUBNETWORK)},
        labels="resourceLabels",
    ),
    POOL: Kind(
        "projects/{project}/locations/{location}/clusters/{cluster}/nodePools/{name}",
        longest=40,
        checks={
            "name": checks.SHORT_NAME,
            "location": checks.LOCATION,
            "nodeLocations[]": checks.ZONE,
            "project": checks.PROJECT,
            "autoscaling.minNodeCount": between(0),
            "autoscaling.maxNodeCount": between(0),
            "autoscaling.totalMinNodeCount": between(0),
            "autoscaling.totalMaxNodeCount": between(0),
            "autoscaling.locationPolicy": one_of("BALANCED", "ANY"),
            "initialNodeCount": between(0),
            "nodeCount": between(0),
            "maxPodsPerNode": between(8, 256),
            "upgradeSettings.maxSurge": between(0, 20),
            "upgradeSettings.maxUnavailable": between(0, 20),
            "upgradeSettings.strategy": one_of("SURGE", "BLUE_GREEN"),
            **node_checks("nodeConfig"),
        },
        apart=(("nodeCount", "autoscaling"),),
        rules=pool_rules,
        fixed=(
            "cluster",
            "location",
            "maxPodsPerNode",
            "name",
            "namePrefix",
            "networkConfig.additionalNodeNetworkConfigs",
            "networkConfig.additionalPodNetworkConfigs",
            "networkConfig.createPodRange",
            "networkConfig.podCidrOverprovisionConfig",
            "networkConfig.podIpv4CidrBlock",
            "networkConfig.podRange",
            "placementPolicy",
            "project",
            "queuedProvisioning",
            *node_fixed("nodeConfig"),
        ),
        filled={
            "initialNodeCount": first_count,
            "instanceGroupUrls": lambda state: [url.replace("Managers", "s") for url in group_urls(state)],
            "location": lambda state: state.where["location"],
            "managedInstanceGroupUrls": group_urls,
            "management.autoRepair": always(True),
            "management.autoUpgrade": always(True),
            "maxPodsPerNode": always(110),
            "nodeConfig.diskSizeGb": always(100),
            "nodeConfig.diskType": always("pd-balanced"),
            "nodeConfig.imageType": always("COS_CONTAINERD"),
            "nodeConfig.machineType": always("e2-medium"),
            "nodeConfig.serviceAccount": always("default"),
            "nodeCount": first_count,
            "nodeLocations": node_zones,
            "version": always(KUBERNETES),
        },
        links={"cluster": Link("projects/{project}/locations/{location}/clusters/{}", part=True)},
    ),
}
