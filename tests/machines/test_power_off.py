"""A cluster that nobody uses powers itself off, and comes back with `up`."""

import re
import time
from collections.abc import Callable, Iterator, Mapping

import pytest
from checkout import Checkout, stack_dev
from fleet import Machine, Stack, as_root, until
from test_change import Work, change, comes_back
from test_failure import group
from test_steps import Pair, snapshot, start_sshd

import daskstack
from components.vms.machines.gcp import SPOT_GRACE
from components.vms.step import script

LIMIT = 60  # seconds, the least that a stack may say


# The step


@pytest.fixture(scope="module")
def first_pair(boot: Callable[..., list[Machine]], stack: Stack) -> Pair:
    head, hand = boot("idle-head", "idle-hand")
    pair = Pair(head, hand, stack.network)
    pair.credentials(head)
    pair.credentials(hand)
    return pair


@pytest.fixture
def pair(first_pair: Pair, stack: Stack) -> Iterator[Pair]:
    """Two machines that are on, where nothing was computed for an hour and no worker is there."""
    stack.boot("idle-head", "idle-hand")
    worked(first_pair, 0)
    yield first_pair
    stack.boot("idle-head", "idle-hand")
    for machine in (first_pair.head, first_pair.hand):
        machine.run(script("idle", {"LIMIT": "", "ADDRESS": ""}), {}, "undo")


def worked(pair: Pair, workers: int) -> None:
    """What the scheduler's preload would write an hour after the last work."""
    home = "/var/lib/daskstack/home"
    file = f"rm -f worked && echo {workers} >worked && chown dask worked && touch -d '1 hour ago' worked"
    pair.head.run(f"cd {home} && {file}")


def watch(pair: Pair, machine: Machine, limit: int, **changed: int) -> None:
    """Runs the step, with some of its own constants changed."""
    text = script("idle", {"LIMIT": str(limit), "ADDRESS": "" if machine is pair.head else pair.head.address})
    for name, value in changed.items():
        text, count = re.subn(rf"^{name}=\d+", f"{name}={value}", text, flags=re.M)
        assert count == 1, name
    machine.run(text)


