"""What `up` says about Google's errors, whose texts are from public reports."""

import json
from pathlib import Path
from typing import Any

import pytest

from daskstack import configuration, engine
from tools import google_errors, google_policies

LOGIN = (
    "Error creating instance: googleapi: Error 412: Constraint constraints/compute.requireOsLogin violated for project"
    " my-project. Instances with enable-oslogin=FALSE are not allowed., conditionNotMet"
)
CASES = {
    "Error waiting for instance to create: Quota 'CPUS' exceeded.  Limit: 8.0 in region us-east1.\n\tmetric name =": (
        "the project's quota CPUS in region us-east1 is 8.0: write fewer or smaller machines, or ask for more on https"
    ),
    "googleapi: Error 403: Quota 'SSD_TOTAL_GB' exceeded.  Limit: 500.0 in region europe-west3., quotaExceeded": (
        "the project's quota SSD_TOTAL_GB in region europe-west3 is 500.0: write smaller disks, or ask"
    ),
    "Error waiting for instance to create: Quota 'GPUS_ALL_REGIONS' exceeded.  Limit: 0.0 globally.": (
        "the project's quota GPUS_ALL_REGIONS globally is 0.0: new projects have a quota of 0 GPUs, or ask"
    ),
    'googleapi: Error 403: Insufficient regional quota to satisfy request: resource "IN_USE_ADDRESSES": request'
    " requires '9.0' and is short '1.0'. project has a quota of '8.0' with '8.0' available.": (
        "the project's quota IN_USE_ADDRESSES is too small by 1.0: set machines.iapPort"
    ),
    "Not all instances running in IGM after 26.6s. Expected 3, running 0, transitioning 3. Current errors:"
    " [GCE_QUOTA_EXCEEDED]: Instance 'gke-a' creation failed: Quota 'IN_USE_ADDRESSES' exceeded.  Limit: 8.0 in region"
    " europe-central2.": "the project's quota IN_USE_ADDRESSES in region europe-central2 is 8.0: set machines.iapPort",
    "googleapi: Error 400: Invalid value for field 'resource.machineType': 'https://www.googleapis.com/compute/v1/"
    "projects/p/zones/us-west4-b/machineTypes/c4-standard-4'. Machine type with name 'c4-standard-4' does not exist in"
    " zone 'us-west4-b'., invalid": "zone us-west4-b has no c4-standard-4: write another machine type or zone; `gcloud",
    "Current errors: [GCE_STOCKOUT]: Instance 'gke-a' creation failed: The zone 'projects/p/zones/europe-west3-c' does"
    " not have enough resources available to fulfill the request.": "Google has no such machines left in this zone now",
    LOGIN: "the organization's policy compute.requireOsLogin forbids machines with SSH keys in their metadata",
    "googleapi: Error 412: Constraint constraints/compute.vmExternalIpAccess violated for project 123456789. Add"
    " instance projects/p/zones/us-central1-f/instances/i to the constraint to use external IP with it.": (
        "the organization's policy compute.vmExternalIpAccess forbids external addresses: set machines.iapPort: 2222"
    ),
    'googleapi: Error 412: Operation denied by custom org policies: ["customConstraints/custom.needLabels": "Machines'
    ' need the label cost-center"].': "the organization's own policy custom.needLabels forbids this: if it asks",
    "googleapi: Error 412: Constraint constraints/compute.requireShieldedVm violated for project projects/p.": (
        "the organization's policy constraints/compute.requireShieldedVm forbids this: ask its administrators"
    ),
    "googleapi: Error 403: Required 'compute.firewalls.create' permission for 'projects/host/global/firewalls/dask-vms-"
    "door', forbidden": "you may not change firewall rules of project host: in a Shared VPC you need roles/",
    "googleapi: Error 403: Required 'compute.subnetworks.use' permission for 'projects/host/regions/r/subnetworks/s'": (
        "you may not use projects/host/regions/r/subnetworks/s: in a Shared VPC you need roles/compute.networkUser on"
    ),
    "googleapi: Error 403: Required 'compute.disks.create' permission for 'projects/p/zones/z/disks/d', forbidden": (
        "you lack the permission compute.disks.create on projects/p/zones/z/disks/d: ask for a role"
    ),
    "googleapi: Error 403: This API method requires billing to be enabled. Please enable billing on project #1": (
        "the project has no billing account: https://console.cloud.google.com/billing/projects"
    ),
}


@pytest.mark.parametrize(("message", "sentence"), CASES.items())
def test_each_of_googles_errors_is_followed_by_what_to_do(message: str, sentence: str) -> None:
    [found] = google_errors.explanations([message])
    assert found.startswith(sentence)
    assert "\n" not in found


def test_only_errors_are_explained_and_each_cause_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = [{"diagnosticEvent": {"severity": each, "message": LOGIN}} for each in ("error", "error", "info")]
    log = tmp_path / "events"
    log.write_text("\n".join([*map(json.dumps, [{"preludeEvent": {}}, *events]), '{"diagnosticEv']))
    assert len(google_errors.messages(log.read_text())) == 2
    google_errors.main(str(log))
    assert capsys.readouterr().err.count("Google Cloud: the organization's policy compute.requireOsLogin") == 1
    google_errors.main(str(tmp_path / "none"))
    assert google_errors.explanations(["no such network", ""]) == []


LOGIN_REQUIRED = {"booleanPolicy": {"enforced": True}}
NO_ADDRESSES = {"listPolicy": {"allValues": "DENY"}}


@pytest.mark.parametrize(
    ("policies", "machines", "said"),
    [
        (
            {"requireOsLogin": LOGIN_REQUIRED},
            {"iapPort": 2222},
            "compute.requireOsLogin forbids machines with SSH keys",
        ),
        ({"vmExternalIpAccess": NO_ADDRESSES}, {}, "forbids external addresses: set machines.iapPort: 2222"),
        ({"vmExternalIpAccess": NO_ADDRESSES}, {"iapPort": 2222}, ""),
        (
            {"requireOsLogin": {"booleanPolicy": {}}, "vmExternalIpAccess": {"listPolicy": {"allValues": "ALLOW"}}},
            {},
            "",
        ),
        ({}, {}, ""),
    ],
)
def test_policies_that_forbid_the_machines_stop_the_first_up(
    policies: dict[str, Any], machines: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, found in policies.items():
        (tmp_path / f"compute.{name}").write_text(json.dumps(found))
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(f'#!/bin/sh\n[ "$6" = my-project ] && exec cat "{tmp_path}/$4"\n')
    gcloud.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    stack = {"machines": {"project": "my-project", **machines}}
    monkeypatch.setattr(configuration, "read", lambda stack_: stack)
    monkeypatch.setattr(engine, "outputs", lambda stack_, secrets: {})
    if said:
        with pytest.raises(SystemExit, match=f"^error: the organization's policy .*{said}.*; nothing was created$"):
            google_policies.main("vms")
    else:
        google_policies.main("vms")
    monkeypatch.setattr(engine, "outputs", lambda stack_, secrets: {"admin": 1})
    google_policies.main("vms")  # the stack exists, so its machines were accepted
