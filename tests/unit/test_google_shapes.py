"""What our programs read of Google's JSON, and what the stand-ins answer, is what Google documents."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daskstack import wake_machines
from daskstack.client_output import Google
from daskstack.engine import PROJECT
from daskstack.tunnel import TunnelError
from tests.client_outputs import CONNECTION
from tests.google_json import SHAPES, kind_of, wrong
from tests.unit.test_cloud_leftovers import OTHERS, OURS
from tests.unit.test_gcp_inputs import CONFIG, RIGHT
from tools import cloud_leftovers

from gcp import cloud  # isort: skip  (test_gcp_inputs knows where that is)

PACKAGE = "google-api-python-client"
GCLOUD = PROJECT / "rehearsal" / "cloud" / "gcloud"
LISTED = [group for group in SHAPES["groups"] if not group.endswith("get-guest-attributes")]
NETWORK, SUBNETWORK = (
    "projects/my-project/global/networks/net",
    "projects/my-project/regions/us-central1/subnetworks/sub",
)
# More than what is right, so that as much as possible is answered.
MORE: dict[str, dict[str, Any]] = {
    "compute/address:Address": {"labels": {"a": "b"}, "description": "text"},
    "compute/disk:Disk": {"labels": {"a": "b"}, "type": "pd-ssd"},
    "compute/instance:Instance": {
        "networkInterfaces": [{"network": NETWORK, "subnetwork": SUBNETWORK, "accessConfigs": [{}]}],
        "scheduling": {"provisioningModel": "SPOT", "preemptible": True, "automaticRestart": False},
        "metadata": {"enable-oslogin": "FALSE"},
        "tags": ["dask"],
        "labels": {"a": "b"},
        "serviceAccount": {"email": "a@b.org", "scopes": ["cloud-platform"]},
        "shieldedInstanceConfig": {"enableSecureBoot": True},
    },
    "compute/subnetwork:Subnetwork": {"secondaryIpRanges": [{"rangeName": "pods", "ipCidrRange": "10.12.0.0/17"}]},
    "compute/firewall:Firewall": {"logConfig": {"metadata": "INCLUDE_ALL_METADATA"}},
    "container/cluster:Cluster": {
        "network": NETWORK,
        "ipAllocationPolicy": {"clusterSecondaryRangeName": "pods"},
        "resourceLabels": {"a": "b"},
        "releaseChannel": {"channel": "REGULAR"},
        "privateClusterConfig": {"enablePrivateNodes": True},
        "workloadIdentityConfig": {"workloadPool": "my-project.svc.id.goog"},
    },
}


def derive() -> Any:
    spec = importlib.util.spec_from_file_location("derive_shapes", GCLOUD.with_name("derive.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_shapes_are_those_of_googles_discovery_documents() -> None:
    try:
        folder = derive().documents()
    except ModuleNotFoundError:
        pytest.skip(f"{PACKAGE} is not installed, 110 MB that nothing else needs: `uv pip install {PACKAGE}` compares")
    assert derive().FILE.read_text() == derive().derived(folder), f"run {sys.executable} rehearsal/cloud/derive.py"


class Read(dict):
    """An object that notes which of its fields are read."""

    def __init__(self, fields: dict[str, Any], names: set[str], prefix: str = "") -> None:
        inner = {key: Read(item, names, f"{prefix}{key}.") for key, item in fields.items() if isinstance(item, dict)}
        super().__init__(fields | inner)
        self.names, self.prefix = names, prefix

    def get(self, key: str, default: Any = None) -> Any:
        self.names.add(self.prefix + key)
        if key not in self and isinstance(default, dict):
            return Read(default, self.names, f"{self.prefix}{key}.")
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.names.add(self.prefix + key)
        return super().__getitem__(key)


# What make leftovers reads of some things alone; a thing of another group has no such field.
LEFT = {
    "addressType": ("compute addresses", "EXTERNAL|INTERNAL|UNSPECIFIED_TYPE"),
    "description": ("compute forwarding-rules", "string"),
    "email": ("iam service-accounts", "string"),
    "labels": ("compute instances", "{string}"),
    "location": ("container clusters", "string"),
    "machineType": ("compute instances", "string"),
    "name": ("compute networks", "string"),
    "network": ("compute firewall-rules", "string"),
    "region": ("compute addresses", "string"),
    "resourceLabels": ("container clusters", "{string}"),
    "scheduling": ("compute instances", "compute.Scheduling"),
    "scheduling.provisioningModel": ("compute instances", "FLEX_START|RESERVATION_BOUND|SPOT|STANDARD"),
    "sizeGb": ("compute disks", "string:int64"),
    "type": ("compute disks", "string"),
    "users": ("compute disks", "[string]"),
    "zone": ("compute disks", "string"),
}


def test_make_leftovers_reads_documented_fields_of_googles_answers() -> None:
    names: set[str] = set()
    listed = {kind.group: [Read(each, names) for each in OURS[kind.group]] for kind in cloud_leftovers.KINDS}
    assert len(list(cloud_leftovers.left("gke", "p", listed))) == len(cloud_leftovers.KINDS)
    read = {name for name in names if not name.startswith(("labels.", "resourceLabels."))}
    assert read == LEFT.keys()
    for name, (group, kind) in LEFT.items():
        assert kind_of(group, name) == kind


@pytest.mark.parametrize(
    ("least", "started", "workers"), [(None, ["head", "w-2"], 1), (0, ["head"], 0), (3, ["head"], 3)]
)
def test_waking_a_stack_with_bounds_starts_the_schedulers_machine_alone(
    least: int | None, started: list[str], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    states = {"head": "TERMINATED", "w-1": "RUNNING", "w-2": "TERMINATED"}
    monkeypatch.setattr(wake_machines.shutil, "which", lambda _: "gcloud")
    monkeypatch.setattr(wake_machines, "statuses", lambda _: states)
    monkeypatch.setattr(wake_machines, "gcloud", lambda _, *words: asked.append(words))
    monkeypatch.setattr(wake_machines, "opens", lambda *_: True)
    google = Google(project="p", zone="z", machines={name: f"dask-{name}" for name in states})
    assert wake_machines.wake(google, CONNECTION, "head", least) == workers
    assert asked == [("start", *started)]


def waking(monkeypatch: pytest.MonkeyPatch, *without: str) -> tuple[Google, list[tuple[str, ...]]]:
    """Three machines that are off, and the commands that start them. Google has no capacity for those in `without`."""
    asked: list[tuple[str, ...]] = []
    states = dict.fromkeys(("dask-head", "dask-w-1", "dask-w-2"), "TERMINATED")

    def compute(google: Google, *words: str) -> str:
        if words[0] == "list":
            return json.dumps([{"name": name, "status": status} for name, status in states.items()])
        asked.append(words)
        names = words[1 : words.index("--zone")]
        states.update(dict.fromkeys(set(names) - set(without), "RUNNING"))
        if set(names) & set(without):
            raise TunnelError("The zone 'z' does not have enough resources available to fulfill the request.")
        return ""

    monkeypatch.setattr(wake_machines.shutil, "which", lambda _: "gcloud")
    monkeypatch.setattr(wake_machines, "_compute", compute)
    monkeypatch.setattr(wake_machines, "opens", lambda *_: True)
    machines = {name: f"dask-{name}" for name in ("head", "w-1", "w-2")}
    return Google(project="p", zone="z-a", machines=machines, zones={"w-2": "z-b"}), asked


def test_waking_starts_each_machine_in_its_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    google, asked = waking(monkeypatch)
    assert wake_machines.wake(google, CONNECTION, "head") == 2
    expected = [("start", "dask-head", "dask-w-1", "--zone", "z-a"), ("start", "dask-w-2", "--zone", "z-b")]
    assert sorted(asked) == expected


def test_waking_does_without_workers_for_which_google_has_no_capacity_but_not_without_the_scheduler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    google, _ = waking(monkeypatch, "dask-w-1")
    assert wake_machines.wake(google, CONNECTION, "head") == 1
    assert capsys.readouterr().err == "Google has no capacity for w-1 now; the cluster works without\n"
    google, _ = waking(monkeypatch, "dask-head")
    with pytest.raises(TunnelError, match="no capacity for the scheduler's machine in z-a now: try again later"):
        wake_machines.wake(google, CONNECTION, "head")


def test_the_states_of_a_machine_that_wake_starts_are_googles() -> None:
    assert set(wake_machines.OFF) <= set(kind_of("compute instances", "status").split("|"))
    assert kind_of("compute instances", "name") == "string"


def test_guest_attributes_are_read_as_google_answers_them() -> None:
    assert wrong("compute instances get-guest-attributes", {"namespace": "hostkeys", "key": "k", "value": "v"}) == []


@pytest.mark.parametrize("group", OURS)
def test_the_test_data_of_make_leftovers_has_googles_shape(group: str) -> None:
    assert [text for each in OURS[group] + OTHERS.get(group, []) for text in wrong(group, each)] == []


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a rehearsal whose Google Cloud has one thing of each kind."""
    folder = tmp_path_factory.mktemp("rehearsal")
    known = cloud.Cloud(folder / "gcp")
    kubernetes = {"server": "10.0.0.2:6443", "authority": "YQ=="}
    for token, inputs in RIGHT.items():
        more = {"kubernetes": kubernetes} if token == "container/cluster:Cluster" else {}
        known.write(*cloud.new_record(token, inputs | MORE.get(token, {}), CONFIG, known=known.records(), **more))
    return folder


