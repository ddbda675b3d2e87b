"""Waits until objects are ready, and explains why they are not."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from command.output import CommandError
from kube.run import Cluster, ProgramError

Object = dict[str, Any]
FIRST, LONGEST = 0.3, 2.0  # seconds between checks, each of which starts a process
EVENTS = 5  # number of events in an error


class NotReadyError(CommandError):
    """The object exists but is not ready. The message explains why."""


async def until_ready(cluster: Cluster, resource: str, found: Object, seconds: float) -> Object:
    """Wait until the object is ready, and return it. Raises NotReadyError."""
    wanted = WAITS.get(found["kind"])
    if wanted is None:
        return found
    name, namespace = found["metadata"]["name"], found["metadata"]["namespace"]
    deadline, pause = time.monotonic() + seconds, FIRST
    while reason := await wanted(cluster, found):
        if time.monotonic() + pause > deadline:
            shown = await events(cluster, namespace, name)
            raise NotReadyError("\n".join([f"not ready after {seconds:g} s: {reason}", *shown]))
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LONGEST)
        found = json.loads(await cluster.kubectl("get", resource, name, "--namespace", namespace, "-o", "json"))
    return found


async def events(cluster: Cluster, namespace: str, name: str = "") -> list[str]:
    """The last events of an object and its dependents; without a name, the namespace's warnings."""
    try:
        items = json.loads(await cluster.kubectl("get", "events", "--namespace", namespace, "-o", "json"))["items"]
    except ProgramError:
        return []

    def concerns(event: Object) -> bool:
        subject = event["involvedObject"].get("name", "")
        return subject == name or subject.startswith(f"{name}-") if name else event.get("type") == "Warning"

    lines = {
        f"{event['involvedObject'].get('name')}: {event.get('reason')}: {event.get('message')}": None
        for event in sorted(items, key=_moment)
        if concerns(event)
    }
    return list(lines)[-EVENTS:]


def _moment(event: Object) -> str:
    return event.get("lastTimestamp") or event.get("eventTime") or ""


def _condition(found: Object, kind: str) -> Object:
    conditions = found.get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == kind), {})


def _says(condition: Object) -> str:
    return ": ".join(part for part in (condition.get("reason"), condition.get("message")) if part)


async def _deployment(cluster: Cluster, found: Object) -> str:
    status, wanted = found.get("status", {}), found["spec"].get("replicas", 1)
    progressing = _condition(found, "Progressing")
    if progressing.get("status") == "False":
        shown = await events(cluster, found["metadata"]["namespace"], found["metadata"]["name"])
        raise NotReadyError("\n".join([_says(progressing), *shown]))
    current = status.get("observedGeneration", 0) >= found["metadata"]["generation"]
    counts = [status.get(count, 0) for count in ("replicas", "updatedReplicas", "availableReplicas")]
    if current and counts == [wanted] * 3:
        return ""
    conditions = "; ".join(filter(None, map(_says, status.get("conditions", []))))
    return f"{counts[2]} of {wanted} replicas are available, {counts[1]} up to date. {conditions}"


async def _job(cluster: Cluster, found: Object) -> str:
    failed = _condition(found, "Failed")
    if failed.get("status") == "True":
        shown = await events(cluster, found["metadata"]["namespace"], found["metadata"]["name"])
        raise NotReadyError("\n".join([f"the job failed: {_says(failed)}", *shown]))
    if _condition(found, "Complete").get("status") == "True":
        return ""
    status = found.get("status", {})
    counts = ", ".join(f"{status.get(count, 0)} {count}" for count in ("active", "succeeded", "failed"))
    return f"the job is not complete: {counts}"


async def _service(cluster: Cluster, found: Object) -> str:
    spec = found["spec"]
    if spec.get("type") == "ExternalName":
        return ""
    if spec.get("type") == "LoadBalancer" and not found.get("status", {}).get("loadBalancer", {}).get("ingress"):
        return "the load balancer has no address"
    if spec.get("clusterIP") == "None" or not spec.get("selector"):
        return ""
    name, namespace = found["metadata"]["name"], found["metadata"]["namespace"]
    label = f"kubernetes.io/service-name={name}"
    slices = await cluster.kubectl("get", "endpointslices", "--namespace", namespace, "-l", label, "-o", "json")
    for part in json.loads(slices)["items"]:
        if any(endpoint.get("conditions", {}).get("ready", True) for endpoint in part.get("endpoints") or []):
            return ""
    return "no ready pod has the labels of spec.selector"


async def _claim(cluster: Cluster, found: Object) -> str:
    phase = found.get("status", {}).get("phase")
    if phase == "Bound":
        return ""
    if storage_class := found["spec"].get("storageClassName"):
        text = await cluster.kubectl("get", "storageclass", storage_class, "--ignore-not-found", "-o", "json")
        if text and json.loads(text).get("volumeBindingMode") == "WaitForFirstConsumer":
            return ""
    return f"the claim is {phase}, expected Bound"


WAITS: dict[str, Callable[[Cluster, Object], Awaitable[str]]] = {
    "Deployment": _deployment,
    "Job": _job,
    "Service": _service,
    "PersistentVolumeClaim": _claim,
}
