"""The program with machines in Google Cloud, run by the real engine with the stand-in for Google Cloud."""

import json
import subprocess
from typing import Any

import pytest

from tests.engine.previews import Previews, inputs
from tools.rehearse import KEY

MACHINES = ("machines-scheduler", "machines-worker-1", "machines-worker-2")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Previews:
    return Previews("vms", tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="module")
def states(stack: Previews) -> dict[str, dict[str, Any]]:
    return stack.resources()


@pytest.fixture(scope="module")
def shipped(states: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return inputs(states)


@pytest.fixture(scope="module")
def changed(stack: Previews) -> dict[str, dict[str, Any]]:
    """The inputs of a stack whose settings all differ from the shipped ones."""
    settings = {
        "iapPort": 2222,
        "network": {"name": "ours", "project": "our-host", "subnetwork": "part", "range": "10.1.0.0/24"},
        "scheduler": {"machine": "n4-standard-4"},
        "worker": {"machine": "n1-standard-8", "accelerators": {"type": "nvidia-tesla-t4", "count": 2}, "localSsds": 2},
        "dataDisk": {"name": "mine"},
        "labels": {"team": "research"},
        "roles": ["roles/storage.objectViewer"],
        "secureBoot": False,
        "image": "ubuntu-os-cloud/ubuntu-2204-lts",
    }
    return inputs(
        stack.resources(
            machines=stack.shipped["machines"] | settings,
            firewall={},
            limits={"maxAge": "2h"},
            data={"machine": "worker-1", "buckets": [{"name": "readable"}, {"name": "writable", "write": True}]},
        )
    )


@pytest.fixture(scope="module")
def bounded(stack: Previews) -> dict[str, dict[str, Any]]:
    return stack.resources(workers={"min": 1})


@pytest.fixture(scope="module")
def grouped(stack: Previews) -> dict[str, dict[str, Any]]:
    gpu = {"machine": "n1-standard-4", "accelerators": {"type": "nvidia-tesla-t4", "count": 2}, "localSsds": 1}
    groups = [{"name": "gpu", "machines": 2, "worker": gpu}, {"name": "more"}]
    return stack.resources(workers={"groups": groups}, limits=stack.shipped["limits"] | {"hourlyCost": 9})


@pytest.fixture(scope="module")
def bounded_with_group(stack: Previews) -> dict[str, dict[str, Any]]:
    return stack.resources(workers={"min": 1, "groups": [{"name": "big"}]})


def instances(planned: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [planned[name] for name in MACHINES]


def of_kind(states: dict[str, dict[str, Any]], *kinds: str) -> dict[str, dict[str, Any]]:
    """The inputs of the resources of these kinds."""
    return inputs({name: state for name, state in states.items() if state["type"].rpartition(":")[2] in kinds})


def test_only_the_scheduler_has_a_public_address(shipped: dict, changed: dict) -> None:
    interfaces = [each["networkInterfaces"][0] for each in instances(shipped)]
    assert [bool(each.get("accessConfigs")) for each in interfaces] == [True, False, False]
    external = {name for name, each in shipped.items() if each.get("addressType") == "EXTERNAL"}
    assert external == {"machines-door-address"}
    # Connections through IAP need no public address.
    assert not any(each["networkInterfaces"][0].get("accessConfigs") for each in instances(changed))


def test_ssh_is_open_only_to_the_configured_networks(shipped: dict, changed: dict) -> None:
    door = shipped["machines-door-open"]
    assert door["sourceRanges"] == ["203.0.113.7/32"]
    assert door["allows"] == [{"protocol": "tcp", "ports": ["22"]}]
    assert changed["machines-door-open"]["sourceRanges"] == ["35.235.240.0/20"]


def test_firewall_rules_select_machines_by_service_account(states: dict) -> None:
    def accounts(name: str, argument: str) -> set[str]:
        return {urn.split("::")[-1] for urn in states[name]["propertyDependencies"][argument]}

    assert accounts("machines-door-open", "targetServiceAccounts") == {"machines-door-account"}
    for rule in ("machines-inside-open", "machines-others-closed"):
        assert accounts(rule, "targetServiceAccounts") == {"machines-door-account", "machines-account"}
    assert accounts("machines-inside-open", "sourceServiceAccounts") == {
        "machines-door-account",
        "machines-account",
    }
    found = [accounts(name, "serviceAccount") for name in MACHINES]
    assert found == [{"machines-door-account"}, {"machines-account"}, {"machines-account"}]


def test_inside_the_network_only_the_clusters_accounts_reach_its_ports(states: dict) -> None:
    inside = states["machines-inside-open"]["inputs"]
    assert "sourceRanges" not in inside
    ports = ["22", "8786", "8787", "9000-9002", "32768-60999"]
    assert inside["allows"] == [{"protocol": "tcp", "ports": ports}, {"protocol": "icmp"}]
    assert of_kind(states, "Firewall").keys() == {
        "machines-door-open",
        "machines-inside-open",
        "machines-others-closed",
    }


def test_traffic_that_other_firewall_rules_allow_is_denied(shipped: dict, changed: dict) -> None:
    for found in (shipped, changed):
        closed = found["machines-others-closed"]
        assert (closed["sourceRanges"], closed["denies"]) == (["0.0.0.0/0"], [{"protocol": "all"}])
        allowed = {found[name]["priority"] for name in ("machines-door-open", "machines-inside-open")}
        assert max(allowed) < closed["priority"] < 65534, "Google's default rules have priority 65534"


def test_a_shared_vpc_gets_the_firewall_rules_and_the_stacks_project_the_rest(shipped: dict, changed: dict) -> None:
    rules = {"machines-door-open", "machines-inside-open", "machines-others-closed"}
    for found, host in (shipped, "my-project"), (changed, "our-host"):
        projects = {name: each["project"] for name, each in found.items() if "project" in each}
        assert {projects.pop(name) for name in rules} == {host}
        assert set(projects.values()) == {"my-project"}
    part = "projects/our-host/regions/us-central1/subnetworks/part"
    assert {each["networkInterfaces"][0]["subnetwork"] for each in instances(changed)} == {part}
    assert changed["machines-door-open"]["network"] == "projects/our-host/global/networks/ours"


def test_the_machines_account_has_only_the_configured_roles(shipped: dict, changed: dict) -> None:
    assert not [each for each in shipped.values() if "role" in each]
    given = [each["role"] for each in changed.values() if "role" in each and "bucket" not in each]
    assert given == 2 * ["roles/storage.objectViewer"]
    assert shipped["machines-account"]["accountId"] == "dask-vms"
    assert shipped["machines-door-account"]["accountId"] == "door-dask-vms"


def test_without_bounds_no_account_can_start_or_stop_machines(shipped: dict, changed: dict) -> None:
    for found in (shipped, changed):
        assert not [name for name in found if name.endswith("-power")]
        assert not [each for each in found.values() if "instanceName" in each or "permissions" in each]


def test_with_bounds_the_schedulers_account_can_start_and_stop_the_workers_machines_and_nothing_else(
    bounded: dict, shipped: dict
) -> None:
    role = bounded["machines-power"]["inputs"]
    assert role["permissions"] == ["compute.instances.get", "compute.instances.start", "compute.instances.stop"]
    granted = of_kind(bounded, "InstanceIAMMember")
    assert {name: (each["instanceName"], each["zone"]) for name, each in granted.items()} == {
        f"machines-worker-{number}-power": (f"dask-vms-worker-{number}", "us-central1-a") for number in (1, 2)
    }
    for name in granted:
        needs = bounded[name]["propertyDependencies"]
        assert {urn.split("::")[-1] for urn in needs["member"]} == {"machines-door-account"}
        assert {urn.split("::")[-1] for urn in needs["role"]} == {"machines-power"}
    assert not of_kind(bounded, "IAMMember")
    assert bounded.keys() - shipped.keys() == {"machines-power", "machines-power-id", *granted, "dask-power"}


def test_machines_of_groups_are_on_although_the_stack_has_bounds(bounded_with_group: dict) -> None:
    planned = inputs(bounded_with_group)
    assert [planned[f"machines-{name}"].get("desiredStatus") for name in ("worker-1", "big-1")] == [None, "RUNNING"]
    assert planned["machines-big-1-power"]["instanceName"] == "dask-vms-big-1", "Google can preempt it"


def test_with_bounds_up_starts_no_workers_machine_but_for_its_steps(bounded: dict) -> None:
    planned = inputs(bounded)
    assert [each.get("desiredStatus") for each in instances(planned)] == ["RUNNING", None, None]
    for number in (1, 2):
        needed = {urn.split("::")[-1] for urn in bounded[f"dask-worker-{number}-firewall"]["dependencies"]}
        assert "dask-power" in needed, "the service that starts the machine"


def test_both_accounts_get_the_smallest_role_on_each_bucket_and_on_no_other(shipped: dict, changed: dict) -> None:
    assert not [each for each in shipped.values() if "bucket" in each]
    roles = {name: (each["bucket"], each["role"]) for name, each in changed.items() if "bucket" in each}
    assert roles == {
        f"machines-{account}-bucket-{bucket}": (bucket, f"roles/storage.object{role}")
        for account in ("account", "door-account")
        for bucket, role in (("readable", "Viewer"), ("writable", "User"))
    }


def test_machines_are_shielded_and_accept_only_the_stacks_key(shipped: dict, changed: dict) -> None:
    for each in instances(shipped):
        assert each["shieldedInstanceConfig"] == {
            "enableSecureBoot": True,
            "enableVtpm": True,
            "enableIntegrityMonitoring": True,
        }
        metadata = each["metadata"]
        assert (metadata["block-project-ssh-keys"], metadata["enable-oslogin"]) == ("TRUE", "FALSE")
    assert changed["machines-worker-1"]["shieldedInstanceConfig"]["enableSecureBoot"] is False


def test_resources_have_the_stacks_label_or_its_name_in_their_description(
    states: dict, shipped: dict, changed: dict
) -> None:
    """`make leftovers` finds the stack's resources by these."""
    labels = {"dask-stack": "vms"}
    assert all(each["labels"] == labels for each in of_kind(states, "Instance", "Disk", "Address").values())
    described = of_kind(states, "Network", "Firewall", "Account")
    assert {each["description"] for each in described.values()} == {"dask-stack: vms"}
    assert all(each["bootDisk"]["initializeParams"]["labels"] == labels for each in instances(shipped))
    assert all(each["labels"] == labels | {"team": "research"} for each in instances(changed))


def test_an_existing_network_is_used_unchanged(shipped: dict, changed: dict) -> None:
    own = {f"machines-{kind}" for kind in ("network", "subnetwork", "router", "nat")}
    assert own <= shipped.keys() and own.isdisjoint(changed)
    for each in instances(changed):
        assert each["networkInterfaces"][0]["subnetwork"] == "projects/our-host/regions/us-central1/subnetworks/part"


def test_preempted_workers_are_stopped_and_machines_past_max_age_are_deleted(shipped: dict, changed: dict) -> None:
    scheduler, worker, _ = (each["scheduling"] for each in instances(shipped))
    assert scheduler["provisioningModel"] == "STANDARD" and scheduler["automaticRestart"]
    assert "maxRunDuration" not in scheduler
    assert (worker["provisioningModel"], worker["instanceTerminationAction"]) == ("SPOT", "STOP")
    assert worker["preemptible"] and not worker["automaticRestart"]
    for each in instances(changed):
        assert each["scheduling"]["maxRunDuration"] == {"seconds": 7200}
        assert each["scheduling"]["instanceTerminationAction"] == "DELETE"


def test_machine_types_images_and_gpus_follow_the_settings(shipped: dict, changed: dict) -> None:
    assert [each["machineType"] for each in instances(shipped)] == ["e2-standard-2", *2 * ["e2-standard-4"]]
    images = {each["bootDisk"]["initializeParams"]["image"] for each in instances(shipped)}
    assert images == {"debian-cloud/debian-12"}
    kinds = [each["bootDisk"]["initializeParams"]["type"] for each in instances(changed)]
    assert kinds == ["hyperdisk-balanced", "pd-balanced", "pd-balanced"], "N4 machines have no other disks"
    worker = changed["machines-worker-1"]
    assert worker["guestAccelerators"] == [{"type": "nvidia-tesla-t4", "count": 2}]
    assert worker["scheduling"]["onHostMaintenance"] == "TERMINATE"  # machines with GPUs cannot migrate live
    assert worker["bootDisk"]["initializeParams"]["image"] == "ubuntu-os-cloud/ubuntu-2204-lts"


def test_machines_of_groups_have_their_own_type_or_that_of_the_workers(grouped: dict) -> None:
    planned = inputs(grouped)
    first, second, more = (planned[f"machines-{name}"] for name in ("gpu-1", "gpu-2", "more-1"))
    for each in (first, second):
        assert each["machineType"] == "n1-standard-4"
        assert each["guestAccelerators"] == [{"type": "nvidia-tesla-t4", "count": 2}]
        assert each["scratchDisks"] == [{"interface": "NVME"}]
        assert each["scheduling"]["provisioningModel"] == "STANDARD"
    assert [each["name"] for each in (first, second)] == ["dask-vms-gpu-1", "dask-vms-gpu-2"]
    like = planned["machines-worker-2"]
    assert more == like | {"name": "dask-vms-more-1", "networkInterfaces": more["networkInterfaces"]}


def test_a_machine_is_of_the_kind_and_in_the_zone_of_its_entry_of_capacity(stack: Previews) -> None:
    machines = stack.shipped["machines"]
    capacity = [{}, {"zone": "us-central1-b", "machine": "n2-standard-4", "spot": False}]
    placed = {"worker": machines["worker"] | {"capacity": capacity}, "placement": {"worker-2": 1}}
    states = stack.resources(machines=machines | placed, workers={"min": 1})
    planned = inputs(states)
    scheduler, first, second = instances(planned)
    assert [each["zone"] for each in (scheduler, first, second)] == [f"us-central1-{zone}" for zone in "aab"]
    assert [each["machineType"] for each in (first, second)] == ["e2-standard-4", "n2-standard-4"]
    models = [each["scheduling"]["provisioningModel"] for each in (first, second)]
    assert models == ["SPOT", "STANDARD"]
    assert [planned[f"machines-worker-{number}-power"]["zone"] for number in (1, 2)] == [
        "us-central1-a",
        "us-central1-b",
    ]
    assert "--zone us-central1-b " in planned["machines-worker-2-ready"]["environment"]["CONSOLE"]


def test_groups_change_no_other_resource_in_google_cloud_but_the_ports_inside(grouped: dict, states: dict) -> None:
    def clouds(states: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        planned = inputs({name: each for name, each in states.items() if each["type"].startswith("gcp:")})
        # Each preview makes another login key.
        return {
            name: {key: given for key, given in each.items() if key != "metadata"} for name, each in planned.items()
        }

    found, before = clouds(grouped), clouds(states)
    new = found.keys() - before.keys()
    machines = ("gpu-1", "gpu-2", "more-1")
    assert {f"dask-{name}-idle" for name in machines} <= grouped.keys(), "limits.idle powers them off, too"
    assert new == {f"machines-{name}{kind}" for name in machines for kind in ("", "-address")}
    assert [name for name in before if found[name] != before[name]] == ["machines-inside-open"]
    assert "9000-9005" in found["machines-inside-open"]["allows"][0]["ports"]
    others = {name for name in grouped.keys() - states.keys() if not any(machine in name for machine in machines)}
    assert not others and not states.keys() - grouped.keys()


def test_only_workers_have_local_ssds(shipped: dict, changed: dict) -> None:
    assert not any(each.get("scratchDisks") for each in instances(shipped))
    scheduler, *workers = instances(changed)
    assert not scheduler.get("scratchDisks")
    assert [each["scratchDisks"] for each in workers] == 2 * [2 * [{"interface": "NVME"}]]


def test_the_data_disk_is_attached_to_the_machine_that_holds_the_data(shipped: dict, changed: dict) -> None:
    assert [len(each.get("attachedDisks") or []) for each in instances(shipped)] == [1, 0, 0]
    assert [len(each.get("attachedDisks") or []) for each in instances(changed)] == [0, 1, 0]
    [mine] = changed["machines-worker-1"]["attachedDisks"]
    assert mine["source"] == "projects/my-project/zones/us-central1-a/disks/mine"
    assert "machines-data" not in changed


def test_the_data_disk_survives_destroy_unless_data_delete_is_set(stack: Previews, states: dict) -> None:
    assert states["machines-data"].get("retainOnDelete") is True
    assert not stack.resources(data={"delete": True})["machines-data"].get("retainOnDelete")


def test_destroy_deletes_the_data_disk_if_data_delete_is_set(stack: Previews) -> None:
    def disks() -> list[str]:
        return [path.stem for path in (stack.folder / "gcp").rglob("disks/*.json")]

    stack.start({"config": {KEY: stack.shipped | {"data": {"delete": True}}}})
    # Only the disk and what it depends on, so that no machine starts.
    kinds = (
        "gcp:compute/disk:Disk",
        "gcp:projects/service:Service",
        "dask:index:DaskOnMachines",
        "dask:index:ComputeMachines",
    )
    stack.pulumi("up", "--yes", "--skip-preview", *(f"--target=**{kind}::*" for kind in kinds))
    assert disks() == ["dask-vms-data"]
    stack.destroy()
    assert disks() == []


def test_private_keys_are_encrypted(shipped: dict) -> None:
    assert "PRIVATE KEY" not in json.dumps(shipped)


def test_destroy_leaves_apis_enabled(states: dict) -> None:
    services = of_kind(states, "Service").values()
    assert {each["service"].split(".")[0] for each in services} == {"compute", "iam"}
    assert not any(each["disableOnDestroy"] for each in services)


def test_up_without_credentials_fails_before_creating_anything(stack: Previews) -> None:
    stack.start({"config": {KEY: stack.shipped}})
    bare = {name: value for name, value in stack.environ.items() if not name.startswith("GOOGLE_")}
    whole, stack.environ = stack.environ, {**bare, "HOME": str(stack.folder)}
    try:
        with pytest.raises(subprocess.CalledProcessError) as raised:
            stack.pulumi("up", "--yes", "--skip-preview", capture_output=True, text=True)
    finally:
        stack.environ = whole
    assert "an account: run `gcloud auth application-default login`" in raised.value.stdout
    assert "+ 1 created" in raised.value.stdout, "more than the stack itself was created"
