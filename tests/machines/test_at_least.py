"""`up` of a stack with `workers.atLeast` succeeds without the machines that cannot join, and they join later."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from daskstack import engine
from rehearsal.machines import Stack, as_root, run
from tests.checkout import Checkout
from tools.missing_machines import joined

pytestmark = pytest.mark.timeout(1800)
LATE = "printf '#!/bin/sh\\nexec /usr/bin/date --date=yesterday \"$@\"\\n' >/usr/local/bin/date"
JOB = "import daskstack; print(daskstack.connect('mine').submit(sum, [1, 2]).result(60))"


@pytest.fixture(scope="module")
def seen(make_stack: Callable[[str], Stack], key: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What happens with a machine whose sshd is stopped and one whose clock is wrong, until both are repaired."""
    lan = make_stack("least")
    machines = lan.boot("head", "good", "silent", "late")
    _, good, silent, late = machines
    silent.run("systemctl stop ssh")
    late.run(f"{LATE}; chmod 0755 /usr/local/bin/date")
    checkout = Checkout(tmp_path_factory.mktemp("user"), "mine")

    def write(at_least: int, **of_silent: str) -> None:
        stack = yaml.safe_load(checkout.file.read_text())
        hosts = [{"name": each.name, "address": each.address, "user": "admin"} for each in machines]
        hosts[2] |= of_silent
        stack["config"]["dask:cluster"] = {
            "target": "machines",
            "machines": {"source": "existing", "network": lan.network, "hosts": hosts},
            "workers": {"atLeast": at_least},
            "firewall": {"ssh": [f"{lan.gateway}/32"]},
            "environment": {"source": "wheelhouse"},
            "jupyter": {"enabled": False},
        }
        checkout.file.write_text(yaml.safe_dump(stack))

    def missing() -> list[str]:
        return yaml.safe_load(checkout.file.read_text())["config"]["dask:cluster"]["workers"].get("missing", [])

    write(2, hostKey=silent.host_key)
    checkout.pulumi("stack", "init")
    checkout.pulumi("config", "set", "--secret", "dask:sshKey", stdin=key.read_text())
    seen = SimpleNamespace(too_few=checkout.make("up", succeeds=False), address_of_late=late.address)
    write(1)
    seen.first, seen.missing = checkout.make("up"), missing()
    seen.status = checkout.make("status")
    environ = checkout.environ | engine.variables("mine", checkout.environ)
    seen.job = run([".venv/bin/python", "-c", JOB], cwd=checkout.folder, env=environ, seconds=100).stdout
    seen.again, seen.still_missing = checkout.make("up"), missing()

    as_root("nsenter", "--target", str(silent.pid), "--all", "systemctl", "start", "ssh")
    late.run("rm /usr/local/bin/date")
    logins = good.logins()
    seen.joined, seen.none_missing = checkout.make("up"), missing()
    seen.logins_of_good = good.logins() - logins - 1
    seen.last = checkout.make("up")
    seen.in_state = joined(checkout.resources().values())
    return seen


UNCHANGED = r"Resources:\n +\d+ unchanged\n"
REASONS = {
    "silent": r"\S+ port 22 shows no ed25519 host key",
    "late": "the clock differs from your computer's by 86\\d+ seconds",
}


def reported(printed: str) -> list[str]:
    """The machines that `up` reports as missing with the right reason."""
    return [name for name, why in REASONS.items() if re.search(f"^missing: {name}: {why}", printed, re.MULTILINE)]


def test_up_fails_if_too_few_machines_can_join(seen: SimpleNamespace) -> None:
    """They are named together, without the scheduler's machine, which cannot reach one of them."""
    few = "the other machines provide 1 worker processes, and workers.atLeast is 2"
    assert f"error: `up` cannot continue without silent, late: {few}" in seen.too_few
    assert re.search(r"- no shell as admin: .*\n *- head cannot connect to \S+ on port 22", seen.too_few)


def test_up_succeeds_with_enough_workers_and_says_which_machines_are_missing_and_why(seen: SimpleNamespace) -> None:
    assert "workers      1 running" in seen.first
    assert reported(seen.first) == seen.missing == ["silent", "late"]
    for printed in (seen.first, seen.status):
        assert re.search("^missing      silent, late: the next", printed, re.MULTILINE)
    assert seen.job == "3\n"


def test_up_tries_missing_machines_again_and_changes_nothing_else(seen: SimpleNamespace) -> None:
    assert reported(seen.again) == seen.still_missing == ["silent", "late"]
    assert re.search(UNCHANGED, seen.again)


def test_the_host_key_of_a_missing_machine_stays_known(seen: SimpleNamespace) -> None:
    said = f"first contact: {seen.address_of_late} "
    assert said in seen.too_few
    assert said not in seen.first + seen.again + seen.joined


def test_repaired_machines_join_and_no_other_worker_notices(seen: SimpleNamespace) -> None:
    assert "workers      3 running" in seen.joined
    assert seen.none_missing == []
    assert seen.logins_of_good == 0
    assert re.search(UNCHANGED, seen.last)
    assert "missing" not in seen.last
    assert seen.in_state == {"head", "good", "silent", "late"}
