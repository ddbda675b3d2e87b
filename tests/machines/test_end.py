"""Undoing the step of the shared directory: the user's files stay, everything else is removed."""

import re
from collections.abc import Callable

import pytest

from rehearsal.machines import Machine, Stack, until
from tests.machines.killing import kill_at, lines
from tests.machines.snapshots import snapshot
from tests.machines.test_steps import Pair
from tests.scripts import script


@pytest.fixture(scope="module")
def alone(boot: Callable[..., list[Machine]], stack: Stack) -> Pair:
    return Pair.alone(*boot("holder"), stack)


def data(pair: Pair, path: str, *arguments: str, **changes: str) -> str:
    """Runs the step or its undo, and returns its messages."""
    variables = {"IDENTITY": pair.head.id, **pair.data_variables(pair.head, path), **changes}
    return pair.head.run(script("data", variables), {}, *arguments).stderr


def test_files_stay_after_undo_and_belong_to_the_login_user(alone: Pair) -> None:
    machine = alone.head
    data(alone, "/srv/daskdata")
    machine.ssh("echo mine >/srv/daskdata/mine && sudo -u dask mkdir -p /srv/daskdata/of/dask")
    assert "kept /srv/daskdata on holder, because it contains files" in data(alone, "/srv/daskdata", "undo")
    assert machine.ssh("cat /srv/daskdata/mine").stdout == "mine\n"
    assert machine.ssh("find /srv/daskdata ! -user admin").stdout == ""
    machine.ssh("sudo rm -r /srv/daskdata")


def test_files_are_deleted_only_with_data_delete(alone: Pair) -> None:
    data(alone, "/srv/daskdata", DELETE="yes")
    alone.head.ssh("mkdir /srv/daskdata/of && echo mine >/srv/daskdata/of/mine")
    assert data(alone, "/srv/daskdata", "undo", DELETE="yes") == ""
    assert alone.head.ssh("ls -A /srv").stdout == ""


def test_an_existing_directory_returns_to_its_owner_with_all_new_files(alone: Pair) -> None:
    machine = alone.head
    machine.run("useradd alice; install -d -m 2775 -o alice -g alice /srv/hers; sudo -u alice touch /srv/hers/old")
    data(alone, "/srv/hers")
    machine.ssh("touch /srv/hers/new")
    data(alone, "/srv/hers", "undo")
    assert machine.ssh("stat -c '%n %U %G %a' /srv/hers /srv/hers/old /srv/hers/new").stdout.splitlines() == [
        "/srv/hers alice alice 2775",
        "/srv/hers/old alice alice 644",
        "/srv/hers/new alice alice 644",
    ]
    data(alone, "/srv/hers", DELETE="yes")
    data(alone, "/srv/hers", "undo", DELETE="yes")
    assert machine.ssh("ls -A /srv/hers").stdout == ""
    assert machine.ssh("stat -c '%U %a' /srv/hers").stdout == "alice 2775\n"
    machine.run("rm -r /srv/hers; userdel alice")


def test_processes_that_end_during_the_search_do_not_fail_the_step(alone: Pair) -> None:
    alone.head.run("install -d -o admin /srv/busy")
    alone.head.run("systemd-run -q -u churn bash -c 'while :; do sleep 0.01 & wait; done'")
    text = script("data", alone.data_variables(alone.head, "/srv/busy"))
    looked = text.replace(
        'exclusively main "$@" </dev/null', "for _ in {1..60}; do refuse_used_path; done; echo looked"
    )
    assert looked != text
    try:
        assert alone.head.run(looked).stdout == "looked\n"
    finally:
        alone.head.run("systemctl stop churn; rmdir /srv/busy")


SWAP = """
import contextlib, os
while True:
    with contextlib.suppress(OSError):
        os.rename("d", "e"); os.symlink("/srv/treasure", "d")
    with contextlib.suppress(OSError):
        os.remove("d"); os.rename("e", "d")
"""


