"""Services that a cloud's cluster provides: DNS, dynamic volumes, and addresses of load balancers."""

import json
import shutil
import subprocess
from datetime import datetime

from components.gke.node_pools import DATA_CLASS
from rehearsal.kubernetes.api import Api
from rehearsal.kubernetes.components import NODE
from rehearsal.kubernetes.network import DNS, INNER

CLASS, SHARED = "standard", "shared"  # volumes for one node, and for several
# Access modes of each class; DATA_CLASS is the one that stacks on GKE create.
ONE, SEVERAL = {"ReadWriteOnce"}, {"ReadWriteOnce", "ReadWriteMany"}
MODES = {CLASS: ONE, SHARED: SEVERAL, DATA_CLASS: SEVERAL}
PROVISIONER = "rehearsal/volumes"
OURS = {"pv.kubernetes.io/provisioned-by": PROVISIONER}  # so that the controller does not remove them

STORAGE_CLASS = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": PROVISIONER,
}
SHARED_CLASS = STORAGE_CLASS | {"metadata": {"name": SHARED}}
DNS_PORTS = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
DNS_SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "kube-dns", "labels": {"k8s-app": "kube-dns"}},
    "spec": {"clusterIP": DNS, "ports": DNS_PORTS},
}
DNS_ENDPOINTS = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "kube-dns", "labels": {"kubernetes.io/service-name": "kube-dns"}},
    "addressType": "IPv4",
    "ports": DNS_PORTS,
    "endpoints": [{"addresses": [INNER]}],
}


# With these requests, pods start even on a small computer. Their limits do not change.
LITTLE = {"cpu": "50m", "memory": "64Mi"}


def _little(kind: str) -> dict[str, object]:
    """Replaces the requests of the first of these containers, if it has some."""
    first = f"object.spec.{kind}[0].resources.requests"
    patch = f'JSONPatch{{op: "replace", path: "/spec/{kind}/0/resources/requests", value: {json.dumps(LITTLE)}}}'
    expression = f"has(object.spec.{kind}) && has({first}) ? [{patch}] : []"
    return {"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}


SMALL = {
    "apiVersion": "admissionregistration.k8s.io/v1beta1",
    "kind": "MutatingAdmissionPolicy",
    "metadata": {"name": "small"},
    "spec": {
        "matchConstraints": {
            "resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
            ]
        },
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [_little("containers"), _little("initContainers")],
    },
}
SMALL_BINDING = {
    "apiVersion": "admissionregistration.k8s.io/v1beta1",
    "kind": "MutatingAdmissionPolicyBinding",
    "metadata": {"name": "small"},
    "spec": {"policyName": "small"},
}


def make_small(api: Api) -> None:
    api.make("/apis/admissionregistration.k8s.io/v1beta1/mutatingadmissionpolicies", SMALL)
    api.make("/apis/admissionregistration.k8s.io/v1beta1/mutatingadmissionpolicybindings", SMALL_BINDING)


def make(api: Api) -> None:
    for each in (STORAGE_CLASS, SHARED_CLASS):
        api.make("/apis/storage.k8s.io/v1/storageclasses", each)
    api.make("/api/v1/namespaces/kube-system/services", DNS_SERVICE)
    api.make("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", DNS_ENDPOINTS)


def node_is_ready(api: Api, since: datetime) -> bool:
    """Whether the kubelet has reported so since then. The API server also has its reports from earlier runs."""
    conditions = api.get("/api/v1/nodes/node").get("status", {}).get("conditions", [])
    ready = [each for each in conditions if each["type"] == "Ready" and each["status"] == "True"]
    # Kubernetes truncates times to seconds.
    return any(datetime.fromisoformat(each["lastHeartbeatTime"]) >= since.replace(microsecond=0) for each in ready)


def reconcile(api: Api, spare: list[str]) -> None:
    """Run the node's own controllers once. `spare` are the addresses for load balancers."""
    for claim in api.get("/api/v1/persistentvolumeclaims?resourceVersion=0")["items"]:
        spec = claim["spec"]
        modes = MODES.get(spec.get("storageClassName"), set())
        if claim["status"].get("phase") == "Pending" and set(spec["accessModes"]) <= modes:
            (NODE / "volumes" / _volume(claim)).mkdir(parents=True, exist_ok=True)
            (NODE / "volumes" / _volume(claim)).chmod(0o777)
            api.make("/api/v1/persistentvolumes", volume(claim))
    for found in api.get("/api/v1/persistentvolumes?resourceVersion=0")["items"]:
        if is_over(found):
            api.delete(f"/api/v1/persistentvolumes/{found['metadata']['name']}")
            shutil.rmtree(NODE / "volumes" / found["metadata"]["name"], ignore_errors=True)
    balance(api, api.get("/api/v1/services?resourceVersion=0")["items"], spare)


def volume(claim: dict) -> dict:
    """Create a volume on the node for a claim."""
    metadata, spec = claim["metadata"], claim["spec"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": _volume(claim), "annotations": OURS},
        "spec": {
            "storageClassName": spec["storageClassName"],
            "capacity": spec["resources"]["requests"],
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": "Delete",
            "hostPath": {"path": str(NODE / "volumes" / _volume(claim)), "type": "Directory"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                **{key: metadata[key] for key in ("namespace", "name", "uid")},
            },
        },
    }


def is_over(volume: dict) -> bool:
    """Whether the volume is ours and its claim no longer exists."""
    metadata = volume["metadata"]
    ours = OURS.items() <= metadata.get("annotations", {}).items() and "deletionTimestamp" not in metadata
    released = volume["status"].get("phase") == "Released"
    return ours and released and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"


def _volume(claim: dict) -> str:
    return f"pvc-{claim['metadata']['uid']}"


def balance(api: Api, services: list[dict], spare: list[str]) -> None:
    """Assign a permanent address to each Service of type LoadBalancer, and add the addresses to the node."""
    balanced = [each for each in services if each["spec"].get("type") == "LoadBalancer"]
    given = {address for each in balanced for address in ingress(each)}
    for service in balanced:
        if not ingress(service) and (free := [each for each in spare if each not in given]):
            metadata = service["metadata"]
            path = f"/api/v1/namespaces/{metadata['namespace']}/services/{metadata['name']}/status"
            api.patch(path, {"status": {"loadBalancer": {"ingress": [{"ip": free[0]}]}}})
            given.add(free[0])
    has = addresses()
    for address in given - has:
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    for address in (has & set(spare)) - given:
        subprocess.run(["ip", "address", "delete", f"{address}/32", "dev", "lo"], check=True)


def ingress(service: dict) -> list[str]:
    found = service.get("status", {}).get("loadBalancer", {}).get("ingress", [])
    return [each["ip"] for each in found if "ip" in each]


def addresses() -> set[str]:
    shown = subprocess.run(["ip", "-json", "address", "show", "dev", "lo"], capture_output=True, text=True, check=True)
    return {each["local"] for each in json.loads(shown.stdout)[0]["addr_info"]}
