"""The estimated cost of a stack, compared with manual calculations from Google's price lists."""

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

import settings
from settings import cost

PROJECT = Path(__file__).parents[2]
DISK = 0.10 / 730  # one GB of balanced disk per hour
NODE = 2 * 0.02181159 + 8 * 0.00292353 + 50 * DISK  # an e2-standard-2 with its disk, for the scheduler and Jupyter
E2 = 4 * 0.02181159 + 16 * 0.00292353  # e2-standard-4
N1 = 4 * 0.031611 + 15 * 0.004237  # n1-standard-4
NOTEBOOKS = 10 * DISK


def stack(cluster: dict[str, Any] | None = None, **changed: Any) -> settings.KubernetesTarget:
    where = {"source": "gke", "project": "my-project", "location": "us-central1-a"}
    return settings.parse({"target": "kubernetes", "cluster": where | (cluster or {}), **changed}, PROJECT)


# Three workers with one CPU each fit on one node. Plus the cluster fee, NAT for two nodes, and NAT's address.
SMALL = 0.10 + NODE + E2 + 100 * DISK + NOTEBOOKS + 2 * 0.0014 + 0.005
# Twelve workers with 3 CPUs need 12 spot nodes, and none while idle. NAT serves 13 nodes, and one while idle.
SPOT = 0.10 + NODE + 12 * (0.6 * E2 + 100 * DISK) + NOTEBOOKS + 13 * 0.0014 + 0.005
SPOT_IDLE = 0.10 + NODE + NOTEBOOKS + 0.0014 + 0.005
# Three GPU nodes, because each worker uses a GPU, in an existing network, with a load balancer. Two nodes stay on.
KEPT = N1 + 200 * DISK + 0.35 + 375 * 0.08 / 730
GPU, GPU_IDLE = (0.10 + NODE + count * KEPT + NOTEBOOKS + 0.025 for count in (3, 2))
GIVEN = {"name": "n", "subnetwork": "s", "pods": "p", "services": "v"}


@pytest.mark.parametrize(
    ("found", "up", "idle"),
    [
        (stack(), SMALL, SMALL),
        (
            stack({"workers": {"spot": True}}, workers={"replicas": 12, "cpu": 3}, limits={"idle": "1h"}),
            SPOT,
            SPOT_IDLE,
        ),
        (
            stack({"workers": {"spot": True}}, workers={"min": 0, "max": 12, "cpu": 3}, limits={"idle": "1h"}),
            SPOT,
            SPOT_IDLE,
        ),
        (
            stack(
                {
                    "network": GIVEN,
                    "workers": {
                        "machine": "n1-standard-4",
                        "disk": 200,
                        "minNodes": 2,
                        "accelerators": {"type": "nvidia-tesla-t4"},
                        "localSsds": 1,
                    },
                },
                expose={"jupyter": {"sources": ["203.0.113.0/24"], "internal": True}},
                limits={"idle": "1h"},
            ),
            GPU,
            GPU_IDLE,
        ),
    ],
    ids=["plain", "spot", "the largest number", "gpu"],
)
def test_the_cost_matches_a_manual_calculation(found: settings.KubernetesTarget, up: float, idle: float) -> None:
    assert cost.total(found.bill()) == pytest.approx((up, idle))


def test_groups_with_nodes_of_their_own_count_and_others_share_the_nodes_of_the_workers() -> None:
    gpus = {"machine": "n1-standard-4", "spot": True, "accelerators": {"type": "nvidia-tesla-t4", "count": 2}}
    groups = [
        {"name": "gpu", "replicas": 3, "cpu": 1, "memory": "4 GiB", "pool": gpus},
        {"name": "small", "replicas": 2, "cpu": 3},
    ]
    cluster = stack(workers={"groups": groups}, limits={"idle": "1h"})
    # Each worker uses one GPU, so three workers need two nodes. The pool of the others has a second and a third node.
    node = 0.6 * (N1 + 2 * 0.35) + 100 * DISK
    assert cost.total(cluster.bill()) == pytest.approx(
        (SMALL + 2 * (E2 + 100 * DISK + 0.0014) + 2 * (node + 0.0014), 0.10 + NODE + NOTEBOOKS + 0.0014 + 0.005)
    )
    # The workers may have one node each and a spare one, and the scheduler and Jupyter three.
    assert cost.maximum(cluster.bill()) == pytest.approx(
        0.10 + 3 * NODE + 6 * (E2 + 100 * DISK) + 4 * node + NOTEBOOKS + 13 * 0.0014 + 0.005
    )
    with pytest.raises(
        settings.SettingsError, match=r"limits.hourlyCost: 3 is less than the stack can cost, about 3\."
    ):
        stack(workers={"groups": groups}, limits={"hourlyCost": 3})


