"""A cluster that nobody uses powers itself off, and comes back with `up`."""

import re
import time
from collections.abc import Iterator, Mapping

import pytest
from checkout import Checkout
from fleet import Machine, as_root, until

import daskstack
from daskstack import engine

LIMIT = 60  # seconds, the least that a stack may say


def is_on(machine: Machine) -> bool:
    return as_root("flock", "--nonblock", str(machine.folder / "running"), "true", check=False).returncode == 1


# A whole stack


@pytest.fixture(scope="module")
def checkout(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    with pytest.MonkeyPatch.context() as patch:
        checkout = Checkout(tmp_path_factory.mktemp("user"))
        patch.setenv("XDG_DATA_HOME", checkout.environ["XDG_DATA_HOME"])
        patch.setattr(engine, "PROJECT", checkout.folder)
        stack = checkout.folder / "Pulumi.dev.yaml"
        stack.write_text(
            re.sub(r"^( +)target: vms\n", rf"\g<0>\1limits: {{idle: {LIMIT}s}}\n", stack.read_text(), flags=re.M)
        )
        try:
            checkout.make("up")
            yield checkout
        finally:
            checkout.make("destroy")


@pytest.fixture(scope="module")
def machines(checkout: Checkout) -> Mapping[str, Machine]:
    return checkout.machines()


def test_a_cluster_that_computes_stays_on_and_one_that_does_not_goes_workers_first(
    machines: Mapping[str, Machine],
) -> None:
    with daskstack.connect("dev") as client:
        client.submit(time.sleep, LIMIT + 25).result(timeout=120)
    assert all(is_on(machine) for machine in machines.values())
    ended, off = time.monotonic(), dict[str, float]()

    def are_off() -> bool:
        for name, machine in machines.items():
            if name not in off and not is_on(machine):
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
    assert all(is_on(machine) for machine in machines.values())