@pytest.mark.parametrize("group", [group for group in LISTED if group != "compute forwarding-rules"])
def test_what_the_stand_in_for_gcloud_lists_has_googles_shape(rehearsal: Path, group: str) -> None:
    environ = {**os.environ, "DASKSTACK_REHEARSAL": str(rehearsal)}
    environ.pop("DASKSTACK_REHEARSAL_MACHINES", None)
    command = [sys.executable, GCLOUD, *group.split(), "list", "--format", "json"]
    answers = json.loads(subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True).stdout)
    assert len(answers) == 1
    assert wrong(group, answers[0]) == []
    expected = {name for name, (owner, _) in LEFT.items() if owner == group and "." not in name}
    assert expected - {"description", "users"} <= answers[0].keys(), "what make leftovers reads"


def test_fields_that_google_does_not_have_are_detected() -> None:
    assert wrong("compute disks", {"sizeGb": 10}) == ["compute disks.sizeGb: expected a number as a text, found 10"]
    assert wrong("compute disks", {"size": "10"}) == ["compute disks.size: there is no such field"]
    assert wrong("compute instances", {"status": "ON"})[0].startswith(
        "compute instances.status: expected DEPROVISIONING|"
    )
    assert wrong("compute instances", {"tags": ["a"]}) == [
        "compute instances.tags.not an object: there is no such field"
    ]
