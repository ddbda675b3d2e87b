"""The program with machines in Google Cloud, in the real engine with the stand-in for Google Cloud."""

import json
import subprocess
from typing import Any

import pytest

from tests.engine.previews import Previews
from tools.rehearse import KEY

MACHINES = ("machines-scheduler", "machines-worker-1", "machines-worker-2")


class Stack(Previews):
    def resources(self, machines: dict[str, Any] | None = None, **changed: Any) -> dict[str, dict[str, Any]]:
        """What a preview would make, by type's last word and name."""
        states = self.states(machines=self.shipped["machines"] | (machines or {}), **changed)
        return {f"{state['type'].split(':')[-1]} {state['urn'].split('::')[-1]}": state for state in states}

    def inputs(self, machines: dict[str, Any] | None = None, **changed: Any) -> dict[str, dict[str, Any]]:
        return {name: state.get("inputs", {}) for name, state in self.resources(machines, **changed).items()}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return Stack("vms", tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="module")
def states(stack: Stack) -> dict[str, dict[str, Any]]:
    return stack.resources()


@pytest.fixture(scope="module")
def shipped(states: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: state.get("inputs", {}) for name, state in states.items()}


@pytest.fixture(scope="module")
def changed(stack: Stack) -> dict[str, dict[str, Any]]:
    """All that a stack can have otherwise at once."""
    return stack.inputs(
        {
            "iapPort": 2222,
            "network": {"name": "ours", "subnetwork": "part", "range": "10.1.0.0/24"},
            "worker": {"machine": "n1-standard-8", "accelerators": {"type": "nvidia-tesla-t4", "count": 2}},
            "dataDisk": {"name": "mine"},
            "labels": {"team": "research"},
            "roles": ["roles/storage.objectViewer"],
            "secureBoot": False,
            "image": "ubuntu-os-cloud/ubuntu-2204-lts",
        },
        firewall={},
        limits={"maxAge": "2h"},
        data={"machine": "worker-1"},
    )