def test_the_largest_cost_is_that_of_the_most_expensive_kind_of_nodes() -> None:
    kinds: list[dict[str, Any]] = [{"spot": True}, {"machine": "n1-standard-4"}, {"zone": "us-central1-b"}]
    preferred, listed = stack({"workers": {"spot": True}}), stack({"workers": {"capacity": kinds}})
    assert cost.total(listed.bill()) == cost.total(preferred.bill())
    assert cost.maximum(listed.bill()) == pytest.approx(cost.maximum(preferred.bill()) + 4 * (N1 - 0.6 * E2))
    assert "more if all are workers-a-n1-standard-4 " in cost.table(listed.bill())
    assert cost.maximum(stack({"workers": {"capacity": kinds[1::-1]}}).bill()) == cost.maximum(listed.bill())
    unknown = {"capacity": [{"spot": True}, {"machine": "n4-standard-4"}]}
    with pytest.raises(
        settings.SettingsError, match=r"limits.hourlyCost: .* price of their disks, 100 GB of hyperdisk"
    ):
        stack({"workers": unknown}, limits={"hourlyCost": 9})
    stack({"workers": unknown}, limits={"hourlyCost": 9}, prices={"hyperdisk-balanced": 0.08})


def test_unknown_machine_types_cost_the_users_own_price() -> None:
    cluster = stack({"workers": {"machine": "a3-mega"}}, prices={"a3-mega": 60.0, "cluster": 0.0})
    assert cost.total(cluster.bill())[0] == pytest.approx(SMALL - 0.10 - E2 + 3 * 60 + 2 * (100 * DISK + 0.0014))


def test_idle_nodes_do_not_exceed_the_largest_number_of_nodes() -> None:
    cluster = stack({"workers": {"minNodes": 10}})
    assert cluster.worker_nodes[0].most == 10
    assert "10 e2-standard-4 for workers" in cost.table(cluster.bill())


def test_the_cost_table_in_the_docs_is_that_of_the_shipped_stack() -> None:
    pages = [path.read_text() for path in (PROJECT / "README.md", *(PROJECT / "docs").glob("*.md"))]
    shown = [
        block for page in pages for block in re.findall(r"^```\n(US dollars per hour.*?)\n```$", page, re.M | re.S)
    ]
    said = yaml.safe_load((PROJECT / "Pulumi.gke.yaml").read_text())["config"]["dask:cluster"]
    assert shown == [cost.table(settings.parse(said, PROJECT).bill())]


