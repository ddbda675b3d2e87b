"""Outputs `client` for tests that need no cluster."""

from typing import Any

from daskstack.client_output import KubernetesClient, MachinesClient, Tls

COMMON: dict[str, Any] = {
    "tls": Tls(authority="", certificate="", key=""),
    "python": "3.11",
    "packages": {},
    "lock": "environment.lock",
    "sleeps": False,
}
CONNECTION = {"host": "10.1.0.1", "user": "dask-tunnel", "host_key": "ssh-ed25519 AAAA"}


def machines_client(**changed: Any) -> MachinesClient:
    inside = {"scheduler": "tls://10.1.0.1:8786", "dashboard": "http://10.1.0.1:8787/status"}
    return MachinesClient(**(COMMON | inside | {"head": "head", "tunnel": CONNECTION} | changed))


def kubernetes_client(**changed: Any) -> KubernetesClient:
    inside = {"scheduler": "tls://dask-scheduler:8786", "dashboard": "http://dask-webui:80/status"}
    own = {"kubernetes": {"kubeconfig": "/x", "context": ""}, "namespace": "dask"}
    return KubernetesClient(**(COMMON | inside | own | changed))
