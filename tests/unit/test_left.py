"""What `make left` finds in a project that others use, too."""

from typing import Any

import pytest

from tools.left import KINDS, left

URL = "https://www.googleapis.com/compute/v1/projects/p"
OURS: dict[str, list[dict[str, Any]]] = {
    "container clusters": [{"name": "dask-gke", "location": "us-central1-a", "resourceLabels": {"dask-stack": "gke"}}],
    "compute instances": [
        {
            "name": "gke-dask-gke-workers-1",
            "labels": {"goog-k8s-cluster-name": "dask-gke"},
            "machineType": f"{URL}/zones/us-central1-a/machineTypes/n1-standard-4",
            "scheduling": {"provisioningModel": "SPOT"},
            "zone": f"{URL}/zones/us-central1-a",
        }
    ],
    "compute disks": [
        {
            "name": "pvc-1",
            "sizeGb": "73",
            "labels": {"goog-k8s-cluster-name": "dask-gke"},
            "zone": f"{URL}/zones/us-central1-a",
        }
    ],
    "compute forwarding-rules": [
        {
            "name": "a0123",
            "description": '{"kubernetes.io/service-name":"dask-gke/dask-jupyter"}',
            "region": f"{URL}/regions/us-central1",
        }
    ],
    "compute addresses": [
        {
            "name": "nat-auto-ip-1",
            "users": [f"{URL}/regions/us-central1/routers/dask-gke"],
            "region": f"{URL}/regions/us-central1",
        }
    ],
    "compute firewall-rules": [{"name": "gke-dask-gke-all", "network": f"{URL}/global/networks/dask-gke"}],
    "compute routers": [
        {
            "name": "dask-gke",
            "network": f"{URL}/global/networks/dask-gke",
            "region": f"{URL}/regions/us-central1",
        }
    ],
    "compute networks subnets": [{"name": "dask-gke", "region": f"{URL}/regions/us-central1"}],
    "compute networks": [{"name": "dask-gke"}],
    "iam service-accounts": [
        {"name": "projects/p/x", "email": "dask-gke@p.iam.gserviceaccount.com", "description": "dask-stack: gke"}
    ],
}
OTHERS: dict[str, list[dict[str, Any]]] = {
    "container clusters": [
        {"name": "dask-gke2", "location": "us-central1-a", "resourceLabels": {"dask-stack": "gke2"}}
    ],
    "compute disks": [{"name": "pvc-2", "sizeGb": "10", "labels": {"goog-k8s-cluster-name": "dask-gke2"}}],
    "compute forwarding-rules": [
        {"name": "a4567", "description": '{"kubernetes.io/service-name":"dask-gke2/dask-jupyter"}'}
    ],
    "compute networks": [{"name": "default"}],
    "iam service-accounts": [{"name": "projects/p/y", "email": "dask-gke2@p.iam.gserviceaccount.com"}],
}


def test_all_of_the_stacks_is_found_and_nothing_of_others() -> None:
    listed = {kind.group: OURS[kind.group] + OTHERS.get(kind.group, []) for kind in KINDS}
    found = list(left("gke", "p", listed))
    assert len(found) == len(KINDS)
    assert not [name for name, *_ in found if "gke2" in name or "default" in name]


@pytest.mark.parametrize(
    ("name", "month", "command"),
    [
        ("clusters dask-gke", 73.0, "gcloud container clusters delete dask-gke --location us-central1-a --project p"),
        (
            "instances gke-dask-gke-workers-1",
            (4 * 0.031611 + 15 * 0.004237) * 0.4 * 730,
            "gcloud compute instances delete gke-dask-gke-workers-1 --zone us-central1-a --project p",
        ),
        ("disks pvc-1", 7.3, "gcloud compute disks delete pvc-1 --zone us-central1-a --project p"),
        (
            "forwarding-rules a0123",
            18.25,
            "gcloud compute forwarding-rules delete a0123 --region us-central1 --project p",
        ),
        (
            "service-accounts dask-gke@p.iam.gserviceaccount.com",
            0.0,
            "gcloud iam service-accounts delete dask-gke@p.iam.gserviceaccount.com --project p",
        ),
    ],
)
def test_each_thing_has_its_monthly_cost_and_the_command_that_deletes_it(name: str, month: float, command: str) -> None:
    found = {name: rest for name, *rest in left("gke", "p", OURS)}
    assert found[name] == [pytest.approx(month), command]
