"""When a machine of a cluster powers itself off, on a clock that passes as fast as the step can look at it."""

import shlex
import subprocess

import pytest

from on_this_computer.send_scripts import STEPS

BEGIN = 1000  # what the clock shows as the watch begins
HOUR = "echo 3600 0"  # nothing was computed for an hour, and no worker is there
CLOCK = """
set -euo pipefail
OPT=/nowhere STEPPED=/nowhere
clock={BEGIN}
uptime() {{ echo $clock; }}
date() {{ echo $clock; }}
stat() {{ {stepped}; }}
ask() {{ {ask}; }}
sleep() {{ clock=$((clock + $1)) && ((clock < 20000)) || exit 0; }}
power_off() {{ echo $clock && exit; }}
watch
"""


def powers_off_after(limit: int, ask: str, *, address: str = "", stepped: str = "false") -> int:
    """Seconds until the machine powers off: `ask` and `stepped` are bash, and find the time in $clock."""
    step = (STEPS / "idle.sh").read_text().partition("\nunit() {")[0]
    clock = CLOCK.format(BEGIN=BEGIN, ask=ask, stepped=stepped)
    script = f"LIMIT={limit} ADDRESS={address} CLUSTER_USER= CLUSTER_HOME= ETC= LOCK=\n{step}\n{clock}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout, "the machine stays on"
    return int(done.stdout) - BEGIN


@pytest.mark.parametrize("address", ["", "10.9.0.2"])
@pytest.mark.parametrize(("limit", "look"), [(60, 15), (600, 20)])
def test_an_idle_machine_powers_off_after_the_limit(address: str, limit: int, look: int) -> None:
    assert limit <= powers_off_after(limit, HOUR, address=address) <= limit + look


def test_a_cluster_powers_off_when_the_limit_has_passed_since_its_last_work() -> None:
    last = BEGIN + 500
    assert 560 <= powers_off_after(60, f"((clock < {last})) && echo 0 0 || echo $((clock - {last})) 0") <= 575


def test_the_schedulers_machine_waits_for_the_workers_but_not_the_other_way_around() -> None:
    there = f"((clock < {BEGIN + 200})) && echo 3600 2 || echo 3600 0"
    assert 200 <= powers_off_after(60, there) <= 215
    assert 60 <= powers_off_after(60, there, address="10.9.0.2") <= 75


def test_the_schedulers_machine_does_not_wait_forever_for_a_stuck_worker() -> None:
    assert 360 <= powers_off_after(60, "echo 3600 2") <= 375


def test_a_step_on_the_machine_resets_the_idle_time() -> None:
    last = BEGIN + 500
    assert 560 <= powers_off_after(60, HOUR, stepped=f"echo $((clock < {last} ? clock : {last}))") <= 575


@pytest.mark.parametrize("heard", [0, 500])
def test_a_machine_without_answers_powers_off_the_limit_after_the_last_one(heard: int) -> None:
    # It looks at least every half limit.
    assert (
        max(60, heard + 30)
        <= powers_off_after(60, f"((clock < {BEGIN + heard})) && echo 0 0", address="10.9.0.2")
        <= heard + 75
    )


@pytest.mark.parametrize("age", [-500, -9_999_999_999])
def test_work_in_the_future_of_a_clock_that_was_set_back_counts_as_work_just_now(age: int) -> None:
    ask = f"((clock < {BEGIN + 500})) && echo {age} 0 || {HOUR}"
    assert 500 <= powers_off_after(60, ask, address="10.9.0.2") <= 575


@pytest.mark.parametrize("answer", ["", "x", "1e9", "08 0", "-0 0", "a[$(echo ran >&2)] 0", "99999999999999999999 0"])
def test_an_invalid_answer_of_the_scheduler_counts_as_none_and_is_not_evaluated(answer: str) -> None:
    assert 60 <= powers_off_after(60, f"echo {shlex.quote(answer)}", address="10.9.0.2") <= 75
