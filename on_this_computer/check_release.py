"""Waits until the release is ready, or says why it is not; then runs a check as a Kubernetes job.

Variables: CLUSTER (JSON, as daskstack.kubectl takes it), NAMESPACE, RELEASE, WAIT (seconds for all pods to be
ready), CHECK (the program that the job runs) and EXPECT (its argument). Prints the job's table to stdout, and progress
to stderr.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from daskstack.kubectl import kubectl
from daskstack.printable import printable

JOB = "dask-check"
JOB_TIME = 420  # seconds
# Waiting does not help pods in these states, unless they leave them within PATIENCE seconds: the first try can fail
# for a passing reason.
NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName"}
BROKEN = {"CreateContainerConfigError", "CrashLoopBackOff"}
PATIENCE = 45
ANSWER = 90  # seconds for kubectl to answer
SMALL = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}}


class Failure(Exception):
    """Its message says what was expected, what was found, and what to do."""


class Cluster:
    """kubectl in the release's namespace."""

    def __init__(self, command: list[str], namespace: str, release: str) -> None:
        self._command = [*command, "--namespace", namespace, "--request-timeout", "30s"]
        self.release = release

    def run(self, *words: str, stdin: str = "", check: bool = True) -> str:
        try:
            done = subprocess.run([*self._command, *words], input=stdin, capture_output=True, text=True, timeout=ANSWER)
        except subprocess.TimeoutExpired:
            raise Failure(f"`kubectl {' '.join(words[:2])}` did not answer within {ANSWER} s") from None
        if done.returncode and check:
            raise Failure(f"kubectl {words[0]}: {done.stderr.strip()}")
        return done.stdout

    def all(self, kinds: str) -> list[dict[str, Any]]:
        return json.loads(self.run("get", kinds, "--selector", f"release={self.release}", "--output", "json"))["items"]


def main() -> None:
    with kubectl(json.loads(os.environ["CLUSTER"])) as command:
        cluster = Cluster(command, os.environ["NAMESPACE"], os.environ["RELEASE"])
        wait(cluster, int(os.environ["WAIT"]))
        print(printable(job(cluster, os.environ["CHECK"], os.environ["EXPECT"])), end="")


def wait(cluster: Cluster, limit: int) -> None:
    """Waits until every Deployment runs its pods; raises Failure with the reasons if it does not."""
    start, told, since = time.monotonic(), "", {}
    while True:
        deployments, pods = cluster.all("deployments"), cluster.all("pods")
        waiting = [text for each in deployments if (text := behind(each))]
        if deployments and not waiting:
            return
        passed = time.monotonic() - start
        found = list(problems(deployments, pods))
        since = {text: since.get(text, passed) for _, text in found}
        hopeless = [text for final, text in found if final and passed - since[text] > PATIENCE]
        if hopeless or passed > limit:
            raise Failure(story(cluster, waiting, [text for _, text in found], pods, passed))
        text = ", ".join(waiting) or "no Deployment yet"
        if text != told:
            print(f"{text} ({passed:.0f} s)", file=sys.stderr, flush=True)
            told = text
        time.sleep(1)


def behind(deployment: dict[str, Any]) -> str:
    """A Deployment's progress; empty if it is ready."""
    wanted, status = deployment["spec"]["replicas"], deployment["status"]
    # Former pods may still be handing over their results.
    ready = min(status.get("updatedReplicas", 0), status.get("availableReplicas", 0))
    known = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    if known and ready == wanted == status.get("replicas", 0):
        return ""
    return f"{deployment['metadata']['name']}: {ready} of {wanted} pods ready"


