"""A cluster that nobody uses powers itself off, and comes back with `up`."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping

import pytest
from checkout import Checkout, stack_dev
from fleet import Machine, Stack, as_root, until
from snapshots import snapshot
from test_change import comes_back
from test_steps import Pair, start_sshd
from work import Work

import daskstack
from components.machines.sources.compute import SPOT_GRACE
from components.machines.step import script

# The step


@pytest.fixture(scope="module")
def first_pair(boot: Callable[..., list[Machine]], stack: Stack) -> Pair:
    head, hand = boot("idle-head", "idle-hand")
    pair = Pair(head, hand, stack.network)
    pair.credentials(head)
    pair.credentials(hand)
    return pair


@pytest.fixture
def pair(first_pair: Pair, stack: Stack) -> Pair:
    """Two machines that are on, where nothing was computed for an hour and no worker is there."""
    for machine in (first_pair.head, first_pair.hand):
        calm(machine, stack)
    worked(first_pair, 0)
    return first_pair


def calm(machine: Machine, stack: Stack) -> None:
    """On, and nothing powers it off."""
    ends = "sudo -n systemctl stop dask-idle step steps 2>/dev/null; true"
    if not machine.is_on() or machine.ssh(ends, check=False).returncode:
        until(lambda: not machine.is_on())
        # Else it could be off again before anything reaches it.
        unit = "etc/systemd/system/multi-user.target.wants/dask-idle.service"
        as_root("rm", "-f", str(machine.folder / "upper" / unit))
        stack.boot(machine.name)
    machine.run(script("idle", {"LIMIT": "", "ADDRESS": ""}), {}, "undo")


def worked(pair: Pair, workers: int) -> None:
    """What the scheduler's preload would write an hour after the last work."""
    home = "/var/lib/daskstack/home"
    file = f"rm -f worked && echo {workers} >worked && chown dask worked && touch -d '1 hour ago' worked"
    pair.head.run(f"cd {home} && {file}")


def watch(pair: Pair, machine: Machine, limit: int, then: str = "") -> None:
    """Runs the step, and at once, before the limit can be over, what follows."""
    told = {"LIMIT": str(limit), "ADDRESS": "" if machine is pair.head else pair.head.address}
    machine.run(f"{script('idle', told)}\n{then}\n")


def moments(machine: Machine, words: str) -> list[float]:
    """When its watch said so, on the clock of time.monotonic(), as the machine's journal has it."""
    journal = ("journalctl", "--directory", str(machine.folder / "upper/var/log/journal"), "--unit", "dask-idle")
    entries = [json.loads(line) for line in as_root(*journal, "--output", "json").stdout.splitlines()]
    return [int(each["__MONOTONIC_TIMESTAMP"]) / 1e6 for each in entries if words in str(each["MESSAGE"])]