def stays_on(machine: Machine, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert machine.is_on(), f"{machine.name} is off {end - time.monotonic():.0f} s too early"
        time.sleep(0.2)


def test_without_work_a_machine_goes_when_it_was_on_for_the_limit(pair: Pair) -> None:
    watch(pair, pair.hand, 20)
    pair.hand.reboot()
    stays_on(pair.hand, 17)
    until(lambda: not pair.hand.is_on(), 25)
    assert pair.head.is_on()


def test_the_schedulers_machine_waits_until_the_workers_have_gone(pair: Pair) -> None:
    worked(pair, 2)
    watch(pair, pair.head, 8)
    stays_on(pair.head, 20)
    worked(pair, 0)
    until(lambda: not pair.head.is_on(), 15)


def test_the_schedulers_machine_does_not_wait_for_a_stuck_worker_for_ever(pair: Pair) -> None:
    worked(pair, 2)
    watch(pair, pair.head, 8, PATIENCE=12)
    stays_on(pair.head, 16)
    until(lambda: not pair.head.is_on(), 20)


def test_a_machine_stays_on_while_a_step_is_at_work_on_it(pair: Pair) -> None:
    watch(pair, pair.hand, 8)
    pair.hand.run("systemd-run -q flock /run/daskstack.lock sleep 25")
    stays_on(pair.hand, 23)
    until(lambda: not pair.hand.is_on(), 20)


def test_steps_on_the_schedulers_machine_keep_the_others_on(pair: Pair) -> None:
    watch(pair, pair.hand, 12)
    for _ in range(6):
        pair.credentials(pair.head)
        stays_on(pair.hand, 4)
    until(lambda: not pair.hand.is_on(), 30)


def test_a_machine_that_cannot_ask_goes_after_the_limit(pair: Pair) -> None:
    watch(pair, pair.hand, 16)
    pair.head.run("touch /var/lib/daskstack/home/worked")
    stays_on(pair.hand, 14)
    pair.head.ssh("sudo systemctl stop ssh")
    try:
        stays_on(pair.hand, 4)
        until(lambda: not pair.hand.is_on(), 30)
    finally:
        start_sshd(pair.head)


def test_the_step_changes_nothing_the_second_time_and_its_undo_takes_it_away(pair: Pair) -> None:
    before = snapshot(pair.hand)
    watch(pair, pair.hand, 600)
    once = snapshot(pair.hand)
    began = pair.hand.ssh("systemctl show -p ActiveEnterTimestampMonotonic dask-idle").stdout
    watch(pair, pair.hand, 600)
    assert snapshot(pair.hand) ^ once == set()
    assert pair.hand.ssh("systemctl show -p ActiveEnterTimestampMonotonic dask-idle").stdout == began
    pair.hand.run(script("idle", {"LIMIT": "600", "ADDRESS": ""}), {}, "undo")
    assert snapshot(pair.hand) ^ before == set()


# A whole stack


@pytest.fixture(scope="module")
def checkout(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    with stack_dev(tmp_path_factory.mktemp("user")) as checkout:
        change(checkout, "components/vms/step.py", "grace: int = 80", f"grace: int = {SPOT_GRACE}")
        stack = checkout.folder / "Pulumi.dev.yaml"
        stack.write_text(
            re.sub(r"^( +)target: vms\n", rf"\g<0>\1limits: {{idle: {LIMIT}s}}\n", stack.read_text(), flags=re.M)
        )
        checkout.make("up")
        yield checkout


@pytest.fixture(scope="module")
def machines(checkout: Checkout) -> Mapping[str, Machine]:
    return checkout.machines()


def test_a_cluster_that_computes_stays_on_and_one_that_does_not_goes_workers_first(
    machines: Mapping[str, Machine],
) -> None:
    with daskstack.connect("dev") as client:
        client.submit(time.sleep, LIMIT + 25).result(timeout=120)
    assert all(machine.is_on() for machine in machines.values())
    ended, off = time.monotonic(), dict[str, float]()

    def are_off() -> bool:
        for name, machine in machines.items():
            if name not in off and not machine.is_on():
                off[name] = time.monotonic() - ended
        return len(off) == len(machines)

    until(are_off, LIMIT + 120)
    assert min(off.values()) > LIMIT - 5
    assert max(off, key=off.get) == "scheduler"


def test_up_starts_it_again_and_its_clock_anew(checkout: Checkout, machines: Mapping[str, Machine]) -> None:
    printed = checkout.make("up")
    assert set(re.findall(r"command:\w+:Command (\S+) updated", printed)) == {f"{name}-machine" for name in machines}
    with daskstack.connect("dev") as client:
        client.wait_for_workers(2, timeout=60)
    time.sleep(LIMIT / 2)
    assert all(machine.is_on() for machine in machines.values())


def is_preempted(machine: Machine) -> float:
    """Its power button is pressed, and thirty seconds later its power is cut. Returns when it was off."""
    as_root("kill", "-s", "RTMIN+4", str(machine.pid))
    pressed = time.monotonic()
    while machine.is_on():
        if time.monotonic() - pressed > 30:
            listed = as_root("find", str(group(machine)), "-name", "cgroup.procs", "-exec", "cat", "{}", "+").stdout
            as_root("kill", "-KILL", *listed.split(), check=False)
            until(lambda: not machine.is_on(), 10)
            break
        time.sleep(0.1)
    return time.monotonic() - pressed


def test_what_preempted_machines_computed_is_not_computed_again(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    """Each has begun a task that takes longer than it has."""

    def slow(number: int) -> int:
        time.sleep(40)
        return number * number

    work = Work(daskstack.connect("dev"))
    try:
        for name in ("worker-1", "worker-2", "worker-1"):
            long = work.client.submit(slow, 7, workers=f"{name}-1", allow_other_workers=True, pure=False)
            until(lambda long=long: long.key in str(work.client.call_stack()))
            seconds = is_preempted(machines[name])
            print(f"{name}: {seconds:.1f} s")
            assert seconds < 30
            work.goes_on()
            checkout.make("up")
            comes_back(work, f"{name}-1")
            assert long.result(timeout=60) == 49
    finally:
        work.end()