def test_an_unknown_price_is_shown_as_unknown() -> None:
    assert "3 a3-mega for workers" in (table := cost.table(stack({"workers": {"machine": "a3-mega"}}).bill()))
    assert "unknown" in table


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"limits": {"hourlyCost": 0.3}}, ["limits.hourlyCost: 0.3 is less than the stack can cost, about 0.93"]),
        (
            {"limits": {"hourlyCost": 9}, "cluster": {"workers": {"machine": "a3-mega"}}},
            ["limits.hourlyCost: cannot be enforced", "a3-mega", "prices"],
        ),
        ({"prices": {"n1-standard-9": 1.0}}, ["prices.n1-standard-9: unknown name"]),
        (
            {
                "limits": {"hourlyCost": 1.5},
                "workers": {"replicas": 6},
                "cluster": {"workers": {"machine": "n1-standard-4", "accelerators": {"type": "nvidia-tesla-t4"}}},
            },
            ["limits.hourlyCost: 1.5 is less", "6 n1-standard-4 for workers"],
        ),
        (
            {"limits": {"hourlyCost": 2}, "cluster": {"workers": {"maxNodes": 100}}},
            ["limits.hourlyCost: 2 is less than the stack can cost, about 15."],
        ),
        (
            {
                "limits": {"hourlyCost": 2},
                "values": {"additional_worker_groups": [{"name": "more", "replicas": 90}]},
            },
            ["limits.hourlyCost: 2 is less than the stack can cost, about 14."],
        ),
        (
            {"workers": {"replicas": 9, "cpu": 3}, "cluster": {"workers": {"maxNodes": 4}}},
            ["cluster.workers.maxNodes: 4 nodes have no room for 9 workers, which need 9 nodes"],
        ),
        ({"scheduler": {"cpu": 8}}, ["scheduler: a pod with 8 CPUs", "does not fit on a node of type e2-standard-2"]),
        ({"jupyter": {"memory": "64 GiB"}}, ["jupyter: a pod with", "or a larger cluster.system.machine"]),
        ({"cluster": {"workers": {"machine": "n1-standrad-4"}}}, ["workers.machine", "did you mean n1-standard-4?"]),
        (
            {"cluster": {"workers": {"machine": "n1-standard-5"}}},
            ["workers.machine: n1-standard-5 is not a machine type"],
        ),
        (
            {"cluster": {"workers": {"machine": "e2-standard-4", "accelerators": {"type": "nvidia-tesla-t4"}}}},
            ["cluster.workers.accelerators.type: nvidia-tesla-t4 cannot be attached to e2-standard-4, only to n1"],
        ),
        (
            {
                "cluster": {
                    "workers": {"machine": "n1-standard-4", "accelerators": {"type": "nvidia-tesla-t4", "count": 3}}
                }
            },
            ["cluster.workers.accelerators.count: 3 is not a possible number of GPUs; write 1, 2, 4, 8 or 16"],
        ),
        (
            {"workers": {"groups": [{"name": "big", "cpu": 9, "pool": {"machine": "n2-highmem-8"}}]}},
            ["workers.groups[0]: a pod with 9 CPUs", "or a larger workers.groups[0].pool.machine"],
        ),
        (
            {"workers": {"groups": [{"name": "big", "memory": "16 GiB"}]}},
            ["workers.groups[0]: a pod with 1 CPUs", "type e2-standard-4", "or a larger cluster.workers.machine"],
        ),
        (
            {"workers": {"groups": [{"name": "big", "replicas": 9, "cpu": 3, "pool": {"maxNodes": 4}}]}},
            ["workers.groups[0].pool.maxNodes: 4 nodes have no room for 9 workers, which need 9 nodes"],
        ),
        (
            {"workers": {"groups": [{"name": "big", "pool": {"machine": "n2-highmem-9"}}]}},
            ["workers.groups[0].pool.machine: n2-highmem-9 is not a machine type of Google's; did you mean"],
        ),
        (
            {
                "cluster": {"workers": {"capacity": [{"spot": True}, {"machine": "e2-highcpu-4"}]}},
                "workers": {"cpu": 3},
            },
            ["workers: a pod with 3 CPUs", "type e2-highcpu-4", "or a larger cluster.workers.capacity[1].machine"],
        ),
        (
            {
                "cluster": {"workers": {"maxNodes": 2, "capacity": [{"machine": "e2-standard-8"}, {}]}},
                "workers": {"replicas": 4, "cpu": 3},
            },
            ["cluster.workers.maxNodes: 2 nodes have no room for 4 workers, which need 4 nodes"],
        ),
        (
            {"cluster": {"workers": {"capacity": [{"machine": "n2-highmem-9"}]}}},
            ["cluster.workers.capacity[0].machine: n2-highmem-9 is not a machine type of Google's; did you mean"],
        ),
        (
            {
                "cluster": {
                    "workers": {"localSsds": 1, "capacity": [{"machine": "n1-standard-4"}, {}]},
                }
            },
            ["cluster.workers.localSsds: e2-standard-4 cannot", "cluster.workers.capacity[1].machine: n1-standard-4"],
        ),
        (
            {
                "cluster": {
                    "workers": {
                        "accelerators": {"type": "nvidia-l4"},
                        "capacity": [{"machine": "g2-standard-4"}, {"machine": "n1-standard-4"}],
                    }
                }
            },
            [
                "cluster.workers.accelerators.type: nvidia-l4 cannot be attached to n1-standard-4",
                "capacity[1].machine:",
            ],
        ),
        ({"limits": {"hourlyCost": True}}, ["limits.hourlyCost: true is not a number"]),
        ({"prices": {"n1-standard-4": float("inf")}}, ["prices.n1-standard-4: Infinity is not allowed here"]),
        ({"workers": {"cpu": 4}}, ["workers: a pod with 4 CPUs", "does not fit on a node of type e2-standard-4"]),
        (
            {"workers": {"memory": "13 GiB"}},
            ["does not fit on a node of type e2-standard-4", "write less, or a larger"],
        ),
    ],
)
def test_a_stack_that_costs_too_much_or_does_not_fit_is_rejected(settings_: dict, words: list[str]) -> None:
    with pytest.raises(settings.SettingsError) as caught:
        stack(settings_.pop("cluster", None), **settings_)
    [problem] = caught.value.problems
    assert all(word in problem for word in words), problem


