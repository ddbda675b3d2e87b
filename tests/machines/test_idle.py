"""The step that powers off an idle machine, on real machines; test_power_off.py tests a complete stack."""

import json
import time
from collections.abc import Callable

import pytest

from rehearsal.machines import Machine, Stack, as_root, until
from tests.machines.snapshots import snapshot
from tests.machines.test_steps import Pair, start_sshd
from tests.scripts import script


@pytest.fixture(scope="module")
def first_pair(boot: Callable[..., list[Machine]], stack: Stack) -> Pair:
    head, hand = boot("idle-head", "idle-hand")
    pair = Pair(head, hand, stack.network)
    pair.credentials(head)
    pair.credentials(hand)
    return pair


@pytest.fixture
def pair(first_pair: Pair, stack: Stack) -> Pair:
    """Two running machines on which nothing was computed for an hour, without workers."""
    for machine in (first_pair.head, first_pair.hand):
        calm(machine, stack)
    worked(first_pair, 0)
    return first_pair


def calm(machine: Machine, stack: Stack) -> None:
    """Makes sure that the machine is on and that nothing powers it off."""
    ends = "sudo -n systemctl stop dask-idle step steps 2>/dev/null; true"
    if not machine.is_on() or machine.ssh(ends, check=False).returncode:
        until(lambda: not machine.is_on())
        # Otherwise it could power off before a command reaches it.
        unit = "etc/systemd/system/multi-user.target.wants/dask-idle.service"
        as_root("rm", "-f", str(machine.folder / "upper" / unit))
        stack.boot(machine.name)
    machine.run(script("idle", {"LIMIT": "", "ADDRESS": ""}), {}, "undo")


def worked(pair: Pair, workers: int) -> None:
    """Writes the scheduler's record as of an hour after the last work."""
    home = "/var/lib/daskstack/home"
    file = f"rm -f worked && echo {workers} >worked && chown dask worked && touch -d '1 hour ago' worked"
    pair.head.run(f"cd {home} && {file}")


def watch(pair: Pair, machine: Machine, limit: int, then: str = "") -> None:
    """Runs the step, and directly after it a script, before the limit can pass."""
    told = {"LIMIT": str(limit), "ADDRESS": "" if machine is pair.head else pair.head.address}
    machine.run(f"{script('idle', told)}\n{then}\n")


def moments(machine: Machine, words: str) -> list[float]:
    """The time of a message of the watch in the machine's journal, on the clock of time.monotonic()."""
    journal = ("journalctl", "--directory", str(machine.folder / "upper/var/log/journal"), "--unit", "dask-idle")
    entries = [json.loads(line) for line in as_root(*journal, "--output", "json").stdout.splitlines()]
    return [int(each["__MONOTONIC_TIMESTAMP"]) / 1e6 for each in entries if words in str(each["MESSAGE"])]


def outlives(machine: Machine, limit: int) -> None:
    """Waits past the limit and two more checks of the watch; fails if the machine powered off."""
    time.sleep(limit + 2 * (limit // 4) + 1)
    assert machine.is_on()
    assert max(moments(machine, "powering off"), default=0) < max(moments(machine, "Started "))


def has_gone(machine: Machine) -> tuple[float, float]:
    """Waits until the machine is off; returns when its watch started and when it powered off."""
    until(lambda: not machine.is_on(), 200)
    return max(moments(machine, "Started ")), max(moments(machine, "powering off"))


# tests/unit/test_idle_watch.py tests the times with a fake clock. These tests need machines. The watch reads its clock
# in whole seconds.


def test_an_idle_machine_powers_off_after_the_limit(pair: Pair) -> None:
    watch(pair, pair.hand, 12)
    pair.hand.ssh("sudo -n systemctl reboot", check=False)
    started, off = has_gone(pair.hand)
    assert off - started > 11
    assert pair.head.is_on()


def test_the_schedulers_machine_powers_off_after_the_workers(pair: Pair) -> None:
    worked(pair, 2)
    watch(pair, pair.head, 4)
    outlives(pair.head, 4)
    worked(pair, 0)
    has_gone(pair.head)


def test_a_machine_stays_on_while_a_step_runs_on_it(pair: Pair) -> None:
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


def test_a_machine_that_cannot_reach_the_scheduler_powers_off_after_the_limit(pair: Pair) -> None:
    pair.head.ssh("sudo systemctl stop ssh")
    try:
        watch(pair, pair.hand, 8)
        started, off = has_gone(pair.hand)
        assert off - started > 7
    finally:
        start_sshd(pair.head)


def test_the_step_changes_nothing_the_second_time_and_undo_removes_it(pair: Pair) -> None:
    def began() -> str:
        return pair.hand.ssh("systemctl show -p ActiveEnterTimestampMonotonic dask-idle").stdout

    # Stop renewals, which could fetch new credentials at any time.
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