def instances(inputs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [inputs[f"Instance {name}"] for name in MACHINES]


def test_the_schedulers_machine_alone_has_an_address_on_the_internet(shipped: dict, changed: dict) -> None:
    interfaces = [each["networkInterfaces"][0] for each in instances(shipped)]
    assert [bool(each.get("accessConfigs")) for each in interfaces] == [True, False, False]
    assert {name for name, each in shipped.items() if each.get("addressType") == "EXTERNAL"} == {
        "Address machines-door-address"
    }
    assert not any(each["networkInterfaces"][0].get("accessConfigs") for each in instances(changed))  # IAP needs none


def test_the_door_lets_the_named_networks_in_to_ssh_and_to_the_schedulers_machine(shipped: dict, changed: dict) -> None:
    door = shipped["Firewall machines-door-open"]
    assert door["sourceRanges"] == ["203.0.113.7/32"]
    assert door["allows"] == [{"protocol": "tcp", "ports": ["22"]}]
    assert changed["Firewall machines-door-open"]["sourceRanges"] == ["35.235.240.0/20"]


def test_rules_tell_the_clusters_machines_apart_by_their_accounts(states: dict) -> None:
    def accounts(name: str, argument: str) -> set[str]:
        return {urn.split("::")[-1] for urn in states[name]["propertyDependencies"][argument]}

    assert accounts("Firewall machines-door-open", "targetServiceAccounts") == {"machines-door-account"}
    for rule in ("machines-inside-open", "machines-others-closed"):
        assert accounts(f"Firewall {rule}", "targetServiceAccounts") == {"machines-door-account", "machines-account"}
    assert accounts("Firewall machines-inside-open", "sourceServiceAccounts") == {
        "machines-door-account",
        "machines-account",
    }
    found = [accounts(f"Instance {name}", "serviceAccount") for name in MACHINES]
    assert found == [{"machines-door-account"}, {"machines-account"}, {"machines-account"}]


def test_inside_the_clusters_own_ports_are_open_to_the_clusters_own_account_alone(shipped: dict) -> None:
    inside = shipped["Firewall machines-inside-open"]
    assert "sourceRanges" not in inside
    ports = ["22", "8786", "8787", "9000-9002"]
    assert inside["allows"] == [{"protocol": "tcp", "ports": ports}, {"protocol": "icmp"}]
    rules = {name for name in shipped if name.startswith("Firewall ")}
    assert rules == {"Firewall machines-door-open", "Firewall machines-inside-open", "Firewall machines-others-closed"}


def test_whatever_else_a_network_lets_in_is_denied_to_the_clusters_machines(shipped: dict, changed: dict) -> None:
    for found in (shipped, changed):
        closed = found["Firewall machines-others-closed"]
        assert (closed["sourceRanges"], closed["denies"]) == (["0.0.0.0/0"], [{"protocol": "all"}])
        allowed = {found[f"Firewall {name}"]["priority"] for name in ("machines-door-open", "machines-inside-open")}
        assert max(allowed) < closed["priority"] < 65534, "Google's own rules have 65534"


def test_the_machines_account_has_no_rights_but_those_that_are_asked_for(shipped: dict, changed: dict) -> None:
    assert not [each for each in shipped.values() if "role" in each]
    assert [each["role"] for each in changed.values() if "role" in each] == 2 * ["roles/storage.objectViewer"]
    assert shipped["Account machines-account"]["accountId"] == "dask-vms"
    assert shipped["Account machines-door-account"]["accountId"] == "door-dask-vms"


def test_machines_are_shielded_and_take_no_keys_but_the_stacks(shipped: dict, changed: dict) -> None:
    for each in instances(shipped):
        assert each["shieldedInstanceConfig"] == {
            "enableSecureBoot": True,
            "enableVtpm": True,
            "enableIntegrityMonitoring": True,
        }
        metadata = each["metadata"]
        assert (metadata["block-project-ssh-keys"], metadata["enable-oslogin"]) == ("TRUE", "FALSE")
    assert changed["Instance machines-worker-1"]["shieldedInstanceConfig"]["enableSecureBoot"] is False


def test_all_that_can_have_a_label_has_the_stacks_and_the_rest_names_it(shipped: dict, changed: dict) -> None:
    labels = {"dask-stack": "vms"}
    for name, each in shipped.items():
        if name.startswith(("Instance ", "Disk ", "Address ")):
            assert each["labels"] == labels
        if name.startswith(("Network ", "Firewall ")):
            assert each["description"] == "dask-stack: vms"
    assert all(each["bootDisk"]["initializeParams"]["labels"] == labels for each in instances(shipped))
    assert all(each["labels"] == labels | {"team": "research"} for each in instances(changed))


def test_a_network_that_is_there_is_used_as_it_is(shipped: dict, changed: dict) -> None:
    own = {f"{kind} machines-{kind.lower()}" for kind in ("Network", "Subnetwork", "Router")} | {
        "RouterNat machines-nat"
    }
    assert own <= shipped.keys() and own.isdisjoint(changed)
    for each in instances(changed):
        assert each["networkInterfaces"][0]["subnetwork"] == "projects/my-project/regions/us-central1/subnetworks/part"


def test_spot_workers_stop_and_machines_of_a_limited_age_are_deleted(shipped: dict, changed: dict) -> None:
    scheduler, worker, _ = (each["scheduling"] for each in instances(shipped))
    assert scheduler["provisioningModel"] == "STANDARD" and scheduler["automaticRestart"]
    assert "maxRunDuration" not in scheduler
    assert (worker["provisioningModel"], worker["instanceTerminationAction"]) == ("SPOT", "STOP")
    assert worker["preemptible"] and not worker["automaticRestart"]
    for each in instances(changed):
        assert each["scheduling"]["maxRunDuration"] == {"seconds": 7200}
        assert each["scheduling"]["instanceTerminationAction"] == "DELETE"


def test_machines_are_of_the_kinds_that_the_stack_names(shipped: dict, changed: dict) -> None:
    assert [each["machineType"] for each in instances(shipped)] == ["e2-standard-2", *2 * ["n1-standard-4"]]
    images = {each["bootDisk"]["initializeParams"]["image"] for each in instances(shipped)}
    assert images == {"debian-cloud/debian-12"}
    worker = changed["Instance machines-worker-1"]
    assert worker["guestAccelerators"] == [{"type": "nvidia-tesla-t4", "count": 2}]
    assert worker["scheduling"]["onHostMaintenance"] == "TERMINATE"  # GPUs cannot move
    assert worker["bootDisk"]["initializeParams"]["image"] == "ubuntu-os-cloud/ubuntu-2204-lts"


def test_the_datas_disk_is_on_the_machine_that_holds_them(shipped: dict, changed: dict) -> None:
    assert [len(each.get("attachedDisks") or []) for each in instances(shipped)] == [1, 0, 0]
    assert [len(each.get("attachedDisks") or []) for each in instances(changed)] == [0, 1, 0]
    [mine] = changed["Instance machines-worker-1"]["attachedDisks"]
    assert mine["source"] == "projects/my-project/zones/us-central1-a/disks/mine"
    assert "Disk machines-data" not in changed


def test_the_datas_disk_stays_when_the_stack_goes_unless_the_settings_say_otherwise(stack: Stack, states: dict) -> None:
    assert states["Disk machines-data"].get("retainOnDelete") is True
    assert not stack.resources(data={"delete": True})["Disk machines-data"].get("retainOnDelete")


def test_with_data_delete_the_datas_disk_goes_with_the_stack(stack: Stack) -> None:
    def disks() -> list[str]:
        return [path.stem for path in (stack.folder / "gcp").rglob("disks/*.json")]

    stack.start({"config": {KEY: stack.shipped | {"data": {"delete": True}}}})
    # The disk alone, with what it needs: no machine runs.
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


def test_nobodys_private_key_is_outside_encrypted_state(shipped: dict) -> None:
    assert "PRIVATE KEY" not in json.dumps(shipped)


def test_apis_stay_enabled_when_the_stack_goes(shipped: dict) -> None:
    services = [each for name, each in shipped.items() if name.startswith("Service ")]
    assert {each["service"].split(".")[0] for each in services} == {"compute", "iam"}
    assert not any(each["disableOnDestroy"] for each in services)


def test_up_asks_for_an_account_before_anything_is_made(stack: Stack) -> None:
    stack.start({"config": {KEY: stack.shipped}})
    bare = {name: value for name, value in stack.environ.items() if not name.startswith("GOOGLE_")}
    whole, stack.environ = stack.environ, {**bare, "HOME": str(stack.folder)}
    try:
        with pytest.raises(subprocess.CalledProcessError) as raised:
            stack.pulumi("up", "--yes", "--skip-preview", capture_output=True, text=True)
    finally:
        stack.environ = whole
    assert "an account: run `gcloud auth application-default login`" in raised.value.stdout
    assert "+ 1 created" in raised.value.stdout, "more than the stack itself"