@pytest.mark.parametrize(
    ("machine", "region", "hourly"),
    [
        # Google's price list of 2026-07-22, by machine type and region.
        ("e2-small", "us-central1", None),
        ("e2-standard-16", "europe-west3", 0.69068),
        ("e2-standard-16", "europe-west2", 0.69068),
        ("n1-highcpu-16", "europe-west3", 0.73028),
        ("n2-highmem-4", "us-central1", 0.262028),
        ("n2-highmem-48", "us-east4", 3.541104),
        ("n2d-standard-16", "us-central1", 0.675936),
        ("n4-standard-4", "us-central1", 0.1814),
        ("n4-highmem-48", "europe-west3", 3.3706464),
        ("t2d-standard-16", "us-central1", 0.67594),
        ("c3-standard-8", "europe-west4", 0.42338),
        ("c4-standard-4", "us-central1", 0.19767),
        ("c4-highmem-16", "asia-south1", 1.08446),
        ("c4d-standard-32", "us-central1", 1.511927152),
        ("c4d-standard-2", "europe-west2", 0.104515719),
    ],
)
def test_machines_cost_what_google_lists(machine: str, region: str, hourly: float | None) -> None:
    found = cost.machine_price(machine, False, {}, region)
    assert found == (None if hourly is None else pytest.approx(hourly, rel=0.02))


@pytest.mark.parametrize(
    ("machine", "type_", "count", "hourly"),
    [
        ("g2-standard-24", "nvidia-l4", 2, 2.000832574),
        ("g2-standard-32", "nvidia-l4", 1, 1.734376367),
        ("a2-highgpu-2g", "nvidia-tesla-a100", 2, 7.34677),
        ("a2-ultragpu-8g", "nvidia-a100-80gb", 8, 40.5503831232877),
        ("a3-highgpu-1g", "nvidia-h100-80gb", 1, 11.0612499878219),
    ],
)
def test_machines_with_built_in_gpus_cost_what_google_lists(
    machine: str, type_: str, count: int, hourly: float
) -> None:
    workers = {"machine": machine, "accelerators": {"type": type_, "count": count}}
    items = {item.name: item.up for item in stack({"workers": workers}).bill()}
    [machines] = [name for name in items if name.endswith(f"{machine} for workers")]
    gpus = items[f"their GPUs, {count} {type_} each"]
    assert (items[machines] + gpus) / int(machines.split()[0]) == pytest.approx(hourly, rel=1e-4)


def test_every_region_has_a_factor_for_machines_and_disks() -> None:
    known = cost.prices()["regions"]
    assert all(len(factors) == 3 and all(1 <= each <= 1.7 for each in factors) for factors in known.values())
    here, there = (stack({"location": f"{region}-a"}).bill() for region in ("us-central1", "europe-west3"))
    factors = {new.name: new.up / old.up for old, new in zip(here, there, strict=True)}
    assert factors["1 e2-standard-4 for workers"] == pytest.approx(1.29)
    assert factors["their disks, 100 GB each"] == pytest.approx(1.2)
    assert factors["the GKE cluster fee"] == 1


def test_the_totals_name_what_they_do_not_include() -> None:
    table = cost.table(stack({"location": "mars-north1-a"}).bill())
    assert "1 e2-standard-4 for workers                  unknown  unknown  unknown" in table
    assert "the totals do not include: 1 e2-standard-2 for scheduler and Jupyter; their disks, 50 GB each;" in table
    disks = cost.table(stack({"workers": {"machine": "n4-standard-4"}}).bill()).splitlines()[-1]
    assert disks == "the totals do not include: their disks, 100 GB of hyperdisk-balanced each"
    known = stack(
        {"workers": {"machine": "n4-standard-4"}}, prices={"hyperdisk-balanced": 0.08}, limits={"hourlyCost": 9}
    )
    assert "not include" not in cost.table(known.bill())


def test_prices_older_than_a_year_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cost.prices(), "asOf", "2026-07")
    assert cost.aged(date(2027, 7, 31)) == ""
    assert cost.aged(date(2027, 8, 1)).startswith("settings/prices.yaml has prices of 2026-07, more than a year old: ")
