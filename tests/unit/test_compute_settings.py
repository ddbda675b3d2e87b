"""Settings and cost of machines in Google Cloud."""

from pathlib import Path
from typing import Any

import pytest

import settings
from settings import cost

PROJECT = Path(__file__).parents[2]
T4 = {"machine": "n1-standard-4", "accelerators": {"type": "nvidia-tesla-t4", "count": 2}}
ALLOWED = {"ssh": ["203.0.113.7/32"]}


def stack(machines: dict[str, Any] | None = None, **changed: Any) -> settings.MachinesTarget:
    where = {"source": "compute", "project": "my-project", "zone": "us-central1-a"}
    return settings.parse(
        {"target": "machines", "firewall": ALLOWED, **changed, "machines": where | (machines or {})}, PROJECT
    )


def problem(*arguments: Any, **changed: Any) -> str:
    with pytest.raises(settings.SettingsError) as raised:
        stack(*arguments, **changed)
    [found] = raised.value.problems
    return found.removeprefix("dask:cluster.")


def test_the_cost_is_that_of_the_machines_as_they_are_and_at_most_that_of_the_most_expensive_kind() -> None:
    spot, large = {"spot": True}, {"machine": "n2-standard-8"}

    def costs(machine: str, spot: bool = False) -> float:
        price = cost.machine_price(machine, spot, {})
        assert price
        return price

    worker = {"capacity": [spot, {}, large]}
    plain = cost.total(stack({"workers": 3, "worker": spot}).bill())[0]
    listed = stack({"workers": 3, "worker": worker})
    moved = stack({"workers": 3, "worker": worker, "placement": {"worker-2": 1}})
    assert cost.total(listed.bill())[0] == pytest.approx(plain)
    more = costs("e2-standard-4") - costs("e2-standard-4", spot=True)
    assert cost.total(moved.bill())[0] == pytest.approx(plain + more)
    largest = plain + 3 * (costs("n2-standard-8") - costs("e2-standard-4", spot=True))
    for each in (listed, moved):
        assert cost.maximum(each.bill()) == pytest.approx(largest)


