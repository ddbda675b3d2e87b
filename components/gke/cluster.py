"""A GKE cluster that follows Google's hardening guide, with its own network and node account."""

import shutil
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import pulumi_gcp as gcp
import pulumi_kubernetes as kubernetes
import yaml
from pulumi import ComponentResource, CustomTimeouts, Input, InvokeOutputOptions, Output, ResourceOptions

from components.gke.node_pools import DATA_CLASS, SYSTEM, class_label, class_taint, compute_class, label, taint
from components.google_cloud import SCOPE, Home, require
from daskstack.kubeconfig import GOOGLE_LOGIN
from settings import cost
from settings.buckets import MEMBER, Bucket
from settings.gke import GivenNetwork, GkeSource, Pool, WorkerPool
from settings.worker_nodes import WorkerNodes

APIS = ("compute", "container", "iam")
# Nodes write logs and metrics, and need no other right.
ROLES = ("roles/container.defaultNodeServiceAccount",)


class GkeClusterArgs(TypedDict):
    stack: str
    """The stack's name, which is part of all names and labels in Google Cloud."""
    settings: GkeSource
    workers: Sequence[WorkerNodes]
    """The node pools of the workers."""
    registry: bool
    """Whether nodes pull images from Artifact Registry."""
    data: bool
    """Whether pods share a directory. Its volume is a Filestore instance, which the cluster's CSI driver creates."""
    buckets: Sequence[Bucket]
    """The buckets that pods can use."""
    namespace: str
    """The namespace of these pods."""
    accounts: Sequence[str]
    """The names of their ServiceAccounts."""