def problems(deployments: list[dict], pods: list[dict]) -> Iterator[tuple[bool, str]]:
    """Whether a problem is permanent, and its description, which stays the same while the problem lasts."""
    for deployment in deployments:
        for condition in deployment["status"].get("conditions", []):
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                yield True, f"{deployment['metadata']['name']} cannot create pods: {condition['message']}"
    for pod in pods:
        name, status = pod["metadata"]["name"], pod["status"]
        for condition in status.get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                yield False, f"{name} cannot be scheduled: {condition.get('message', condition.get('reason'))}"
        for container in containers(pod):
            reason = container["state"].get("waiting", {}).get("reason")
            if reason in NO_IMAGE:
                yield True, f"{name}: the image {container['image']} cannot be pulled"
            elif reason in BROKEN:
                yield True, f"{name}: {container['name']} is in {reason}"


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return pod["status"].get("initContainerStatuses", []) + pod["status"].get("containerStatuses", [])


def story(cluster: Cluster, waiting: list[str], found: list[str], pods: list[dict], passed: float) -> str:
    """The facts that help to find out why the release is not ready."""
    lines = [f"not ready after {passed:.0f} s: {', '.join(waiting) or 'no Deployment'}", *found]
    for claim in cluster.all("persistentvolumeclaims"):
        if claim["status"].get("phase") == "Pending":
            name = claim["metadata"]["name"]
            lines.append(f"the volume {name} is not bound; check that the cluster has a default StorageClass")
    ill = [
        pod for pod in pods if not all(each["ready"] for each in pod["status"].get("containerStatuses", [{"ready": 0}]))
    ]
    for pod in ill[:3]:
        name = pod["metadata"]["name"]
        for container in pod["status"].get("initContainerStatuses", []) + pod["status"].get("containerStatuses", []):
            words = ("logs", name, "--container", container["name"], "--tail", "8")
            before = ["--previous"] if container["restartCount"] else []
            if said := cluster.run(*words, *before, check=False).strip():
                lines += [f"last lines of {name}, {container['name']}:", *(f"  {line}" for line in said.splitlines())]
    events = json.loads(cluster.run("get", "events", "--field-selector", "type=Warning", "--output", "json"))["items"]
    events.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    for event in events[-6:]:
        lines.append(f"event: {event['involvedObject']['name']}: {event['message'].strip()}")
    return "\n".join(lines)


def manifest(deployment: dict[str, Any], program: str, expect: str) -> dict[str, Any]:
    """A Job that runs the program once, in a pod like those of this Deployment."""
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"] | {"component": "check"}
    spec: dict[str, Any] = {**template["spec"], "restartPolicy": "Never", "terminationGracePeriodSeconds": 5}
    container = {
        key: value
        for key, value in spec["containers"][0].items()
        if key not in ("args", "ports", "lifecycle", "startupProbe", "livenessProbe", "readinessProbe")
    }
    container |= {"name": "check", "command": ["python", "-c", program, expect], "resources": SMALL}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": JOB, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": JOB_TIME,
            "ttlSecondsAfterFinished": 600,
            "template": {"metadata": {"labels": labels}, "spec": {**spec, "containers": [container]}},
        },
    }


def job(cluster: Cluster, program: str, expect: str) -> str:
    """The job's output; raises Failure with its last lines if it fails."""
    by_part = {each["spec"]["selector"]["matchLabels"]["component"]: each for each in cluster.all("deployments")}
    like = by_part.get("worker") or by_part["scheduler"]
    cluster.run("delete", "job", JOB, "--ignore-not-found", "--wait")
    cluster.run("apply", "--filename", "-", stdin=json.dumps(manifest(like, program, expect)))
    print("running the check's job", file=sys.stderr, flush=True)
    end = time.monotonic() + JOB_TIME + 30
    try:
        while True:
            status = json.loads(cluster.run("get", "job", JOB, "--output", "json"))["status"]
            if status.get("succeeded"):
                return cluster.run("logs", f"job/{JOB}", "--container", "check")
            if status.get("failed") or time.monotonic() > end:
                said = cluster.run("logs", f"job/{JOB}", "--all-containers", "--tail", "12", check=False)
                raise Failure(f"the check's job failed:\n{said.strip() or json.dumps(status)}")
            time.sleep(0.5)
    finally:
        cluster.run("delete", "job", JOB, "--ignore-not-found", "--wait=false", check=False)


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"error: {printable(str(failure))}")  # it contains output of pods