def outlives(machine: Machine, limit: int) -> None:
    """It has not begun to power off when it looked more than once since the limit was over."""
    time.sleep(limit + 2 * (limit // 4) + 1)
    assert machine.is_on()
    assert max(moments(machine, "powering off"), default=0) < max(moments(machine, "Started "))


def has_gone(machine: Machine) -> tuple[float, float]:
    """Once it is off: when its watch started, and when it powered the machine off."""
    until(lambda: not machine.is_on(), 200)
    return max(moments(machine, "Started ")), max(moments(machine, "powering off"))


# When the watch ends is in tests/unit/test_idle_watch.py, on a clock of its own. Here is what it needs of machines. It
# reads its clock in whole seconds.


def test_without_work_a_machine_goes_when_it_was_on_for_the_limit(pair: Pair) -> None:
    watch(pair, pair.hand, 12)
    pair.hand.ssh("sudo -n systemctl reboot", check=False)
    started, off = has_gone(pair.hand)
    assert off - started > 11
    assert pair.head.is_on()


def test_the_schedulers_machine_waits_until_the_workers_have_gone(pair: Pair) -> None:
    worked(pair, 2)
    watch(pair, pair.head, 4)
    outlives(pair.head, 4)
    worked(pair, 0)
    has_gone(pair.head)


def test_a_machine_stays_on_while_a_step_is_at_work_on_it(pair: Pair) -> None:
    holds = "systemd-run --quiet --unit step flock /run/daskstack.lock sleep infinity"
    watch(pair, pair.hand, 4, then=holds)
    outlives(pair.hand, 4)
    pair.hand.run("systemctl stop step")
    has_gone(pair.hand)


def test_steps_on_the_schedulers_machine_keep_the_others_on(pair: Pair) -> None:
    pair.head.run("touch -d '1 hour ago' /run/daskstack-stepped")
    pair.credentials(pair.head)
    assert pair.head.ssh("find /run/daskstack-stepped -mmin -30").stdout, "a step leaves when it ended"
    pair.head.run("systemd-run --quiet --unit steps sh -c 'while sleep 1; do touch /run/daskstack-stepped; done'")
    watch(pair, pair.hand, 12)
    outlives(pair.hand, 12)
    pair.head.run("systemctl stop steps")
    has_gone(pair.hand)


def test_a_machine_that_cannot_ask_goes_after_the_limit(pair: Pair) -> None:
    pair.head.ssh("sudo systemctl stop ssh")
    try:
        watch(pair, pair.hand, 8)
        started, off = has_gone(pair.hand)
        assert off - started > 7
    finally:
        start_sshd(pair.head)


def test_the_step_changes_nothing_the_second_time_and_its_undo_takes_it_away(pair: Pair) -> None:
    def began() -> str:
        return pair.hand.ssh("systemctl show -p ActiveEnterTimestampMonotonic dask-idle").stdout

    # A renewal would fetch what is new, at any time.
    pair.hand.run("systemctl stop dask-credentials.timer dask-credentials.service")
    try:
        before = snapshot(pair.hand)
        watch(pair, pair.hand, 600)
        once, first = snapshot(pair.hand), began()
        watch(pair, pair.hand, 600)
        assert snapshot(pair.hand) ^ once == set()
        assert began() == first
        pair.hand.run(script("idle", {"LIMIT": "600", "ADDRESS": ""}), {}, "undo")
        assert snapshot(pair.hand) ^ before == set()
    finally:
        pair.hand.run("systemctl start dask-credentials.timer")


# A whole stack

LIMIT = 60  # seconds, the least that a stack may say


@pytest.fixture(scope="module")
def checkout(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    with stack_dev(tmp_path_factory.mktemp("user")) as checkout:
        checkout.change("components/machines/step.py", "grace: int = 80", f"grace: int = {SPOT_GRACE}")
        checkout.change("Pulumi.dev.yaml", r"^( +)target: machines\n", rf"\g<0>\1limits: {{idle: {LIMIT}s}}\n")
        yield checkout


@pytest.fixture
def machines(checkout: Checkout) -> Mapping[str, Machine]:
    """All on, also where nobody has used them for a while."""
    checkout.make("up")
    return checkout.machines()


def test_what_preempted_machines_computed_is_not_computed_again(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    """Each has begun a task that takes longer than it has."""

    def slow(number: int) -> int:
        time.sleep(30)
        return number * number

    work = Work(daskstack.connect("dev"))
    try:
        for name in ("worker-1", "worker-2", "worker-1"):
            long = work.client.submit(slow, 7, workers=f"{name}-1", allow_other_workers=True, pure=False)
            until(lambda long=long: long.key in str(work.client.call_stack()))
            as_root("kill", "-s", "RTMIN+4", str(machines[name].pid))  # as by its power button
            # By itself. Google would cut the power after 30 s; a busy computer has longer, a machine of another grace
            # than that of spot machines has not.
            until(lambda name=name: not machines[name].is_on(), 60)
            work.goes_on()
            checkout.make("up")
            comes_back(work, f"{name}-1")
            assert long.result(timeout=300) == 49
    finally:
        work.end()


def test_a_cluster_that_computes_stays_on_one_that_does_not_goes_workers_first_and_up_starts_it_again(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    def computed(seconds: float) -> float:
        time.sleep(seconds)
        return time.monotonic()  # which is that of this computer

    look = LIMIT / 4
    with daskstack.connect("dev") as client:
        ended = client.submit(computed, LIMIT + look + 1).result(timeout=300)
    assert all(machine.is_on() for machine in machines.values())
    off = {name: has_gone(machine)[1] for name, machine in machines.items()}
    assert min(off.values()) - ended > LIMIT - 1
    assert max(off, key=off.get) == "scheduler"

    printed = checkout.make("up")
    assert set(re.findall(r"command:\w+:Command (\S+) updated", printed)) == {f"{name}-machine" for name in machines}
    with daskstack.connect("dev") as client:
        client.wait_for_workers(2, timeout=300)
    time.sleep(look + 1)  # each has looked at its clock
    assert all(machine.is_on() for machine in machines.values())
