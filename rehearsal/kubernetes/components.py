"""Command lines and configuration of the node's processes."""

import json
import sys
from pathlib import Path

from daskstack.engine import PROJECT
from rehearsal.kubernetes.network import DNS, INNER, KUBERNETES, PODS, SERVICES, name

# The cluster's folder in the mount namespace of the node's processes. It is short, because socket paths must be.
NODE = Path("/run/node")
PKI = NODE / "pki"
SOCKET = Path("/run/containerd/containerd.sock")
WHEELS = 8080
# Host names and addresses in the API server's certificate, in addition to the node's.
NAMES = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
NAMES += ["localhost", "127.0.0.1", KUBERNETES, "node"]


def commands(programs: Path, address: str) -> dict[str, list[str]]:
    """Each component's command. `address` is the node's."""
    kube = str(programs / "kube")
    return {
        "etcd": [
            "etcd",
            f"--data-dir={NODE}/etcd",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
        ],
        "containerd": ["containerd", f"--config={NODE}/containerd.toml"],
        "kube-apiserver": [
            kube,
            "kube-apiserver",
            f"--advertise-address={address}",
            "--allow-privileged=true",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            # Debian's etcd does not support the first feature, which would log many errors. `small` needs the second.
            "--feature-gates=SizeBasedListCostEstimate=false,MutatingAdmissionPolicy=true",
            "--runtime-config=admissionregistration.k8s.io/v1beta1=true",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--service-cluster-ip-range={SERVICES}",
            f"--client-ca-file={PKI}/ca.crt",
            f"--tls-cert-file={PKI}/server.crt",
            f"--tls-private-key-file={PKI}/server.key",
            f"--kubelet-client-certificate={PKI}/admin.crt",
            f"--kubelet-client-key={PKI}/admin.key",
            f"--kubelet-certificate-authority={PKI}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={PKI}/accounts.key",
            f"--service-account-signing-key-file={PKI}/accounts.key",
        ],
        "kube-controller-manager": [
            kube,
            "kube-controller-manager",
            f"--kubeconfig={PKI}/controllers.kubeconfig",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--secure-port=0",
            f"--root-ca-file={PKI}/ca.crt",
            f"--service-account-private-key-file={PKI}/accounts.key",
            f"--cluster-signing-cert-file={PKI}/ca.crt",
            f"--cluster-signing-key-file={PKI}/ca.key",
            f"--flex-volume-plugin-dir={NODE}/kubelet/plugins",
        ],
        "kube-scheduler": [
            kube,
            "kube-scheduler",
            f"--kubeconfig={PKI}/scheduler.kubeconfig",
            "--leader-elect=false",
            "--secure-port=0",
        ],
        "kubelet": [
            kube,
            "kubelet",
            f"--config={NODE}/kubelet.json",
            f"--kubeconfig={PKI}/node.kubeconfig",
            f"--root-dir={NODE}/kubelet",
            f"--cert-dir={NODE}/kubelet/pki",
            "--hostname-override=node",
            f"--node-ip={address}",
        ],
        "kube-proxy": [kube, "kube-proxy", f"--config={NODE}/kube-proxy.json"],
        "coredns": [str(programs / "coredns"), "-conf", f"{NODE}/Corefile"],
        "policies": ["env", f"PYTHONPATH={PROJECT}", sys.executable, "-m", "rehearsal.kubernetes.policies", address],
        "wheels": [sys.executable, "-m", "http.server", "--bind", INNER, "--directory", f"{NODE}/wheels", str(WHEELS)],
    }


def write_settings(directory: Path) -> None:
    """Write the components' configuration files to the cluster's folder."""
    for file, content in settings(name(directory)).items():
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_text(content if isinstance(content, str) else json.dumps(content, indent=2))


def settings(cgroup: str) -> dict[str, str | dict]:
    """Each file's content. All containers are in the control group `cgroup`."""
    return {
        "containerd.toml": CONTAINERD,
        "Corefile": COREFILE,
        "resolv.conf": "",
        # Do not use the bridge plugin: traffic between pods on a bridge can bypass the node's rules, and a pod could
        # not reach a Service that selects the pod itself.
        "cni/node.conflist": {
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "ptp",
                    "ipam": {
                        "type": "host-local",
                        "dataDir": "/run/cni",
                        "ranges": [[{"subnet": PODS}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        },
        "kubelet.json": {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": f"{PKI}/ca.crt"}},
            "tlsCertFile": f"{PKI}/server.crt",
            "tlsPrivateKeyFile": f"{PKI}/server.key",
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "resolvConf": f"{NODE}/resolv.conf",
            "podLogsDir": f"{NODE}/log/pods",
            "volumePluginDir": f"{NODE}/kubelet/plugins",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{cgroup}",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "oomScoreAdj": 0,
            # The node must not evict pods or remove images because this computer's disk is full.
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
        },
        "kube-proxy.json": {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": f"{PKI}/proxy.kubeconfig"},
            "hostnameOverride": "node",
            "mode": "nftables",
            "clusterCIDR": PODS,
            "oomScoreAdj": 0,
            # These would change this computer's own settings.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
                "udpTimeout": "0s",
                "udpStreamTimeout": "0s",
            },
        },
    }


# The plugin `opt` creates a folder in /opt, and the disabled snapshotters need other file systems. AppArmor profiles
# would be loaded for the entire computer.
CONTAINERD = f"""\
version = 2
root = "{NODE}/containerd"
state = "/run/containerd"
disabled_plugins = [
    "io.containerd.internal.v1.opt",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.k8s.io/pause:3.10"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{NODE}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""

COREFILE = f"""\
.:53 {{
    bind {INNER}
    errors
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {PKI}/admin.kubeconfig
    }}
}}
"""
