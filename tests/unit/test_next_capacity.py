"""How `up` tries other kinds of machines if Google has no capacity."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from daskstack import configuration, engine
from tools import next_capacity

# Google's messages, from public reports.
STOCKOUTS = [
    "Error waiting for instance to create: The zone 'projects/p/zones/us-central1-a' does not have enough resources"
    " available to fulfill the request.  Try a different zone, or try again later.",
    "Error waiting for starting instance: A n1-standard-4 VM instance with 1 nvidia-tesla-t4 accelerator(s) is"
    " currently unavailable in the us-central1-b zone.",
]
KINDS = [{"spot": True}, {"spot": True, "zone": "us-central1-b"}, {}]
MACHINES: dict[str, Any] = {"source": "compute", "project": "my-project", "zone": "us-central1-a", "workers": 3}
SPOT_A, SPOT_B, LAST = (
    f"e2-standard-4{kind} in us-central1-{zone}" for kind, zone in ((" spot", "a"), (" spot", "b"), ("", "a"))
)


class Up:
    """The failures of one `up`, and the stack file that it changes."""

    def __init__(self, folder: Path, **workers: Any) -> None:
        self.events, self.tried = folder / "events", folder / "tried"
        self.workers = workers
        self.machines = {**MACHINES, "worker": {"capacity": KINDS}}
        self.before: dict[str, int] = {}
        self.placement: dict[str, int] = {}
        self.missing: list[str] = []

    def read(self, _: str) -> dict[str, Any]:
        machines = self.machines | ({"placement": self.placement} if self.placement else {})
        workers = self.workers | ({"missing": self.missing} if self.missing else {})
        firewall = {"ssh": ["203.0.113.7/32"]}
        return {"target": "machines", "machines": machines, "workers": workers, "firewall": firewall}

    def pulumi(self, _: str, *words: str, **__: object) -> CompletedProcess[str]:
        match words:
            case ("config", "rm", "--path", "dask:cluster.machines.placement"):
                self.placement = {}
            case ("config", "rm", "--path", place):
                del self.placement[place.removeprefix("dask:cluster.machines.placement.")]
            case ("config", "set", "--path", "--type", "string", _, name):
                self.missing.append(name)
            case ("config", "set", "--path", place, index):
                self.placement[place.removeprefix("dask:cluster.machines.placement.")] = int(index)
            case _:
                raise AssertionError(words)
        return CompletedProcess(words, 0)

    def fails_without(self, *names: str, message: str = STOCKOUTS[0]) -> bool:
        """Whether `up` runs Pulumi again after it has failed to get these machines."""
        urn = "urn:pulumi:vms::dask::dask:index:ComputeMachines$gcp:compute/instance:Instance::machines-{}"
        events = [
            {"diagnosticEvent": {"severity": "error", "urn": urn.format(name), "message": message}} for name in names
        ]
        self.events.write_text("\n".join(map(json.dumps, events)))
        try:
            next_capacity.main("vms", str(self.events), str(self.tried))
        except SystemExit as ended:
            assert ended.code
            self.error = str(ended.code)
            return False
        return True


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Up]:
    def make(**workers: Any) -> Up:
        up = Up(tmp_path, **workers)
        monkeypatch.setattr(configuration, "read", up.read)
        monkeypatch.setattr(configuration, "file", Path)
        monkeypatch.setattr(engine, "pulumi", up.pulumi)
        return up

    return make


@pytest.mark.parametrize("message", STOCKOUTS)
def test_each_machine_moves_to_the_next_entry_of_its_list(
    make: Callable[..., Up], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    up = make()
    assert up.fails_without("worker-1", "worker-3", message=message)
    assert up.placement == {"worker-1": 1, "worker-3": 1}
    assert f"worker-1: Google has no {SPOT_A} now; trying {SPOT_B}\n" in capsys.readouterr().err
    assert up.fails_without("worker-3", message=message)
    assert up.placement == {"worker-1": 1, "worker-3": 2}


def test_a_machine_that_was_moved_before_first_tries_the_preferred_entries(make: Callable[..., Up]) -> None:
    up = make()
    up.placement = {"worker-2": 1}
    assert up.fails_without("worker-2")
    assert up.placement == {}
    assert up.fails_without("worker-2")
    assert up.placement == {"worker-2": 2}


def test_without_capacity_in_any_entry_up_fails_and_names_them_and_the_placement_is_as_before(
    make: Callable[..., Up],
) -> None:
    up = make()
    up.placement = {"worker-2": 2}
    assert up.fails_without("worker-1", "worker-2")
    assert up.fails_without("worker-2")
    assert up.placement == {"worker-1": 1, "worker-2": 1}
    assert not up.fails_without("worker-2")
    tried = ", ".join((LAST, SPOT_A, SPOT_B))
    assert up.error == f"error: worker-2: Google has no capacity for it now; tried {tried}"
    assert up.placement == {"worker-1": 1, "worker-2": 2}, "worker-1 exists there"


def test_with_at_least_machines_without_capacity_are_missing_if_enough_others_remain(make: Callable[..., Up]) -> None:
    up = make(atLeast=2)
    for _ in KINDS[1:]:
        assert up.fails_without("worker-2", "worker-3")
    assert not up.fails_without("worker-2", "worker-3")
    assert "workers.atLeast is 2" in up.error
    assert (up.placement, up.missing) == ({}, [])

    up.tried.unlink()  # another `up`
    for _ in KINDS:
        assert up.fails_without("worker-3")
    assert (up.placement, up.missing) == ({}, ["worker-3"])


def test_other_errors_and_the_schedulers_machine_move_no_machine(make: Callable[..., Up]) -> None:
    up = make()
    assert not up.fails_without("worker-1", message="Quota 'CPUS' exceeded.  Limit: 8.0 in region us-central1.")
    assert not up.fails_without("scheduler", "worker-1")
    assert not up.fails_without()
    assert up.placement == {}
