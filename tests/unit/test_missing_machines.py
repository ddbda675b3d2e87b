"""Which machines `up` leaves out, and how the settings treat them."""

import json
import signal
from contextlib import nullcontext
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import settings
from daskstack import engine, stack_commands
from daskstack.configuration import StackKind
from on_this_computer.preflight import attributed
from settings import MachinesTarget
from tests.unit.test_machine_groups import COMPUTE, EXISTING, HOSTS, LOCAL, PROJECT, problem, stack
from tools import missing_machines

FOUR = EXISTING | {"hosts": [*HOSTS, {"name": "far", "address": "10.1.0.9", "bastion": "two"}]}
KEY = """exit status 1: running ".venv/bin/python -m on_this_computer.read_host_key":
error: 10.1.0.7 port 22 shows no ed25519 host key; check that the machine is up
"""
REPORT = """exit status 1: running ".venv/bin/python -m on_this_computer.preflight":
one (10.1.0.6):
- the disk of /opt has 100 MB left; free 2000 MB
- another firewall is active:
  nftables table inet own has rules
stranger (10.1.0.6):
- it is not in the settings
error: these 2 of 4 machines cannot join the cluster; nothing was changed
"""


def log(**messages: str) -> str:
    events = [
        {"diagnosticEvent": {"severity": "error", "urn": f"urn::{name.replace('_', '-')}", "message": message}}
        for name, message in messages.items()
    ]
    return "\n".join(map(json.dumps, events))


def refusal(cluster: MachinesTarget, *unfit: str, joined: str = "") -> str | None:
    return missing_machines.refusal(cluster, unfit, joined.split())


def test_missing_machines_are_not_part_of_the_cluster() -> None:
    found = stack(EXISTING, {"name": "big", "hosts": ["two"], "perMachine": 3}, atLeast=1, missing=["two"])
    assert found.machine_names == ("head", "one")
    assert [group.machines for group in found.groups] == [("one",), ()]
    assert found.processes == 1
    found = stack(COMPUTE | {"workers": 3}, {"name": "big", "machines": 2}, atLeast=3, missing=["worker-2", "big-1"])
    assert found.machine_names == ("scheduler", "worker-1", "worker-3", "big-2")
    machines = COMPUTE | {"workers": 2}
    assert stack(COMPUTE | {"workers": 3}, atLeast=1, missing=["worker-2"]).bill() == stack(machines).bill()


def test_bounds_may_count_missing_machines() -> None:
    bounds = {"atLeast": 1, "min": 2, "max": 2}
    found = stack(EXISTING, **bounds, missing=["two"]).workers
    assert (found.min, found.max) == (1, 1)
    found = stack(EXISTING, **bounds).workers
    assert (found.min, found.max) == (2, 2)


@pytest.mark.parametrize(
    ("machines", "workers", "words"),
    [
        (LOCAL, {"atLeast": 1}, ["atLeast: is not possible with local machines"]),
        (EXISTING, {"atLeast": 3}, ["atLeast: 3 is more than the 2 worker processes", "write 2 or less"]),
        (EXISTING, {"missing": ["one"]}, ["missing: applies only with workers.atLeast"]),
        (EXISTING, {"atLeast": 1, "missing": ["own"]}, ["missing[0]: own is not one of the machines", "one"]),
        (EXISTING, {"atLeast": 1, "missing": ["one", "one"]}, ["missing[1]: one is already in the list"]),
        (EXISTING, {"atLeast": 1, "missing": ["head"]}, ["missing[0]: head runs the scheduler"]),
        (FOUR, {"atLeast": 1, "missing": ["two"]}, ["missing[0]: two is the bastion of far; list them too"]),
        (
            COMPUTE | {"workers": 1, "schedulerWorks": True},
            {"atLeast": 1, "min": 1, "missing": ["worker-1"]},
            ["missing: lists all machines outside of groups"],
        ),
        (EXISTING, {"atLeast": 2, "missing": ["one"]}, ["missing: the other machines provide 1 worker", "is 2"]),
    ],
)
def test_a_list_without_which_the_cluster_would_not_work_is_refused(
    machines: dict[str, Any], workers: dict[str, Any], words: list[str]
) -> None:
    found = problem(machines, **workers)
    for word in words:
        assert word in found


def test_the_machine_of_the_shared_directory_cannot_be_missing() -> None:
    said = {"target": "machines", "machines": EXISTING, "data": {"machine": "two"}}
    with pytest.raises(settings.SettingsError, match="two has the shared directory"):
        settings.parse({**said, "workers": {"atLeast": 1, "missing": ["two"]}}, PROJECT)


def test_the_log_of_a_failed_up_names_the_machines_that_cannot_join() -> None:
    cluster = stack(FOUR, atLeast=1)
    assert missing_machines.unfit(log(machines_two_host_key=KEY, machines_own_host_key=KEY), cluster) == {
        "two": "10.1.0.7 port 22 shows no ed25519 host key; check that the machine is up",
        "far": "its bastion two does not work",
    }
    reasons = "the disk of /opt has 100 MB left; free 2000 MB; another firewall is active:"
    assert missing_machines.unfit(log(dask_preflight=REPORT), cluster) == {"one": reasons}
    assert missing_machines.unfit(log(dask_one_firewall="exit status 1"), cluster) == {}