@pytest.mark.parametrize(
    ("machines", "changed", "words"),
    [
        ({}, {"firewall": {}}, ["firewall.ssh: is empty", "203.0.113.7/32", "machines.iapPort"]),
        (
            {},
            {"workers": {"min": 1}, "data": {"machine": "worker-1"}},
            ["data.machine: worker-1 stops with its workers if workers.min", "write scheduler, or remove them"],
        ),
        ({}, {"workers": {"max": 3}}, ["workers.max: 3 is more than the 2 worker processes", "add machines"]),
        (
            {},
            {"workers": {"min": 0}, "dask": {"ports": {"jupyter": 22002}}},
            ["dask.ports.jupyter: 22002 is already used by machines.workers; write another port"],
        ),
        ({}, {"firewall": {"ssh": ["0.0.0.0/0"]}}, ["firewall.ssh[0]", "covers the whole internet"]),
        ({}, {"firewall": {"ssh": ["2001:db8::/64"]}}, ["firewall.ssh[0]", "IPv6"]),
        ({"zone": "us-central1"}, {}, ["machines.zone", "not a zone; write e.g. us-central1-a"]),
        ({"range": "8.8.8.0/24"}, {}, ["machines.range", "not a private network"]),
        ({"range": "10.9.0.0/29", "workers": 4}, {}, ["machines.range", "room for 4 machines, not 5"]),
        (
            {"range": "10.9.0.0/24", "network": {"name": "n", "subnetwork": "s", "range": "10.1.0.0/24"}},
            {},
            ["machines.range", "remove it or machines.network"],
        ),
        ({"roles": ["owner"]}, {}, ["machines.roles[0]", "roles/storage.objectViewer"]),
        *[
            ({"roles": [role]}, {}, ["machines.roles[0]", f"{role} is too broad", "roles/storage.objectViewer"])
            for role in (
                *("roles/owner", "roles/editor", "roles/viewer", "roles/iam.serviceAccountTokenCreator"),
                *("roles/storage.admin", "roles/compute.instanceAdmin.v1", "roles/resourcemanager.projectIamAdmin"),
            )
        ],
        ({"labels": {"team": "A B"}}, {}, ["machines.labels.team", "not a label's value"]),
        ({"labels": {"Team": "a"}}, {}, ["machines.labels.Team: 'Team' is not a label's name; write e.g. team"]),
        ({"worker": {"machine": "n1-standrad-4"}}, {}, ["machines.worker.machine", "did you mean n1-standard-4?"]),
        (
            {"worker": {"machine": "c4a-standard-4"}},
            {},
            ["c4a-standard-4 has ARM processors, and the cluster needs x86_64"],
        ),
        (
            {"scheduler": {"machine": "e2-standard-5"}},
            {},
            ["machines.scheduler.machine: e2-standard-5 is not a machine type of Google's"],
        ),
        (
            {"worker": {"machine": "n1-standard-4", "accelerators": {"type": "nvidia-tesla-t4", "count": 3}}},
            {},
            ["count: 3 is not a possible number of GPUs"],
        ),
        (
            {"worker": {"machine": "n2-standard-16", "localSsds": 1}},
            {},
            ["machines.worker.localSsds: n2-standard-16 cannot have 1 local SSDs; write one of 2, 4, 8, 16, 24"],
        ),
        ({"worker": {"localSsds": 1}}, {}, ["e2-standard-4 cannot have local SSDs", "machine: n1-standard-4"]),
        (
            {"worker": {"accelerators": {"type": "nvidia-tesla-t4"}}},
            {},
            ["cannot be attached to e2-standard-4, only to n1 machines; write e.g. machines.worker.machine: n1-"],
        ),
        (
            {"worker": {"accelerators": {"type": "nvidia-l4"}}},
            {},
            ["nvidia-l4 cannot be attached to e2-standard-4; write e.g. machines.worker.machine: g2-standard-4"],
        ),
        (
            {"worker": {"machine": "a2-highgpu-2g", "accelerators": {"type": "nvidia-tesla-a100"}}},
            {},
            ["a2-highgpu-2g always has 2 nvidia-tesla-a100; write {type: nvidia-tesla-a100, count: 2}"],
        ),
        ({"worker": {"machine": "g2-standard-4"}}, {}, ["machines.worker.accelerators: g2-standard-4 always has 1"]),
        (
            {"scheduler": {"machine": "g2-standard-4"}},
            {},
            ["machines.scheduler.machine: g2-standard-4 has GPUs, which"],
        ),
        (
            {"scheduler": {"machine": "n4-standard-4"}},
            {},
            ["machines.scheduler.machine: n4-standard-4 cannot have the data disk, a pd-balanced; write e.g. e2-"],
        ),
        ({"worker": {"machine": "c4-standard-8-lssd", "localSsds": 1}}, {}, ["has its own local SSDs, which are not"]),
        ({"worker": {"localSsds": 33}}, {}, ["machines.worker.localSsds: 33 is too large; write 32 or less"]),
        ({"dataDisk": {"name": "mine"}}, {"data": {"delete": True}}, ["data.delete: has no effect on disk mine"]),
        *[
            ({}, {"data": {"buckets": [{"name": name}]}}, ["data.buckets[0].name", "write e.g. my-bucket"])
            for name in ("gs://mine", "Mine", "mine/folder", "a")
        ],
        (
            {},
            {"data": {"buckets": [{"name": "mine"}, {"name": "mine", "write": True}]}},
            ["data.buckets[1].name: mine is already in the list"],
        ),
        ({}, {"limits": {"maxAge": "121d"}}, ["limits.maxAge: 121d is longer than the 120 days"]),
        ({}, {"limits": {"maxAge": "1h", "idle": "2h"}}, ["limits.maxAge: 1h is not longer than limits.idle, 2h"]),
        ({}, {"workers": {"memoryLimit": "64 GiB"}}, ["workers.memoryLimit: 1 times 64 GiB exceeds the 16 GB"]),
        (
            {},
            {"workers": {"groups": [{"name": "big", "perMachine": 4, "memoryLimit": "5 GiB"}]}},
            ["workers.groups[0].memoryLimit: 4 times 5 GiB exceeds the 16 GB", "a larger machines.worker.machine"],
        ),
        (
            {},
            {"workers": {"groups": [{"name": "big", "worker": {"machine": "n1-standrad-4"}}]}},
            ["workers.groups[0].worker.machine", "did you mean n1-standard-4?"],
        ),
        (
            {},
            {"workers": {"groups": [{"name": "big", "worker": T4}]}, "data": {"machine": "big-2"}},
            ["data.machine: big-2 is not one of the machines"],
        ),
        (
            {},
            {
                "workers": {"groups": [{"name": "big", "worker": {"machine": "n4-standard-4"}}]},
                "data": {"machine": "big-1"},
            },
            ["workers.groups[0].worker.machine: n4-standard-4 cannot have the data disk"],
        ),
        (
            {"range": "10.9.0.0/29"},
            {"workers": {"groups": [{"name": "big", "machines": 2}]}},
            ["machines.range", "room for 4 machines, not 5"],
        ),
        (
            {"workers": 200},
            {"workers": {"groups": [{"name": "big", "machines": 52}]}},
            ["machines.range", "10.9.0.0/24 has room for 252 machines, not 253; write a larger range"],
        ),
        (
            {},
            {"workers": {"max": 3, "groups": [{"name": "big"}]}},
            ["workers.max: 3 is more than the 2 worker processes that the machines outside of groups provide"],
        ),
        (
            {},
            {"workers": {"groups": [{"name": "big", "hosts": ["a"]}]}},
            ["workers.groups[0].hosts: applies only to machines that you already have; write e.g. machines: 2"],
        ),
        (
            {"worker": {"capacity": [{}, {"zone": "us-east1-b"}]}},
            {},
            ["worker.capacity[1].zone: us-east1-b is not in the region of machines.zone; write a zone of us-central1"],
        ),
        (
            {"worker": {"capacity": [{}, {"spot": True}, {"spot": False}]}},
            {},
            ["worker.capacity[2]: is e2-standard-4 in us-central1-a, like entry 0; remove one of them"],
        ),
        (
            {"worker": {"capacity": [{}, {"machine": "n1-standrad-4"}]}},
            {},
            ["machines.worker.capacity[1].machine: n1-standrad-4 is not a machine", "did you mean n1-standard-4?"],
        ),
        (
            {"worker": {**T4, "capacity": [{}, {"machine": "e2-standard-4"}]}},
            {},
            ["machines.worker.accelerators.type: nvidia-tesla-t4 cannot be attached to e2-standard-4"],
        ),
        (
            {"worker": {"machine": "n1-standard-4", "localSsds": 1, "capacity": [{}, {"machine": "e2-standard-4"}]}},
            {},
            ["machines.worker.localSsds: e2-standard-4 cannot have local SSDs"],
        ),
        (
            {"worker": {"capacity": [{}, {"spot": True}]}},
            {"data": {"machine": "worker-1"}},
            ["machines.worker.capacity: worker-1 holds the data disk, which stays in us-central1-a; remove it, or"],
        ),
        (
            {"worker": {"capacity": [{}, {"machine": "e2-standard-2"}]}},
            {"workers": {"memoryLimit": "9 GiB"}},
            ["workers.memoryLimit: 1 times 9 GiB exceeds the 8 GB", "larger machines.worker.capacity[1].machine"],
        ),
        ({"placement": {"worker-3": 0}}, {}, ["machines.placement.worker-3: worker-3 is not one of the machines"]),
        ({"placement": {"scheduler": 0}}, {}, ["scheduler is not one of the machines; write one of worker-1, worker-"]),
        ({"placement": {"worker-1": 1}}, {}, ["machines.placement.worker-1: there is no entry 1 in its capacity"]),
        ({}, {"limits": {"hourlyCost": 0.1}}, ["limits.hourlyCost: 0.1 is less than the stack can cost"]),
        ({}, {"limits": {"maxAge": "5s"}}, ["limits.maxAge", "30m or 2h"]),
        ({}, {"prices": {"e2-standard-2": -1}}, ["prices.e2-standard-2: -1 is too small; write 0 or more"]),
        ({}, {"prices": {"e3-standard-2": 1}}, ["prices.e3-standard-2: unknown name"]),
    ],
)
def test_invalid_settings_are_reported_with_a_remedy(
    machines: dict[str, Any], changed: dict[str, Any], words: list[str]
) -> None:
    found = problem(machines, **changed)
    assert all(word in found for word in words), found


