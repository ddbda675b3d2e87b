"""Failures on a complete stack, and the recovery from them, either automatic or by the next `make up`."""

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import distributed
import pytest

import daskstack
from rehearsal.machines import Machine, as_root, until
from tests.checkout import Checkout, made_once
from tests.work import wait_until_working

pytestmark = pytest.mark.timeout(1800)


def group(machine: Machine) -> Path:
    """The control group with all processes of a machine."""
    top = as_root("findmnt", "-rn", "-o", "TARGET", "-t", "cgroup2").stdout.splitlines()[0]
    return Path(top, f"{machine.bridge}-{machine.name}")


@contextmanager
def frozen(machine: Machine) -> Iterator[None]:
    """Freezes all processes of a machine; its kernel still accepts connections."""
    freezer = group(machine) / "cgroup.freeze"
    as_root("sh", "-c", f"echo 1 >{freezer}")
    try:
        yield
    finally:
        as_root("sh", "-c", f"echo 0 >{freezer}")


@contextmanager
def unplugged(machine: Machine) -> Iterator[None]:
    """Takes a machine's network link down, so that packets to it are lost."""
    link = ("nsenter", "--target", str(machine.pid), "--net", "ip", "link", "set", "host0")
    as_root(*link, "down")
    try:
        yield
    finally:
        as_root(*link, "up")


def test_preview_detects_a_restart_of_this_computer_and_up_repairs_the_stack(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    made = made_once(checkout)
    for machine in machines.values():
        kill_all = f"find {group(machine)} -name cgroup.procs -exec cat {{}} + | xargs -r kill -KILL"
        as_root("sh", "-c", kill_all, check=False)  # some exit with the first one
    bridge = machines["scheduler"].bridge
    as_root("ip", "link", "delete", bridge)
    as_root("ip", "netns", "delete", bridge)
    # As if the stack was created before the computer's last boot.
    now, former = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), "2f1c9d1e-0000-4000-8000-000000000000"
    machines["scheduler"].folder.with_name("boot").write_text(f"{former}\n")
    state = checkout.pulumi("stack", "export")
    assert now in state
    checkout.pulumi("stack", "import", stdin=state.replace(now, former))

    for printed in (checkout.make("preview"), checkout.make("up")):
        assert "a restart of this computer has stopped the stack's machines; `up` starts them again" in printed
    assert made_once(checkout) == made
    wait_until_working()


@pytest.mark.parametrize("name", ["scheduler", "worker-1"])
def test_a_rebooted_machine_rejoins_the_cluster(checkout: Checkout, machines: Mapping[str, Machine], name: str) -> None:
    machines[name].reboot()
    wait_until_working()


def test_a_killed_scheduler_restarts_and_its_workers_reconnect(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    show = "systemctl show -P MainPID dask-scheduler"
    before = machines["scheduler"].ssh(show).stdout
    machines["scheduler"].ssh("sudo systemctl kill --signal=KILL dask-scheduler")
    wait_until_working()
    assert machines["scheduler"].ssh(show).stdout not in (before, "0\n")


def test_a_job_returns_the_right_result_although_a_worker_is_killed(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    def square(number: int) -> int:
        return number * number

    def square_later(number: int) -> int:
        distributed.Event("the worker is gone").wait()
        return number * number

    with daskstack.connect("dev") as client:
        client.wait_for_workers(2, timeout=120)
        over = distributed.Event("the worker is gone", client=client)
        done = client.map(square, range(30), pure=False)
        distributed.wait(done)
        rest = client.map(square_later, range(30, 60), pure=False)
        workers = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
        [victim] = (address for address, each in workers.items() if each["name"] == "worker-1-1")
        until(lambda: client.processing([victim])[victim] != ())
        assert any(victim in where for where in client.who_has(done).values())
        machines["worker-1"].ssh("sudo systemctl kill --signal=KILL dask-worker@1")
        over.set()
        total = client.submit(sum, [*done, *rest], pure=False)
        assert total.result(timeout=240) == sum(number * number for number in range(60))
    wait_until_working()


def test_the_mount_recovers_after_sshfs_dies(machines: Mapping[str, Machine]) -> None:
    pattern = "-f '^sshfs dask@[^ ]* /dev/fd/'"
    for machine in machines.values():
        before = machine.ssh(f"touch /srv/daskdata/seen && pgrep {pattern}").stdout
        machine.ssh(f"sudo pkill -KILL {pattern}")

        def is_back(machine: Machine = machine, before: str = before) -> bool:
            seen = machine.ssh(f"ls /srv/daskdata/seen && pgrep {pattern}", check=False)
            return seen.returncode == 0 and before not in seen.stdout

        until(is_back)


def test_many_machines_can_log_in_to_one_machine_at_the_same_time(machines: Mapping[str, Machine]) -> None:
    scheduler = machines["scheduler"]
    many = f"for each in $(seq 40); do sudo -u dask ssh {scheduler.address} true || echo refused & done; wait"
    assert machines["worker-1"].ssh(f"cd /; {many}").stdout == ""


def test_an_outage_of_the_storage_causes_errors_until_it_returns(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    """The scheduler's machine holds the data, so all of Dask stalls with it."""
    worker = machines["worker-1"]
    worker.ssh("echo kept >/srv/daskdata/kept")
    with unplugged(machines["scheduler"]):
        for _ in range(2):  # also after the loss of the link is detected
            done = worker.ssh("timeout 60 touch /srv/daskdata/astray", check=False)
            assert done.returncode not in (0, 124), "expected an error, neither success nor a hanging access"
    until(lambda: worker.ssh("timeout 20 cat /srv/daskdata/kept", check=False).stdout == "kept\n")
    assert "astray" not in machines["scheduler"].ssh("ls /srv/daskdata").stdout
    wait_until_working()


def test_a_full_disk_is_reported_and_the_next_up_recovers(checkout: Checkout, machines: Mapping[str, Machine]) -> None:
    """During the next `up`, sshd keeps restarting, and a machine is frozen for 20 seconds."""
    worker = machines["worker-1"]
    checkout.change("environment.lock", r"^xyzservices==.*\n(?: .*\n)*", "")
    worker.ssh("sudo mount -t tmpfs -o size=1M,mode=0755 tmpfs /opt/daskstack")
    try:
        printed = checkout.make("up", succeeds=False)
    finally:
        worker.ssh("sudo umount -l /opt/daskstack")
    assert re.search(r"the disk of /opt/daskstack on worker-1 is full \(\d MB left\); free some space", printed)

    over = threading.Event()

    def restart_sshd() -> None:
        while not over.wait(3):  # systemd gives up after five restarts within ten seconds
            as_root("nsenter", "--target", str(worker.pid), "--all", "systemctl", "restart", "ssh")

    def stand_still() -> None:
        with frozen(machines["worker-2"]):
            over.wait(20)

    disturbers = [threading.Thread(target=restart_sshd), threading.Thread(target=stand_still)]
    for each in disturbers:
        each.start()
    try:
        printed = checkout.make("up")
    finally:
        over.set()
        for each in disturbers:
            each.join()
    assert f"{checkout.locked()} on 3 processes" in printed
    wait_until_working()
    checkout.keep()  # so that no other `up` restores the package