def test_other_users_files_keep_their_owner_when_tasks_replace_folders_with_links(alone: Pair) -> None:
    """The step searches the directory for files of the cluster user, to give them to the login user."""
    machine = alone.head
    variables = {"IDENTITY": machine.id, **alone.data_variables(machine, "/srv/race")}
    step, last = script("data", variables).rsplit("\n", 2)[:2]
    assert last == 'exclusively main "$@" </dev/null'
    machine.run(
        "mkdir -p /srv/treasure /srv/race/in/d; touch /srv/{treasure,race/in/d}/{1..3000}\n"
        "chown -R dask: /srv/race; chmod 0777 /srv/race/in /srv/race/in/d"
    )
    machine.run("install -d -m 0700 /var/lib/daskstack/before; echo 755 admin:admin >/var/lib/daskstack/before/data")
    machine.run(f"systemd-run -q --uid=dask -u swap -p WorkingDirectory=/srv/race/in python3 -c '{SWAP}'")
    machine.run(
        step + "\nfor try in {1..20}; do restore_owner; chown -hRf dask: /srv/race || true; done; restore_owner"
    )
    machine.run("systemctl stop swap")
    taken = machine.run("find /srv/treasure -user admin | wc -l; find /srv/race -user admin | wc -l").stdout.split()
    machine.run("rm -r /srv/treasure /srv/race /var/lib/daskstack/before/data")
    machine.run("rmdir --ignore-fail-on-non-empty /var/lib/daskstack/before")
    assert taken[0] == "0"
    assert int(taken[1]) > 1


def test_undo_removes_only_parent_folders_that_the_step_created(alone: Pair) -> None:
    machine = alone.head
    machine.run("mkdir /srv/there")
    data(alone, "/srv/there/made/too")
    data(alone, "/srv/there/made/too", "undo")
    assert machine.ssh("find /srv/there").stdout == "/srv/there\n"
    machine.run("rmdir /srv/there")


def test_a_step_killed_at_any_line_can_be_finished_and_undone(alone: Pair) -> None:
    """As if the machine lost power or ran out of memory."""
    machine, before = alone.head, snapshot(alone.head)
    text = script("data", {"IDENTITY": machine.id, **alone.data_variables(machine, "/srv/daskdata")})
    total, undo = lines(machine, text), lines(machine, text, "undo")
    assert snapshot(machine) ^ before == set()

    # Undo directly after the kill, like a destroy after a killed `up`.
    for line in (total * part // 6 for part in range(1, 6)):
        assert kill_at(line, machine, text), f"line {line} of {total}"
        data(alone, "/srv/daskdata", "undo")
        assert snapshot(machine) ^ before == set(), f"killed at line {line} of {total}"
    # Also while the file exists with which the step tests the mount.
    removal = '  as_cluster_user $ETC/ssh/ssh "$DATA_ADDRESS" rm'
    machine.run(text.replace(removal, f"  kill -KILL $$\n{removal}"), check=False)
    assert ".daskstack-probe-" in machine.run("ls -A /srv/daskdata").stdout
    data(alone, "/srv/daskdata", "undo")
    assert snapshot(machine) ^ before == set()
    # Kill again and again, each time a little later, until a run ends.
    killed = [line for line in range(total // 12, total + 1, total // 12) if kill_at(line, machine, text)]
    assert len(killed) > 5
    data(alone, "/srv/daskdata")
    machine.ssh("touch /srv/daskdata/works && rm /srv/daskdata/works")
    killed = [line for line in range(undo // 8, undo + 1, undo // 8) if kill_at(line, machine, text, "undo")]
    assert len(killed) > 3
    data(alone, "/srv/daskdata", "undo")
    assert snapshot(machine) ^ before == set()
    # Undo killed after each of its last two actions.
    for action in ("forget data", "drop $PATH_FILE"):
        data(alone, "/srv/daskdata")
        killed_after = re.sub(rf"^  {re.escape(action)}.*$", "\\g<0>\n  kill -KILL $$", text, flags=re.MULTILINE)
        assert machine.run(killed_after, {}, "undo", check=False).returncode
        data(alone, "/srv/daskdata", "undo")
        assert snapshot(machine) ^ before == set(), action


def test_two_runs_of_a_step_wait_for_each_other(alone: Pair) -> None:
    """A step continues on the machine after the `up` that started it was killed."""
    machine = alone.head
    until_waited_for = "until pgrep -fx 'flock --wait 300 9'; do sleep 0.1; done; sleep 1"
    machine.run(f'systemd-run -q -u former flock /run/daskstack.lock sh -c "{until_waited_for}"')
    machine.run("timeout 60 sh -c 'until ! flock --nonblock /run/daskstack.lock true; do sleep 0.1; done'")
    said = data(alone, "/srv/daskdata")
    assert "waiting for a step of an earlier run" in said
    until(lambda: machine.ssh("systemctl is-active former", check=False).stdout == "inactive\n")
    data(alone, "/srv/daskdata", "undo")