def test_narrow_and_custom_roles_are_accepted() -> None:
    roles = ["roles/storage.objectUser", "roles/bigquery.dataViewer", "projects/my-project/roles/tasks"]
    assert list(stack({"roles": roles}).machines.roles) == roles


@pytest.mark.parametrize(
    "source", [{"source": "local"}, {"source": "existing", "hosts": [{"name": "a", "address": "a"}]}]
)
def test_limits_for_google_cloud_are_rejected_for_other_machines(source: dict[str, Any]) -> None:
    with pytest.raises(settings.SettingsError) as raised:
        settings.parse({"target": "machines", "machines": source, "limits": {"maxAge": "2h", "hourlyCost": 1}}, PROJECT)
    text = str(raised.value)
    assert (
        "limits.maxAge: applies only to machines in Google Cloud" in text and "limits.hourlyCost: applies only" in text
    )


@pytest.mark.parametrize(
    "source", [{"source": "local"}, {"source": "existing", "hosts": [{"name": "a", "address": "a"}]}]
)
def test_other_machines_get_no_access_to_buckets(source: dict[str, Any]) -> None:
    with pytest.raises(settings.SettingsError) as raised:
        settings.parse({"target": "machines", "machines": source, "data": {"buckets": [{"name": "mine"}]}}, PROJECT)
    assert "data.buckets: is only possible with machines.source: compute; remove it, and mount" in str(raised.value)