def test_up_continues_only_without_machines_that_the_cluster_does_not_need() -> None:
    cluster = stack(FOUR, {"name": "big", "hosts": ["one"], "perMachine": 3}, atLeast=2)
    assert refusal(cluster, "one") is None
    assert refusal(cluster, "two", "far") is None
    assert refusal(cluster, "one", "two") == "the other machines provide 1 worker processes, and workers.atLeast is 2"
    assert refusal(cluster, "head") == "head runs the scheduler"
    assert refusal(cluster, "one", joined="one") == "one has joined the cluster before"
    assert refusal(stack(FOUR, atLeast=2, missing=["far"]), "two") is not None, "both lists count together"


def test_a_machine_with_steps_or_of_the_stacks_own_has_joined() -> None:
    urn = "urn:pulumi:mine::dask::dask:index:DaskOnMachines$dask:index:Machine"
    command = {"type": "command:remote:Command", "parent": f"{urn}::dask-one", "urn": f"{urn}::dask-one-keys"}
    instance = {"type": "gcp:compute/instance:Instance", "urn": "urn:pulumi:mine::dask::x::machines-worker-3"}
    others = [{"type": "dask:index:Machine", "urn": f"{urn}::dask-two", "parent": urn}, {"type": "a", "urn": "b"}]
    assert missing_machines.joined([command, instance, *others]) == {"one", "worker-3"}


def test_the_scheduler_is_not_to_blame_for_a_machine_that_it_cannot_reach() -> None:
    machines = {
        name: {"variables": {"ADDRESS": f"10.1.0.{number}"}} for number, name in enumerate(("head", "one", "two"))
    }
    found = {
        "head": "- it cannot connect to 10.1.0.1 on port 22\n- the disk is full",
        "two": "- it cannot connect to 10.1.0.0 on port 22",
    }
    assert attributed(found, machines) == {
        "head": "- the disk is full",
        "one": "- head cannot connect to 10.1.0.1 on port 22",
        "two": "- it cannot connect to 10.1.0.0 on port 22",
    }
    assert attributed({"one": "", "two": ""}, machines) == {}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that change the stack file. The stack has four machines, and one of them is missing."""
    commands: list[tuple[str, ...]] = []
    found = {"target": "machines", "machines": FOUR, "workers": {"atLeast": 1, "missing": ["far"]}}

    def pulumi(_: str, *words: str, **__: object) -> CompletedProcess[str]:
        commands.append(words)
        return CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(engine, "pulumi", pulumi)
    monkeypatch.setattr(engine, "resources", lambda stack: [])
    monkeypatch.setattr(missing_machines.configuration, "read", lambda stack: found)
    monkeypatch.setattr(missing_machines.configuration, "file", Path)
    return commands


def test_machines_that_cannot_join_are_added_to_the_list(
    written: list[tuple[str, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = tmp_path / "events"
    events.write_text(log(machines_two_host_key=KEY))
    missing_machines.main("mine", str(events))
    assert [words[-2:] for words in written] == [("dask:cluster.workers.missing[1]", "two")]
    assert "missing: two: 10.1.0.7 port 22 shows no" in capsys.readouterr().err


def test_another_failure_changes_no_list(written: list[tuple[str, ...]], tmp_path: Path) -> None:
    events = tmp_path / "events"
    for text in (log(dask_head_firewall="exit status 1"), log(machines_head_host_key=KEY)):
        events.write_text(text)
        with pytest.raises(SystemExit) as ended:
            missing_machines.main("mine", str(events))
        assert ended.value.code
    assert written == []


@pytest.mark.parametrize(("workers", "expected"), [({"atLeast": 2}, True), ({"atLeast": None}, False), ({}, False)])
def test_machines_are_left_out_only_if_the_stack_says_so(workers: dict[str, Any], expected: bool) -> None:
    assert StackKind.of({"target": "machines", "machines": FOUR, "workers": workers}).at_least == expected
    assert not StackKind.of({"target": "kubernetes", "workers": workers}).at_least, "there, workers are missing"


@pytest.mark.parametrize("signals", [[], [signal.SIGINT]])
def test_after_ctrl_c_up_does_not_go_on_without_machines(signals: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    statuses, asked = iter([1, 0]), []

    def run(_: object, __: object, got: list[int]) -> int:
        got += signals
        return next(statuses)

    def tool(*words: str, **_: object) -> int:
        asked.append(words[0])
        return int(words[0] == "next_capacity")  # no machine can move

    monkeypatch.setattr(stack_commands, "run", run)
    monkeypatch.setattr(stack_commands, "tool", tool)
    monkeypatch.setattr(engine, "variables", lambda stack: {})
    kind = StackKind("machines", "compute", "", at_least=True)
    with pytest.raises(stack_commands.Failed) if signals else nullcontext():
        stack_commands.pulumi(kind, "mine", "up", leaves_out=True)
    assert [name in asked for name in ("next_capacity", "missing_machines")] == [not signals] * 2


def test_up_first_tries_all_machines(written: list[tuple[str, ...]]) -> None:
    missing_machines.main("mine")
    assert written == [("config", "rm", "--path", "dask:cluster.workers.missing")]