class GkeCluster(ComponentResource):
    """A private GKE cluster with node pools for workers, which scale to zero, and one for all other pods.

    It owns the cluster, the pools, the nodes' service account and its role, and, unless `network` names one, the
    network. It enables APIs and never disables them, because other stacks in the project may use them. A network that
    the settings name is used and left alone, and so are buckets, to which it only gives pods access.

    Names in Google Cloud come from `stack`, so two clusters in one project need different values of it.
    """

    kubeconfig: Output[str]
    """A kubeconfig that uses gke-gcloud-auth-plugin and holds no credentials."""
    provider: kubernetes.Provider
    """The provider for resources inside the cluster."""

    def __init__(self, name: str, args: GkeClusterArgs, opts: ResourceOptions | None = None):
        require(args["stack"], list(missing()))
        super().__init__("dask:index:GkeCluster", name, {}, opts)
        self.name, self.settings = name, args["settings"]
        settings = self.settings
        apis = (*APIS, *(["file"] if args["data"] else []), *(["storage"] if args["buckets"] else []))
        self.home = home = Home(self, args["stack"], settings.project, settings.region, apis)
        self.labels = {**settings.labels, **home.labels}
        network = self._given_network(settings.network) if settings.network else self._network()
        account = home.account(
            "nodes-account", "Nodes", [*ROLES, *(["roles/artifactregistry.reader"] if args["registry"] else [])]
        )
        self.cluster = self._cluster(network, account, args["data"])
        pools = [
            self._pool(SYSTEM, SYSTEM, settings.system, account, 1, settings.system.node_limit),
            *(
                self._pool(each.name, nodes.name, each.pool, account, each.pool.min_nodes, nodes.most, each.zone)
                for nodes in args["workers"]
                for each in nodes.pools
            ),
        ]
        self.kubeconfig = kubeconfig(self.home.name, self.cluster)
        self.provider = kubernetes.Provider(
            f"{name}-provider", kubeconfig=self.kubeconfig, opts=ResourceOptions(parent=self, depends_on=pools)
        )
        for email in settings.admins:
            self._admin(email)
        if args["buckets"]:
            self._open_buckets(args["buckets"], args["namespace"], args["accounts"])
        for nodes in args["workers"]:
            if nodes.pool.capacity:
                self._compute_class(nodes)
        if args["data"]:
            self._data_class(settings.network.name if settings.network else home.name)
        self.register_outputs({"kubeconfig": self.kubeconfig})

    def _given_network(self, given: GivenNetwork) -> dict[str, Any]:
        project, region = given.project or self.settings.project, self.settings.region
        return {
            "network": f"projects/{project}/global/networks/{given.name}",
            "subnetwork": f"projects/{project}/regions/{region}/subnetworks/{given.subnetwork}",
            "ip_allocation_policy": {
                "cluster_secondary_range_name": given.pods,
                "services_secondary_range_name": given.services,
            },
        }

    def _network(self) -> dict[str, Any]:
        ranges = self.settings.ranges
        network, subnetwork, _ = self.home.network(
            ranges.nodes,
            way_out=self.settings.hardening.private_nodes,
            log_config={"metadata": "INCLUDE_ALL_METADATA"} if self.settings.hardening.flow_logs else None,
            secondary_ip_ranges=[
                {"range_name": "pods", "ip_cidr_range": ranges.pods},
                {"range_name": "services", "ip_cidr_range": ranges.services},
            ],
        )
        return {
            "network": network.id,
            "subnetwork": subnetwork.id,
            "ip_allocation_policy": {
                "cluster_secondary_range_name": "pods",
                "services_secondary_range_name": "services",
            },
        }

    def _cluster(
        self, network: dict[str, Any], account: gcp.serviceaccount.Account, data: bool
    ) -> gcp.container.Cluster:
        settings, hardening = self.settings, self.settings.hardening
        # Every new cluster has a default pool for a moment. It gets the narrow account too.
        first: gcp.container.ClusterNodeConfigArgsDict = {
            "service_account": account.email,
            "oauth_scopes": [SCOPE],
            "disk_size_gb": 20,
            "resource_labels": self.labels,
        }
        networks: list[Input[gcp.container.ClusterMasterAuthorizedNetworksConfigCidrBlockArgsDict]] = [
            {"cidr_block": source} for source in settings.authorized_networks
        ]
        return gcp.container.Cluster(
            f"{self.name}-cluster",
            name=self.home.name,
            project=settings.project,
            location=settings.location,
            deletion_protection=settings.deletion_protection,
            resource_labels=self.labels,
            min_master_version=settings.version,
            release_channel={"channel": settings.release_channel},
            remove_default_node_pool=True,
            initial_node_count=1,
            node_config=first,
            networking_mode="VPC_NATIVE",
            datapath_provider=hardening.dataplane,
            private_cluster_config={
                "enable_private_nodes": hardening.private_nodes,
                # Google sets this if there is no IP endpoint. Without the same value here, each `up` would change it.
                "enable_private_endpoint": not networks,
            },
            # Google's IAM authorizes every request to the DNS endpoint, so the caller's network does not matter.
            control_plane_endpoints_config={
                "dns_endpoint_config": {"allow_external_traffic": True},
                "ip_endpoints_config": {"enabled": bool(networks)},
            },
            master_authorized_networks_config=(
                {
                    "cidr_blocks": networks,
                    # Without these two, machines of every Google Cloud customer and of the whole VPC have access.
                    "gcp_public_cidrs_access_enabled": False,
                    "private_endpoint_enforcement_enabled": True,
                }
                if networks
                else None
            ),
            master_auth={"client_certificate_config": {"issue_client_certificate": False}},
            enable_legacy_abac=False,
            enable_shielded_nodes=hardening.shielded_nodes,
            enable_intranode_visibility=hardening.intranode_visibility,
            authenticator_groups_config=(
                {"security_group": settings.security_group} if settings.security_group else None
            ),
            workload_identity_config=(
                {"workload_pool": f"{settings.project}.svc.id.goog"} if hardening.workload_identity else None
            ),
            logging_config={"enable_components": list(hardening.logging)},
            monitoring_config={"enable_components": list(hardening.monitoring)},
            security_posture_config={"mode": hardening.security_posture},
            addons_config={"gcp_filestore_csi_driver_config": {"enabled": True}} if data else None,
            cost_management_config={"enabled": hardening.cost_allocation},
            database_encryption=(
                {"state": "ENCRYPTED", "key_name": hardening.database_key} if hardening.database_key else None
            ),
            binary_authorization=(
                {"evaluation_mode": "PROJECT_SINGLETON_POLICY_ENFORCE"} if hardening.binary_authorization else None
            ),
            opts=ResourceOptions(
                parent=self,
                depends_on=self.home.apis,
                ignore_changes=["nodeConfig"],  # of the default pool, which is gone
                custom_timeouts=CustomTimeouts(create="45m", delete="45m"),
            ),
            **network,
        )

    def _pool(
        self,
        name: str,
        kind: str,
        pool: Pool,
        account: gcp.serviceaccount.Account,
        least: int,
        most: int,
        zone: str | None = None,
    ) -> gcp.container.NodePool:
        """The node pool `name` for pods that belong on nodes of this kind."""
        hardening, workers = self.settings.hardening, pool if isinstance(pool, WorkerPool) else None
        accelerators = workers.accelerators if workers else None
        classed = bool(workers and workers.capacity)
        labels = {**label(kind), **(class_label(kind) if classed else {}), **(workers.labels if workers else {})}
        taints: list[Any] = [taint(kind), *workers.taints] if workers else []
        taints += [class_taint(kind)] if classed else []
        return gcp.container.NodePool(
            f"{self.name}-{name}",
            name=name,
            project=self.settings.project,
            location=self.settings.location,
            node_locations=[zone] if zone else None,
            cluster=self.cluster.name,
            initial_node_count=least,
            # Totals over all zones.
            autoscaling={"total_min_node_count": least, "total_max_node_count": most, "location_policy": "ANY"},
            management={"auto_repair": hardening.auto_repair, "auto_upgrade": True},
            node_config={
                "machine_type": pool.machine,
                "disk_size_gb": pool.disk,
                "disk_type": cost.disk_type(pool.machine),
                "image_type": hardening.image_type,
                "spot": bool(workers and workers.spot),
                "labels": labels,
                "taints": taints,
                "resource_labels": self.labels,
                "service_account": account.email,
                "oauth_scopes": [SCOPE],
                "metadata": {"disable-legacy-endpoints": "true"},
                "workload_metadata_config": {"mode": "GKE_METADATA" if hardening.workload_identity else "GCE_METADATA"},
                "shielded_instance_config": {
                    "enable_secure_boot": hardening.secure_boot,
                    "enable_integrity_monitoring": hardening.integrity_monitoring,
                },
                "kubelet_config": {"insecure_kubelet_readonly_port_enabled": "FALSE"},
                "boot_disk_kms_key": hardening.disk_key,
                "ephemeral_storage_local_ssd_config": (
                    {"local_ssd_count": workers.local_ssds} if workers and workers.local_ssds else None
                ),
                "sandbox_config": {"sandbox_type": "gvisor"} if workers and hardening.sandbox else None,
                "guest_accelerators": [
                    {
                        "type": accelerators.type,
                        "count": accelerators.count,
                        "gpu_driver_installation_config": {"gpu_driver_version": "DEFAULT"},
                    }
                ]
                if accelerators
                else None,
            },
            opts=ResourceOptions(parent=self, ignore_changes=["initialNodeCount"]),  # the autoscaler changes it
        )

    def _open_buckets(self, buckets: Sequence[Bucket], namespace: str, accounts: Sequence[str]) -> None:
        # The first cluster of a project creates the pool of identities. Waiting for it also keeps the first preview
        # from asking Google.
        project = self.settings.project
        number = gcp.organizations.get_project_output(
            project_id=project, opts=InvokeOutputOptions(parent=self, depends_on=[self.cluster])
        ).number
        members = {name: Output.format(MEMBER, number, project, namespace, name) for name in accounts}
        self.home.open_buckets(buckets, members)

    def _compute_class(self, nodes: WorkerNodes) -> None:
        [name] = class_label(nodes.name).values()
        kubernetes.apiextensions.CustomResource(
            f"{self.name}-{nodes.name}-class",
            api_version="cloud.google.com/v1",
            kind="ComputeClass",
            metadata={"name": name, "labels": self.home.labels},
            spec=compute_class([pool.name for pool in nodes.pools]),
            opts=ResourceOptions(parent=self, provider=self.provider),
        )

    def _data_class(self, network: str) -> None:
        # GKE's own classes create volumes in the network `default`, which the nodes cannot reach.
        kubernetes.storage.v1.StorageClass(
            f"{self.name}-data",
            metadata={"name": DATA_CLASS, "labels": self.home.labels},
            provisioner="filestore.csi.storage.gke.io",
            parameters={"tier": "standard", "network": network},
            allow_volume_expansion=True,
            opts=ResourceOptions(parent=self, provider=self.provider),
        )

    def _admin(self, email: str) -> None:
        kubernetes.rbac.v1.ClusterRoleBinding(
            f"{self.name}-admin-{email}",
            metadata={"name": f"dask-admin-{email}".replace("@", "-at-").lower(), "labels": self.home.labels},
            role_ref={"api_group": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            subjects=[{"api_group": "rbac.authorization.k8s.io", "kind": "User", "name": email}],
            opts=ResourceOptions(parent=self, provider=self.provider),
        )


def missing() -> Iterator[str]:
    """Programs that are missing on this computer, each with its remedy."""
    if not shutil.which("kubectl"):
        yield "kubectl: run `gcloud components install kubectl`, or see https://kubernetes.io/docs/tasks/tools"
    plugin, hint = GOOGLE_LOGIN["command"], GOOGLE_LOGIN["installHint"]
    if not shutil.which(plugin):
        yield f"{plugin}: run `gcloud components install {plugin}`, or see {hint}"


def kubeconfig(name: str, cluster: gcp.container.Cluster) -> Output[str]:
    """A kubeconfig for the DNS endpoint, whose certificate a public authority has signed."""

    def text(endpoints: Any) -> str:
        server = {"server": f"https://{endpoints.dns_endpoint_config.endpoint}"}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "clusters": [{"name": name, "cluster": server}],
            "users": [{"name": name, "user": {"exec": GOOGLE_LOGIN}}],
        }
        return yaml.safe_dump(content)

    return cluster.control_plane_endpoints_config.apply(text)
