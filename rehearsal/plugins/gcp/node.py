"""The rehearsal's Kubernetes, which stands in for a GKE cluster. Its single node belongs to every node pool.

It knows the kind ComputeClass, but nothing acts on its objects, because there is no autoscaler.

The node has the labels of all pools. If two pools differ, e.g. in `cloud.google.com/gke-nodepool`, the older one's
label is used. It has only the taints that all pools share, so that every pod that fits any pool can run.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from command.output import CommandError
from gcp.cloud import Cloud, Record
from gcp.kinds import POOL, last
from gcp.run import run

NONE = {"kubeconfig": "", "context": "", "server": "", "authority": ""}  # before the cluster runs
CLASSES = Path(__file__).with_name("compute_class.yaml")
NAME = "cloud.google.com/gke-nodepool"
EFFECTS = {"NO_SCHEDULE": "NoSchedule", "PREFER_NO_SCHEDULE": "PreferNoSchedule", "NO_EXECUTE": "NoExecute"}
GPU = {"key": "nvidia.com/gpu", "value": "present", "effect": "NO_SCHEDULE"}

Labels = dict[str, str]
Taints = list[dict[str, str]]


async def up() -> dict[str, str]:
    """Start Kubernetes unless it runs. Returns `kubeconfig` (path), `context`, `server` (host:port), `authority`."""
    settings = _settings()
    text = await run(*settings["command"], cwd=settings["cwd"])
    found = json.loads(text.splitlines()[-1])
    await kubectl(found, "apply", "--filename", str(CLASSES))
    view = json.loads(await kubectl(found, "config", "view", "--minify", "--raw", "-o", "json"))
    entry = view["clusters"][0]["cluster"]
    return {
        "kubeconfig": found["kubeconfig"],
        "context": found["context"],
        "server": entry["server"].removeprefix("https://"),
        "authority": entry.get("certificate-authority-data", ""),
    }


async def down() -> None:
    settings = _settings()
    await run(*settings["down"], cwd=settings["cwd"])


def _settings() -> dict[str, Any]:
    text = os.environ.get("DASKSTACK_REHEARSAL_KUBERNETES")
    if not text:
        raise CommandError("a cluster needs a rehearsal's Kubernetes, but DASKSTACK_REHEARSAL_KUBERNETES is not set")
    return json.loads(text)


@asynccontextmanager
async def changing(cloud: Cloud, identity: str) -> AsyncIterator[list[str]]:
    """Apply the block's changes of a cluster's pools to the node. The list receives warnings."""
    warnings: list[str] = []
    before = pools(cloud, identity)
    yield warnings
    after = pools(cloud, identity)
    record = cloud.read(identity)
    if record is None or before == after:
        return
    labels, left_out = labels_of(after)
    warnings += left_out
    gone = labels_of(before)[0].keys() - labels.keys()
    changes = labels | dict.fromkeys(gone)
    cluster = record["kubernetes"]
    for node in json.loads(await kubectl(cluster, "get", "nodes", "-o", "json"))["items"]:
        others = [taint for taint in node["spec"].get("taints", []) if bare(taint) not in taints_of(before)]
        taints = [*others, *(taint for taint in taints_of(after) if taint not in map(bare, others))]
        patch = json.dumps({"metadata": {"labels": changes}, "spec": {"taints": taints}})
        await kubectl(cluster, "patch", "node", node["metadata"]["name"], "--type=merge", "--patch", patch)


def pools(cloud: Cloud, identity: str) -> list[Record]:
    """The records of a cluster's pools, oldest first."""
    return [record for _, record in cloud.records(POOL) if [identity, True] in map(list, record["links"])]


def labels_of(found: list[Record]) -> tuple[Labels, list[str]]:
    """The labels of a node of all these pools, and warnings about those that it cannot have."""
    labels: Labels = {}
    left_out = []
    for record in found:
        given = record["inputs"].get("nodeConfig", {}).get("labels", {})
        for key, value in (automatic(record) | given).items():
            if labels.setdefault(key, value) != value and key in given:
                left_out.append(
                    f"the rehearsal's single node has {key}={labels[key]} instead of {value} from pool"
                    f" {record['outputs']['name']}; pods that require the latter cannot be scheduled"
                )
    return labels, left_out


def automatic(record: Record) -> Labels:
    """The labels that GKE adds to a pool's nodes."""
    outputs = record["outputs"]
    config, zone = outputs["nodeConfig"], re.search(r"zones/([^/]+)/", outputs["managedInstanceGroupUrls"][0])
    machine = last(config["machineType"])
    labels = {
        NAME: outputs["name"],
        "cloud.google.com/gke-boot-disk": config["diskType"],
        "cloud.google.com/gke-os-distribution": "cos" if config["imageType"].startswith("COS") else "ubuntu",
        "cloud.google.com/machine-family": machine.split("-")[0],
        "node.kubernetes.io/instance-type": machine,
    }
    if zone:
        labels |= {"topology.kubernetes.io/region": zone[1][:-2], "topology.kubernetes.io/zone": zone[1]}
    if config.get("spot") is True:
        labels |= {"cloud.google.com/gke-provisioning": "spot", "cloud.google.com/gke-spot": "true"}
    if config.get("preemptible") is True:
        labels["cloud.google.com/gke-preemptible"] = "true"
    if config.get("workloadMetadataConfig", {}).get("mode") == "GKE_METADATA":
        labels["iam.gke.io/gke-metadata-server-enabled"] = "true"
    for accelerator in config.get("guestAccelerators", []):
        labels["cloud.google.com/gke-accelerator"] = last(accelerator["type"])
    return labels


def taints_of(found: list[Record]) -> Taints:
    """The taints that all pools share, in Kubernetes' format."""
    each = []
    for record in found:
        config = record["outputs"]["nodeConfig"]
        given = [*config.get("taints", []), *([GPU] if config.get("guestAccelerators") else [])]
        each.append([taint | {"effect": EFFECTS[taint["effect"]]} for taint in given])
    return [taint for taint in each[0] if all(taint in others for others in each)] if each else []


def bare(taint: dict[str, str]) -> dict[str, str]:
    """A node's taint without its timestamp."""
    return {"key": taint["key"], "value": taint.get("value", ""), "effect": taint["effect"]}


async def kubectl(cluster: dict[str, str], *arguments: str) -> str:
    return await run("kubectl", "--kubeconfig", cluster["kubeconfig"], "--context", cluster["context"], *arguments)


BUSY = asyncio.Lock()  # one change at a time, because each change reads the others' records
