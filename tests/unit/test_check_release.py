"""What the check says of a release that does not become ready."""

import json
import re
from typing import Any

import pytest

from on_this_computer import wait_for_deletion
from on_this_computer.check_release import behind, manifest, missing_workers, obstacles, problems


def deployment(wanted: int = 2, **status: Any) -> dict[str, Any]:
    done = {"observedGeneration": 3, "updatedReplicas": wanted, "availableReplicas": wanted, "replicas": wanted}
    return {
        "metadata": {"name": "dask-worker", "generation": 3},
        "spec": {"replicas": wanted},
        "status": done | status,
    }


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "dask-worker-x"}, "status": status}


def container(reason: str) -> dict[str, Any]:
    return {"name": "worker", "image": "example.org/dask:1", "state": {"waiting": {"reason": reason}}}


def ended(reason: str, message: str = "") -> dict[str, Any]:
    last = {"terminated": {"reason": reason, "exitCode": 1, "message": message}}
    return container("CrashLoopBackOff") | {"name": "environment", "lastState": last}


def test_a_release_is_complete_when_all_pods_are_new_and_ready_and_old_ones_are_gone() -> None:
    assert behind(deployment()) == ""
    assert behind(deployment(wanted=0)) == ""
    assert behind(deployment(availableReplicas=1)) == "dask-worker: 1 of 2 pods ready"
    assert behind(deployment(updatedReplicas=0))
    assert behind(deployment(replicas=3))
    assert behind(deployment(observedGeneration=2)), "the change has not been looked at yet"


def of(component: str, deployment: dict[str, Any]) -> dict[str, Any]:
    deployment["spec"]["selector"] = {"matchLabels": {"component": component}}
    return deployment


def test_with_at_least_the_missing_workers_are_counted_once_everything_else_runs() -> None:
    scheduler, two = of("scheduler", deployment(1)), of("worker", deployment(2))
    some = of("gpu", deployment(3, availableReplicas=1))
    assert missing_workers([scheduler, two, some], 3) == "2 of 5 workers, which join later"
    assert missing_workers([scheduler, two, some], 4) == "", "too few"
    assert missing_workers([of("scheduler", deployment(1, availableReplicas=0)), two, some], 3) == ""
    replaced = of("worker", deployment(3, replicas=4, updatedReplicas=2))
    assert missing_workers([scheduler, replaced], 1) == "2 of 3 workers, which join later", "2 pods are former ones"
    former = of("worker", deployment(3, replicas=4, availableReplicas=4))
    assert missing_workers([scheduler, former], 1) == "", "no worker is missing, but a former one has to end"
    assert missing_workers([scheduler, of("worker", deployment(3, observedGeneration=2))], 1) == ""
    assert missing_workers([scheduler, of("worker", deployment(3, availableReplicas=1))], 9) == ""


FAILED_QUOTA = {"type": "ReplicaFailure", "status": "True", "message": "pods are forbidden: exceeded quota"}
UNSCHEDULED = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: Insufficient cpu."}


@pytest.mark.parametrize(
    ("deployments", "pods", "final", "text"),
    [
        ([deployment(conditions=[FAILED_QUOTA])], [], True, "dask-worker cannot create pods: pods are forbidden"),
        ([], [pod(conditions=[UNSCHEDULED])], False, "dask-worker-x cannot be scheduled: 0/1 nodes are available"),
        ([], [pod(containerStatuses=[container("ImagePullBackOff")])], True, "the image example.org/dask:1 cannot be"),
        ([], [pod(initContainerStatuses=[container("CrashLoopBackOff")])], True, "worker is in CrashLoopBackOff"),
        ([], [pod(initContainerStatuses=[ended("Error", "No route\nto the index\n")])], True,
         "environment ended with exit status 1\n  No route\n  to the index"),
        ([], [pod(initContainerStatuses=[ended("OOMKilled")])], True,
         "environment ended because it used more memory than its limit; write values.environment.resources"),
    ],
)  # fmt: skip
def test_the_reason_why_a_pod_does_not_start_is_reported_and_whether_waiting_helps(
    deployments: list[dict], pods: list[dict], final: bool, text: str
) -> None:
    [(found, words)] = problems(deployments, pods)
    assert found is final
    assert re.search(re.escape(text), words)


def test_a_starting_pod_is_not_a_problem() -> None:
    assert not list(problems([deployment()], [pod(containerStatuses=[container("ContainerCreating")])]))


def test_repeated_pulls_of_an_image_are_one_problem() -> None:
    """Kubernetes changes the word; the time that we give it must not begin anew."""
    first, then = (list(problems([], [pod(containerStatuses=[container(each)])])) for each in
                   ("ErrImagePull", "ImagePullBackOff"))  # fmt: skip
    assert first == then


def test_the_job_differs_from_a_worker_only_in_its_command_and_runs_beside_gpus() -> None:
    limits = {"limits": {"cpu": "8", "memory": "64Gi"}}
    spec = {
        "initContainers": [{"name": "environment", "image": "i", "resources": limits}],
        "containers": [
            {
                "name": "worker",
                "image": "i",
                "lifecycle": {},
                "livenessProbe": {},
                "env": [1],
                "args": [],
                "resources": limits,
            }
        ],
    }
    labels = {"app": "dask", "release": "dask", "component": "worker"}
    like = {"spec": {"template": {"metadata": {"labels": labels}, "spec": spec}}}
    made = manifest(like, "print(1)", "{}")["spec"]["template"]
    [container] = made["spec"]["containers"]
    assert container["command"] == ["python", "-c", "print(1)", "{}"]
    assert not container.keys() & {"args", "lifecycle", "livenessProbe"}
    assert container["env"] == [1]
    # It fits where a worker does not, and has the limits that a quota wants.
    small = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    assert made["spec"]["initContainers"] == [{"name": "environment", "image": "i", "resources": small}]
    assert container["resources"] == small
    assert made["metadata"]["labels"]["sidecar.istio.io/inject"] == "false", "a sidecar would keep the job from ending"
    assert {"key": "nvidia.com/gpu", "operator": "Exists"} in made["spec"]["tolerations"]
    # Else the workers' Deployment would take it for one of its own.
    assert made["metadata"]["labels"]["component"] == "check"


def test_destroy_waits_only_for_volumes_that_kubernetes_will_delete() -> None:
    def volume(name: str, namespace: str, claim: str, policy: str = "Delete") -> dict:
        spec = {"persistentVolumeReclaimPolicy": policy, "claimRef": {"namespace": namespace, "uid": claim}}
        return {"metadata": {"name": name}, "spec": spec}

    volumes = [
        volume("gone", "dask", "1"),
        volume("kept", "dask", "2"),
        volume("going", "dask", "3"),
        volume("retained", "dask", "4", "Retain"),
        volume("others", "other", "5"),
        {"metadata": {"name": "free"}, "spec": {"persistentVolumeReclaimPolicy": "Delete"}},
    ]
    claims = [{"metadata": {"uid": "2"}}, {"metadata": {"uid": "3", "deletionTimestamp": "now"}}]
    assert wait_for_deletion.going(volumes, claims, "dask") == ["gone", "going"]


@pytest.mark.parametrize(("pods", "expected"), [([], ["exceeded quota"]), ([pod()], [])])
def test_a_failed_try_to_create_the_jobs_pod_matters_only_until_there_is_one(pods: list[dict], expected: list) -> None:
    class Fake:
        def run(self, *words: str) -> str:
            return json.dumps({"items": pods if words[1] == "pods" else [{"message": "exceeded quota"}]})

    assert [text for _, text in obstacles(Fake(), "uid")] == expected
