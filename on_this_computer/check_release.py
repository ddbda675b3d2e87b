"""Waits until the release is ready, or says why it is not; then runs a check as a Kubernetes job.

Variables: CLUSTER (JSON, as daskstack.kubectl takes it), NAMESPACE, RELEASE, WAIT (seconds for all pods to be ready),
LEAST (how many workers suffice; if it is not set, all), CHECK (the program that the job runs), EXPECT (its argument)
and NOTEBOOK (its argument in the notebook server's pod; empty: it does not run there). Prints the program's table to
stdout, and progress to stderr.
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
TOLD = 5  # seconds after which a problem is printed
ANSWER = 90  # seconds for kubectl to answer
SMALL = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}}


class Failure(Exception):
    """Its message says what was expected, what was found, and what to do."""


class Cluster:
    """kubectl in the release's namespace."""

    def __init__(self, command: list[str], namespace: str, release: str) -> None:
        self._command = [*command, "--namespace", namespace, "--request-timeout", "30s"]
        self.release = release

    def run(self, *words: str, stdin: str = "", check: bool = True, limit: int = 0) -> str:
        limit = limit or ANSWER
        try:
            done = subprocess.run([*self._command, *words], input=stdin, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            raise Failure(f"`kubectl {' '.join(words[:2])}` did not answer within {limit} s") from None
        if done.returncode and check:
            raise Failure(f"kubectl {words[0]}: {done.stderr.strip()}")
        return done.stdout

    def all(self, kinds: str) -> list[dict[str, Any]]:
        """The objects of the release, without those of the user's jobs."""
        selector = f"release={self.release},component!=job"
        return json.loads(self.run("get", kinds, "--selector", selector, "--output", "json"))["items"]


def main() -> None:
    with kubectl(json.loads(os.environ["CLUSTER"])) as command:
        cluster = Cluster(command, os.environ["NAMESPACE"], os.environ["RELEASE"])
        missing = wait(cluster, int(os.environ["WAIT"]), int(os.environ.get("LEAST", 0)))
        program = os.environ["CHECK"]
        print(printable(job(cluster, program, os.environ["EXPECT"])), end="")
        if missing:
            print(printable(f"{'missing':<12} {missing}"))
        if expect := os.environ["NOTEBOOK"]:
            print(printable(notebook(cluster, program, expect)), end="")


def wait(cluster: Cluster, limit: int, least: int) -> str:
    """Waits until every Deployment runs its pods; raises Failure with the reasons if it does not.

    If `least` is not 0, this many workers suffice. Returns a description of the missing ones.
    """
    start, told, since, printed = time.monotonic(), "", {}, set()
    while True:
        deployments, pods = cluster.all("deployments"), cluster.all("pods")
        waiting = [text for each in deployments if (text := behind(each))]
        if deployments and not waiting:
            return ""
        passed = time.monotonic() - start
        found = list(problems(deployments, pods))
        if least and (missing := missing_workers(deployments, least)):
            return "; ".join([missing, *(text.splitlines()[0] for _, text in found)])
        # The first line of a problem stays the same while it lasts.
        since = {key: since.get(key, passed) for _, text in found for key in text.splitlines()[:1]}
        lasting = [(final, text, passed - since[text.splitlines()[0]]) for final, text in found]
        hopeless = [text for final, text, seconds in lasting if final and seconds > PATIENCE]
        if hopeless or passed > limit:
            raise Failure(story(cluster, waiting, [text for _, text in found], pods, passed))
        text = ", ".join(waiting) or "no Deployment yet"
        if text != told:
            print(f"{text} ({passed:.0f} s)", file=sys.stderr, flush=True)
            told = text
        for _, text, seconds in lasting:
            key = text.splitlines()[0]
            if seconds > TOLD and key not in printed:
                print(text, file=sys.stderr, flush=True)
                printed.add(key)
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


def missing_workers(deployments: list[dict[str, Any]], least: int) -> str:
    """Which workers do not run yet, if everything else does; empty if fewer than `least` run."""
    # The component of workers is the name of their group.
    workers = [each for each in deployments if component(each) not in ("scheduler", "jupyter")]
    wanted = sum(each["spec"]["replicas"] for each in workers)
    running = sum(map(new_pods, workers))
    if (
        running == wanted
        or running < min(least, wanted)
        or any(behind(each) for each in deployments if each not in workers)
    ):
        return ""
    return f"{wanted - running} of {wanted} workers, which join later"


def component(deployment: dict[str, Any]) -> str:
    return deployment["spec"]["selector"]["matchLabels"]["component"]


def new_pods(deployment: dict[str, Any]) -> int:
    """How many pods of the last change are available."""
    status = deployment["status"]
    if status.get("observedGeneration", 0) < deployment["metadata"]["generation"]:
        return 0
    former = status.get("replicas", 0) - status.get("updatedReplicas", 0)
    return max(status.get("availableReplicas", 0) - former, 0)


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
            state = container["state"]
            reason = state.get("waiting", {}).get("reason")
            ended = state.get("terminated") or container.get("lastState", {}).get("terminated") or {}
            if reason in NO_IMAGE:
                yield True, f"{name}: the image {container['image']} cannot be pulled"
            elif ended.get("exitCode") and "running" not in state:
                yield True, f"{name}: {container['name']} {fate(container['name'], ended)}"
            elif reason in BROKEN:
                yield True, f"{name}: {container['name']} is in {reason}"


def fate(container: str, ended: dict[str, Any]) -> str:
    """How a container ended, with its last lines."""
    if ended.get("reason") == "OOMKilled":
        remedy = "write values.environment.resources" if container == "environment" else "increase its memory"
        return f"ended because it used more memory than its limit; {remedy}"
    said = "".join(f"\n  {line}" for line in ended.get("message", "").strip().splitlines()[-8:])
    return f"ended with exit status {ended['exitCode']}{said}"


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return pod["status"].get("initContainerStatuses", []) + pod["status"].get("containerStatuses", [])


def story(cluster: Cluster, waiting: list[str], found: list[str], pods: list[dict], passed: float) -> str:
    """The facts that help to find out why the release is not ready."""
    lines = [f"not ready after {passed:.0f} s: {', '.join(waiting) or 'no Deployment'}", *found]
    for claim in cluster.all("persistentvolumeclaims"):
        if claim["status"].get("phase") == "Pending":
            name = claim["metadata"]["name"]
            shared = "ReadWriteMany" in claim["spec"]["accessModes"]
            remedy = (
                "data.className must name a StorageClass that supports ReadWriteMany"
                if shared
                else "check that the cluster has a default StorageClass"
            )
            lines.append(f"the volume {name} is not bound; {remedy}")
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
    # A sidecar that a service mesh adds would not end, and the job with it.
    labels["sidecar.istio.io/inject"] = "false"
    spec: dict[str, Any] = {**template["spec"], "restartPolicy": "Never", "terminationGracePeriodSeconds": 5}
    container = {
        key: value
        for key, value in spec["containers"][0].items()
        if key not in ("args", "ports", "lifecycle", "startupProbe", "livenessProbe", "readinessProbe")
    }
    # A quota or a policy that wants limits of CPUs wants them of this container, too.
    cpus = {"cpu": "1"} if "cpu" in container.get("resources", {}).get("limits", {}) else {}
    small = SMALL | {"limits": SMALL["limits"] | cpus}
    container |= {"name": "check", "command": ["python", "-c", program, expect], "resources": small}
    # The pod needs no more than this, although a worker may need much.
    spec["initContainers"] = [{**each, "resources": small} for each in spec.get("initContainers", [])]
    # Only pods that ask for a GPU are allowed on nodes with GPUs, and this one needs none.
    spec["tolerations"] = [*spec.get("tolerations", []), {"key": "nvidia.com/gpu", "operator": "Exists"}]
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


def obstacles(cluster: Cluster, job: str) -> Iterator[tuple[bool, str]]:
    """Why the check's job, given by its uid, has no running pod, and whether waiting does not help."""
    pods = json.loads(cluster.run("get", "pods", "--selector", f"job-name={JOB}", "--output", "json"))["items"]
    yield from problems([], [pod for pod in pods if pod["status"].get("phase") != "Failed"])  # else the job fails, too
    if pods:  # an earlier try to create it may have failed
        return
    fields = f"involvedObject.uid={job},reason=FailedCreate"
    events = json.loads(cluster.run("get", "events", "--field-selector", fields, "--output", "json"))["items"]
    for event in events[-1:]:
        yield True, event["message"]


def notebook(cluster: Cluster, program: str, expect: str) -> str:
    """The program's output in the notebook server's pod; empty if there is none."""
    for deployment in cluster.all("deployments"):
        if component(deployment) == "jupyter":
            container = deployment["spec"]["template"]["spec"]["containers"][0]["name"]
            pod = ("exec", f"deployment/{deployment['metadata']['name']}", "--container", container)
            # kubectl's other limit would end the program too.
            return cluster.run(*pod, "--request-timeout", "0", "--", "python", "-c", program, expect, limit=JOB_TIME)
    return ""


def job(cluster: Cluster, program: str, expect: str) -> str:
    """The job's output; raises Failure with its last lines if it fails."""
    by_part = {component(each): each for each in cluster.all("deployments")}
    like = by_part.get("worker") or by_part["scheduler"]
    cluster.run("delete", "job", JOB, "--ignore-not-found", "--wait")
    cluster.run("apply", "--filename", "-", stdin=json.dumps(manifest(like, program, expect)))
    print("running the check's job", file=sys.stderr, flush=True)
    start = time.monotonic()
    end = start + JOB_TIME + 30
    try:
        while True:
            seen = json.loads(cluster.run("get", "job", JOB, "--output", "json"))
            status = seen["status"]
            found = [] if status.get("ready") else list(obstacles(cluster, seen["metadata"]["uid"]))
            if time.monotonic() > start + PATIENCE and any(final for final, _ in found):
                raise Failure(f"the check's job cannot start: {'; '.join(text for _, text in found)}")
            if status.get("succeeded"):
                return cluster.run("logs", f"job/{JOB}", "--container", "check")
            if status.get("failed") or time.monotonic() > end:
                said = cluster.run("logs", f"job/{JOB}", "--all-containers", "--tail", "12", check=False).strip()
                reasons = "\n".join(text for _, text in found)
                raise Failure(f"the check's job failed:\n{said or reasons or json.dumps(status)}")
            time.sleep(0.5)
    finally:
        cluster.run("delete", "job", JOB, "--ignore-not-found", "--wait=false", check=False)


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"error: {printable(str(failure))}")  # it contains output of pods
