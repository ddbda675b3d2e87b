"""An unused cluster powers itself off, and `up` starts it again; test_idle.py tests the step alone."""

import re
import time
from collections.abc import Iterator, Mapping

import pytest

import daskstack
from components.machines.sources.compute import SPOT_GRACE
from rehearsal.machines import Machine, as_root, until
from tests.checkout import Checkout, stack_dev
from tests.machines.test_change import comes_back
from tests.machines.test_idle import has_gone
from tests.work import Work

LIMIT = 60  # seconds, the shortest limit that a stack can set


@pytest.fixture(scope="module")
def checkout(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    with stack_dev(tmp_path_factory.mktemp("user")) as checkout:
        checkout.change("components/machines/step.py", "grace: int = 80", f"grace: int = {SPOT_GRACE}")
        checkout.change(
            "Pulumi.dev.yaml",
            r"^( +)target: machines\n",
            rf"\g<0>\1limits: {{idle: {LIMIT}s}}\n\1jupyter: {{enabled: false}}\n",
        )
        yield checkout


@pytest.fixture
def machines(checkout: Checkout) -> Mapping[str, Machine]:
    """All machines on, even if they powered off in the meantime."""
    checkout.make("up")
    return checkout.machines()


def test_results_of_preempted_machines_are_not_recomputed(checkout: Checkout, machines: Mapping[str, Machine]) -> None:
    """Each machine started a task that outlasts it. The second one also holds data that the first one handed over."""

    def slow(number: int) -> int:
        time.sleep(30)
        return number * number

    work = Work(daskstack.connect("dev"))
    try:
        for name in ("worker-1", "worker-2"):
            long = work.client.submit(slow, 7, workers=f"{name}-1", allow_other_workers=True, pure=False)
            until(lambda long=long: long.key in str(work.client.call_stack()))
            as_root("kill", "-s", "RTMIN+4", str(machines[name].pid))  # like its power button
            # It powers off by itself. Google cuts the power after 30 s; allow a busy computer more time, but less
            # than the grace period of other machines.
            until(lambda name=name: not machines[name].is_on(), 60)
            work.check_progress()
            if name == "worker-1":
                checkout.make("up")
                comes_back(work, "worker-1-1")
            assert long.result(timeout=300) == 49
    finally:
        work.end()


def test_an_idle_cluster_powers_off_workers_first_and_up_starts_it_again(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    def computed(seconds: float) -> float:
        time.sleep(seconds)
        return time.monotonic()  # the clock of this computer

    look = LIMIT / 4
    with daskstack.connect("dev") as client:
        ended = client.submit(computed, LIMIT + look + 1).result(timeout=300)
    assert all(machine.is_on() for machine in machines.values())
    off = {name: has_gone(machine)[1] for name, machine in machines.items()}
    assert min(off.values()) - ended > LIMIT - 1
    assert max(off, key=off.get) == "scheduler"

    printed = checkout.make("up")
    assert set(re.findall(r"command:\w+:Command (\S+) updated", printed)) == {f"machines-{name}" for name in machines}
    with daskstack.connect("dev") as client:
        client.wait_for_workers(2, timeout=300)