def test_machines_in_google_cloud_use_a_package_index() -> None:
    found = stack()
    assert found.environment.source == "index"
    assert found.machines.region == "us-central1"


GB = 0.10 / 730
E2 = 2 * 0.02181159 + 8 * 0.00292353
WORKER = 2 * E2  # e2-standard-4
N1 = 4 * 0.031611 + 15 * 0.004237
KEPT = (
    30 * GB + 100 * GB + 0.005
)  # the scheduler's disk, the data disk and the address, which cost money even while idle


@pytest.mark.parametrize(
    ("found", "up", "idle"),
    [
        (stack(), *2 * [E2 + 2 * WORKER + 2 * 50 * GB + KEPT + 0.005 + 3 * 0.0014]),
        (
            stack({"workers": 10}, workers={"min": 1, "max": 4}),
            E2 + 4 * WORKER + 10 * 50 * GB + KEPT + 0.005 + 11 * 0.0014,
            E2 + WORKER + 10 * 50 * GB + KEPT + 0.005 + 11 * 0.0014,
        ),
        (
            stack({"worker": {"spot": True}, "workers": 10}, limits={"idle": "1h"}),
            E2 + 10 * 0.6 * WORKER + 10 * 50 * GB + KEPT + 0.005 + 11 * 0.0014,
            10 * 50 * GB + KEPT,
        ),
        (
            stack(
                {
                    "worker": {
                        "machine": "n1-standard-4",
                        "accelerators": {"type": "nvidia-tesla-t4"},
                        "localSsds": 2,
                    },
                    "iapPort": 2222,
                    "dataDisk": {"name": "mine"},
                    "network": {"name": "n", "subnetwork": "s", "range": "10.1.0.0/24"},
                },
                limits={"idle": "1h"},
            ),
            E2 + 2 * (N1 + 0.35 + 2 * 375 * 0.08 / 730) + 130 * GB,
            130 * GB,
        ),
        (
            stack(
                workers={"groups": [{"name": "big", "worker": T4 | {"spot": True}}, {"name": "more", "machines": 3}]},
                limits={"idle": "1h"},
                prices={"nvidia-tesla-t4": 0.2},
            ),
            E2 + 5 * WORKER + 0.6 * N1 + 2 * 0.2 + 6 * 50 * GB + KEPT + 0.005 + 7 * 0.0014,
            6 * 50 * GB + KEPT,
        ),
    ],
    ids=["plain", "bounds", "spot", "given", "groups"],
)
def test_the_cost_matches_a_manual_calculation(found: settings.MachinesTarget, up: float, idle: float) -> None:
    assert cost.total(found.bill()) == pytest.approx((up, idle))
