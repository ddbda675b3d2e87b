"""Groups of machines whose workers differ from the others."""

from pathlib import Path
from typing import Any

import pytest

import settings
from components.machines import dask_options

PROJECT = Path(__file__).parents[2]
LOCAL = {"source": "local", "workers": 2}
HOSTS = [{"name": name, "address": f"10.1.0.{number}"} for number, name in enumerate(("head", "one", "two"), 5)]
EXISTING = {"source": "existing", "hosts": HOSTS}
COMPUTE = {"source": "compute", "project": "my-project", "zone": "us-central1-a"}
GPUS = {"machine": "n1-standard-4", "accelerators": {"type": "nvidia-tesla-t4", "count": 2}}


def stack(machines: dict[str, Any], *groups: dict[str, Any], **workers: Any) -> settings.MachinesTarget:
    firewall = {"ssh": ["203.0.113.7/32"]}
    said = {"target": "machines", "machines": machines, "workers": {"groups": list(groups), **workers}}
    return settings.parse({**said, "firewall": firewall}, PROJECT)


def problem(*arguments: Any, **workers: Any) -> str:
    with pytest.raises(settings.SettingsError) as raised:
        stack(*arguments, **workers)
    [found] = raised.value.problems
    return found.removeprefix("dask:cluster.")


def processes(found: settings.MachinesTarget) -> dict[str, int]:
    return {machine: group.per_machine for group in found.groups for machine in group.machines}


def test_a_group_has_machines_of_its_own_after_all_others() -> None:
    found = stack(LOCAL, {"name": "big", "machines": 2, "perMachine": 3}, {"name": "gpu"}, perMachine=2)
    assert found.machine_names == ("scheduler", "worker-1", "worker-2", "big-1", "big-2", "gpu-1")
    assert processes(found) == {"worker-1": 2, "worker-2": 2, "big-1": 3, "big-2": 3, "gpu-1": 2}
    assert found.processes == 12


def test_a_groups_workers_are_like_the_others_except_for_its_settings() -> None:
    group = {"name": "big", "threads": 8, "resources": {"BIG": 1}}
    [main, big] = stack(LOCAL, group, threads=2, perMachine=2).groups
    assert (big.per_machine, big.threads, big.memory_limit, big.resources) == (2, 8, "2 GiB", {"BIG": 1})
    assert (main.per_machine, main.threads, main.memory_limit, main.resources) == (2, 2, "2 GiB", {})


def test_a_group_of_existing_machines_names_some_of_the_hosts() -> None:
    found = stack(EXISTING, {"name": "big", "hosts": ["two"], "perMachine": 3})
    assert found.machine_names == ("head", "one", "two")
    assert processes(found) == {"one": 1, "two": 3}
    works = stack(EXISTING | {"schedulerWorks": True}, {"name": "big", "hosts": ["head"], "perMachine": 3})
    assert processes(works) == {"one": 1, "two": 1, "head": 3}
    assert works.processes == 5


def test_a_machine_marked_gone_may_stay_in_its_group() -> None:
    gone = {"source": "existing", "hosts": [*HOSTS[:2], HOSTS[2] | {"gone": True}]}
    assert processes(stack(gone, {"name": "big", "hosts": ["two"]})) == {"one": 1}


@pytest.mark.parametrize(
    ("machines", "groups", "words"),
    [
        (LOCAL, [{"name": "worker"}], ["groups[0].name: worker is already the name of other machines"]),
        (LOCAL, [{"name": "scheduler"}], ["groups[0].name: scheduler is already the name of other machines"]),
        (LOCAL, [{"name": "a"}, {"name": "a"}], ["groups[1].name: a is already the name"]),
        (LOCAL, [{"name": "a", "worker": {}}], ["groups[0].worker: applies only to machines in Google Cloud"]),
        (LOCAL, [{"name": "a", "hosts": ["one"]}], ["groups[0].hosts: applies only to machines that you already"]),
        (EXISTING, [{"name": "a"}], ["groups[0].hosts: is missing", "[two]"]),
        (EXISTING, [{"name": "a", "hosts": ["two"], "machines": 1}], ["groups[0].machines: applies only", "hosts"]),
        (EXISTING, [{"name": "a", "hosts": ["tow"]}], ["groups[0].hosts[0]: tow is not one of the machines", "two"]),
        (EXISTING, [{"name": "a", "hosts": ["two", "two"]}], ["groups[0].hosts[1]: two is already in a group"]),
        (
            EXISTING,
            [{"name": "a", "hosts": ["two"]}, {"name": "b", "hosts": ["one", "two"]}],
            ["groups[1].hosts[1]: two is already in a group"],
        ),
        (EXISTING, [{"name": "a", "hosts": ["head"]}], ["groups[0].hosts[0]: head runs the scheduler and no workers"]),
    ],
)
def test_impossible_groups_are_reported_with_a_remedy(
    machines: dict[str, Any], groups: list[dict[str, Any]], words: list[str]
) -> None:
    found = problem(machines, *groups)
    assert all(word in found for word in words), found


def test_bounds_do_not_include_groups() -> None:
    found = stack(LOCAL, {"name": "big", "machines": 2, "perMachine": 3}, min=0)
    assert (found.workers.min, found.workers.max, found.grouped, found.processes) == (0, 2, 6, 8)
    assert dask_options.fixed_workers(found) == [
        f"big-{machine}-{number}" for machine in (1, 2) for number in (1, 2, 3)
    ]
    assert dask_options.fixed_workers(stack(LOCAL, {"name": "big"})) == []
    works = stack(LOCAL | {"schedulerWorks": True}, {"name": "big"}, max=3)
    assert (works.workers.max, works.grouped) == (3, 1)


def test_the_block_of_ports_has_room_for_the_machine_with_most_workers() -> None:
    said = {"target": "machines", "machines": LOCAL, "dask": {"ports": {"jupyter": 9006}}}
    settings.parse({**said, "workers": {"groups": [{"name": "big", "perMachine": 2}]}}, PROJECT)
    with pytest.raises(settings.SettingsError, match=r"9006 is already used by dask\.ports\.workers"):
        settings.parse({**said, "workers": {"groups": [{"name": "big", "perMachine": 3}]}}, PROJECT)


def test_machines_with_gpus_run_one_worker_for_each_unless_the_settings_have_another_number() -> None:
    def each(machines: dict[str, Any], *groups: dict[str, Any], **workers: Any) -> dict[str, tuple[int, bool]]:
        found = stack({**COMPUTE, "workers": 1, **machines}, *groups, **workers).groups
        return {machine: (group.per_machine, group.gpu_each) for group in found for machine in group.machines}

    assert each({}) == {"worker-1": (1, False)}
    assert each({"worker": GPUS}) == {"worker-1": (2, True)}
    assert each({"worker": GPUS}, perMachine=1) == {"worker-1": (1, False)}
    assert each({"worker": GPUS, "schedulerWorks": True}) == {"worker-1": (2, True), "scheduler": (1, False)}
    like, own = {"name": "like"}, {"name": "own", "worker": GPUS}
    assert each({}, like, own) == {"worker-1": (1, False), "like-1": (1, False), "own-1": (2, True)}
    assert each({}, like, own, perMachine=3) == {"worker-1": (3, False), "like-1": (3, False), "own-1": (2, True)}
    assert each({}, own | {"perMachine": 4})["own-1"] == (4, False)
    plain = {"name": "plain", "worker": {}}
    assert each({"worker": GPUS}, like, plain)["like-1"] == (2, True)
    assert each({"worker": GPUS}, plain)["plain-1"] == (1, False)
