"""`make leftovers` in a project that is shared with other stacks."""

from typing import Any

import pytest

from tools.cloud_leftovers import KINDS, left

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
    "iam roles": [{"name": "projects/p/roles/dask_gke_1a2b3c4d", "description": "dask-stack: gke"}],
    "iam service-accounts": [
        {"name": "projects/p/x", "email": "dask-gke@p.iam.gserviceaccount.com", "description": "dask-stack: gke"}
    ],
}
# Resources of stacks whose names begin or end like this one's, and resources that mention its name elsewhere.
OTHERS: dict[str, list[dict[str, Any]]] = {
    "container clusters": [
        {"name": "dask-gke2", "location": "us-central1-a", "resourceLabels": {"dask-stack": "gke2"}},
        {"name": "my-dask-gke", "location": "us-central1-a", "resourceLabels": {"team": "gke"}},
    ],
    "compute instances": [
        {"name": "gke-dask-gke2-workers-1", "labels": {"goog-k8s-cluster-name": "dask-gke2"}},
        {"name": "dask-gke-1", "labels": {"dask-stack": "gke-1"}},
    ],
    "compute disks": [{"name": "pvc-2", "sizeGb": "10", "labels": {"goog-k8s-cluster-name": "dask-gke2"}}],
    "compute forwarding-rules": [
        {"name": "a4567", "description": '{"kubernetes.io/service-name":"dask-gke2/dask-jupyter"}'},
        {"name": "a89ab", "description": '{"kubernetes.io/service-name":"my-dask-gke/dask-jupyter"}'},
    ],
    "compute addresses": [
        {"name": "nat-auto-ip-2", "users": [f"{URL}/regions/us-central1/routers/dask-gke2"]},
        {"name": "free", "users": []},
    ],
    "compute firewall-rules": [
        {"name": "gke-dask-gke2-all", "network": f"{URL}/global/networks/dask-gke2"},
        {"name": "dask-gke-extra", "network": f"{URL}/global/networks/my-dask-gke"},
    ],
    "compute routers": [{"name": "dask-gke2", "network": f"{URL}/global/networks/dask-gke2"}],
    "compute networks subnets": [{"name": "dask-gke2"}, {"name": "my-dask-gke"}],
    "compute networks": [{"name": "default"}, {"name": "dask-gke2"}],
    "iam roles": [{"name": "projects/p/roles/dask_gke_2_1a2b3c4d", "description": "dask-stack: gke-2"}],
    "iam service-accounts": [
        {
            "name": "projects/p/y",
            "email": "dask-gke2@p.iam.gserviceaccount.com",
            "description": "dask-stack: gke2",
        }
    ],
}


def test_exactly_the_stacks_resources_are_listed() -> None:
    """A user who runs the printed commands must not delete resources of another stack."""
    assert all(OTHERS[kind.group] for kind in KINDS)
    listed = {kind.group: OTHERS[kind.group] + OURS[kind.group] + OTHERS[kind.group] for kind in KINDS}
    assert list(left("gke", "p", listed)) == list(left("gke", "p", OURS))
    assert len(list(left("gke", "p", OURS))) == len(KINDS)
    assert not list(left("gke", "p", OTHERS))


@pytest.mark.parametrize(
    ("name", "month", "command"),
    [
        ("clusters dask-gke", 73.0, "gcloud container clusters delete dask-gke --location us-central1-a --project p"),
        (
            "instances gke-dask-gke-workers-1",
            (4 * 0.031611 + 15 * 0.004237) * 0.6 * 730,
            "gcloud compute instances delete gke-dask-gke-workers-1 --zone us-central1-a --project p",
        ),
        ("disks pvc-1", 7.3, "gcloud compute disks delete pvc-1 --zone us-central1-a --project p"),
        (
            "forwarding-rules a0123",
            18.25,
            "gcloud compute forwarding-rules delete a0123 --region us-central1 --project p",
        ),
        (
            "addresses nat-auto-ip-1",
            3.65,
            "gcloud compute addresses delete nat-auto-ip-1 --region us-central1 --project p",
        ),
        ("firewall-rules gke-dask-gke-all", 0.0, "gcloud compute firewall-rules delete gke-dask-gke-all --project p"),
        ("routers dask-gke", 0.0, "gcloud compute routers delete dask-gke --region us-central1 --project p"),
        ("subnets dask-gke", 0.0, "gcloud compute networks subnets delete dask-gke --region us-central1 --project p"),
        ("networks dask-gke", 0.0, "gcloud compute networks delete dask-gke --project p"),
        ("roles dask_gke_1a2b3c4d", 0.0, "gcloud iam roles delete dask_gke_1a2b3c4d --project p"),
        (
            "service-accounts dask-gke@p.iam.gserviceaccount.com",
            0.0,
            "gcloud iam service-accounts delete dask-gke@p.iam.gserviceaccount.com --project p",
        ),
    ],
)
def test_each_resource_has_its_monthly_cost_and_the_command_that_deletes_it(
    name: str, month: float, command: str
) -> None:
    found = {name: rest for name, *rest in left("gke", "p", OURS)}
    assert found[name] == [pytest.approx(month), command]
