"""What breaks, and what then comes back by itself or by the next `make up`, on a whole stack.

KILLS=20 tries more moments at which `make up` is killed.
"""

import os
import random
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import distributed
import pytest
from checkout import LIMIT, Checkout, stack_dev
from fleet import SUDO, Machine, as_root, run, until

import daskstack

pytestmark = pytest.mark.timeout(1800)
KILLS = int(os.environ.get("KILLS", "4"))
NAMES = ("scheduler", "worker-1", "worker-2")
# What is made once by each step, by its place in the machine's folder: another one would mean another machine or
# another cluster.
MADE_ONCE = {
    "machine": ["id", "upper/etc/machine-id", "upper/etc/ssh/ssh_host_ed25519_key.pub"],
    "keys": ["upper/etc/daskstack/ssh/id_ed25519.pub"],
    "authority": [f"upper/etc/daskstack/authority/{name}" for name in ("host.pub", "user.pub", "tls.pem")],
}


def processes() -> dict[int, tuple[int, int]]:
    """Every process with its parent and its session."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,sid="], capture_output=True, text=True, check=True).stdout
    return {pid: (parent, session) for pid, parent, session in (map(int, line.split()) for line in listed.splitlines())}


def kill(make: subprocess.Popen, with_commands: bool) -> None:
    """`kill -9` of make, engine and plugins; with or without the local commands that these run."""
    stopped: set[int] = set()
    while True:
        found = processes()
        family = {make.pid}
        while more := {pid for pid, (parent, _) in found.items() if parent in family} - family:
            family |= more
        doomed = {pid for pid in family & found.keys() if with_commands or found[pid][1] == make.pid}
        if doomed <= stopped:
            break
        # They stand still first, for one that starts another just now would leave that one behind.
        as_root("kill", "-STOP", *map(str, doomed - stopped), check=False)
        stopped |= doomed
    as_root("kill", "-KILL", *map(str, stopped), check=False)
    make.wait()


class Cluster:
    """A user's checkout, its stack of local machines, and what was seen of both."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout
        self.data = Path(checkout.environ["XDG_DATA_HOME"], "daskstack")
        self.last = ""

    def locked(self) -> bool:
        return any(self.data.glob("state/.pulumi/locks/organization/dask/dev/*.json"))

    def resources(self) -> dict[str, dict]:
        """What the state knows, of which there is none where `up` was killed before it began one."""
        if not list(self.data.glob("state/.pulumi/stacks/dask/dev.json*")):
            return {}
        return self.checkout.resources()

    def finished(self) -> dict[str, tuple[str, str]]:
        """When each Command that has ended was begun for the first time, and when it ran last."""
        known = self.resources().items()
        return {name: (each["created"], each["modified"]) for name, each in known if ":Command" in each["type"]}

    def made(self) -> dict[str, str]:
        """What has been made once up to now, by commands that have ended."""
        known, found = self.resources(), {}
        for name in NAMES:
            for step, paths in MADE_ONCE.items():
                folder = self.data / "machines/dev" / name
                if f"{name}-{step}" in known:
                    found |= {(name, path): as_root("cat", str(folder / path)).stdout for path in paths}
        return found

    def killed_up(self, created: int, seconds: float, with_commands: bool) -> None:
        """An `up` that is killed some seconds after it has made so many resources."""
        output = self.checkout.folder.parent / "up.log"
        with output.open("w") as log:
            make = subprocess.Popen(
                ["make", "up"], cwd=self.checkout.folder, env=self.checkout.environ, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            ended = make.poll
            until(lambda: ended() is not None or output.read_text().count(" created (") >= created, LIMIT)
            with suppress(subprocess.TimeoutExpired):
                make.wait(seconds)
            assert make.poll() is None, f"it ended before it could be killed\n{output.read_text()}"
        finally:
            kill(make, with_commands)
            self.last = output.read_text()

    def works(self) -> None:
        """All workers are there and a job gives the right answer."""

        def answer() -> int | None:
            try:
                with daskstack.connect("dev") as client:
                    client.wait_for_workers(2, timeout=30)
                    return client.submit(sum, range(100), pure=False).result(timeout=30)
            except (OSError, ValueError, RuntimeError):
                return None  # it is still on its way back

        until(lambda: answer() == 4950, 240)

    def traces(self) -> list[str]:
        """What of the stack can be seen on this computer."""
        folder = self.data / "machines/dev"
        digest = subprocess.run(["sha256sum"], input=str(folder), capture_output=True, text=True).stdout
        words = (f"dask-{digest[:8]}", str(folder))
        found = as_root("ip", "-o", "link").stdout + as_root("ip", "netns").stdout + Path("/proc/mounts").read_text()
        # Others' groups come and go while it looks.
        groups = as_root("find", "/sys/fs/cgroup", "-maxdepth", "2", check=False)
        found += as_root("ps", "-eo", "args").stdout + groups.stdout
        found += "\n".join(str(path) for path in self.data.glob("machines/*"))
        return [line for line in found.splitlines() if any(word in line for word in words)]


def test_an_up_that_is_killed_at_any_moment_is_resumed_by_the_next(image: str, tmp_path: Path) -> None:
    """What a killed run had finished is not run again, and what it had made stays; destroy then leaves nothing."""
    chance = random.Random(KILLS)
    with stack_dev(tmp_path) as checkout:
        cluster = Cluster(checkout)
        for _ in range(max(1, KILLS // 4)):
            finished: dict[str, tuple[str, str]] = {}
            made: dict[tuple[str, str], str] = {}
            locked = False
            # As many at the beginning of a stack as at its end. The last kill lets up finish most of it.
            for moment, most in enumerate((0, 12, 24, 36)):
                more = max(1, most - len(cluster.resources())) if moment else 0
                cluster.killed_up(chance.randint((more + 1) // 2, more), chance.uniform(0.3, 2), moment % 2 == 0)
                assert ("Cleared the lock of a run that is dead" in cluster.last) == locked
                locked = cluster.locked()
                assert locked or moment == 0
                # Also what the commands do that were not killed with it does not disturb what had ended.
                assert finished.items() <= cluster.finished().items()
                assert made.items() <= cluster.made().items()
                finished, made = cluster.finished(), cluster.made()
                print(most, len(finished), len(made))
            assert len(finished) > 10 and made
            checkout.make("up")
            assert finished.items() <= cluster.finished().items()
            assert made.items() <= cluster.made().items()
            assert re.search(r"Resources:\n +\d+ unchanged\n", checkout.make("up"))
            cluster.works()
            checkout.make("destroy")
            until(lambda: cluster.traces() == [])


@pytest.fixture
def cluster(checkout: Checkout) -> Cluster:
    return Cluster(checkout)


def group(machine: Machine) -> Path:
    """The control group that holds all processes of a machine."""
    top = as_root("findmnt", "-rn", "-o", "TARGET", "-t", "cgroup2").stdout.splitlines()[0]
    return Path(top, f"{machine.bridge}-{machine.name}")


@contextmanager
def frozen(machine: Machine) -> Iterator[None]:
    """A machine all of whose processes stand still; its kernel still takes connections."""
    freezer = group(machine) / "cgroup.freeze"
    as_root("sh", "-c", f"echo 1 >{freezer}")
    try:
        yield
    finally:
        as_root("sh", "-c", f"echo 0 >{freezer}")


@contextmanager
def unplugged(machine: Machine) -> Iterator[None]:
    """A machine whose network link is down: what is sent to it gets no answer at all."""
    link = ("nsenter", "--target", str(machine.pid), "--net", "ip", "link", "set", "host0")
    as_root(*link, "down")
    try:
        yield
    finally:
        as_root(*link, "up")


def test_a_restart_of_this_computer_is_seen_by_preview_and_mended_by_up(
    cluster: Cluster, machines: Mapping[str, Machine], tmp_path: Path
) -> None:
    made = cluster.made()
    for machine in machines.values():
        kill_all = f"find {group(machine)} -name cgroup.procs -exec cat {{}} + | xargs -r kill -KILL"
        as_root("sh", "-c", kill_all, check=False)  # some end with the first
    bridge = machines["scheduler"].bridge
    as_root("ip", "link", "delete", bridge)
    as_root("ip", "netns", "delete", bridge)

    boot_id = tmp_path / "boot_id"
    boot_id.write_text("2f1c9d1e-0000-4000-8000-000000000000\n")
    restarted = (
        f"mount --make-private /proc && mount --bind {boot_id} /proc/sys/kernel/random/boot_id"
        " && make preview && echo previewed && make up"
    )
    wrapped = ["unshare", "--mount", "--propagation", "unchanged", "bash", "-c", restarted]
    variables = [f"{name}={value}" for name, value in cluster.checkout.environ.items()]
    done = run([*SUDO, "env", *variables, *wrapped], cwd=cluster.checkout.folder, seconds=LIMIT, together=True)
    for printed in done.stdout.split("previewed\n"):
        assert "this computer was restarted, which ended the stack's machines: up starts them again" in printed
    assert cluster.made() == made
    cluster.works()


@pytest.mark.parametrize("name", ["scheduler", "worker-1"])
def test_a_machine_that_reboots_comes_back_by_itself(
    cluster: Cluster, machines: Mapping[str, Machine], name: str
) -> None:
    machines[name].reboot()
    cluster.works()


def test_a_scheduler_that_is_killed_comes_back_with_its_workers(
    cluster: Cluster, machines: Mapping[str, Machine]
) -> None:
    show = "systemctl show -P MainPID dask-scheduler"
    before = machines["scheduler"].ssh(show).stdout
    machines["scheduler"].ssh("sudo systemctl kill --signal=KILL dask-scheduler")
    cluster.works()
    assert machines["scheduler"].ssh(show).stdout not in (before, "0\n")


def test_a_job_one_of_whose_workers_is_killed_gives_the_right_answer(
    cluster: Cluster, machines: Mapping[str, Machine]
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
    cluster.works()


def test_a_mount_whose_sshfs_dies_comes_back_by_itself(machines: Mapping[str, Machine]) -> None:
    pattern = "-f '^[^ ]*sshfs [^ ]* /srv/daskdata '"
    for machine in machines.values():
        before = machine.ssh(f"touch /srv/daskdata/seen && pgrep {pattern}").stdout
        machine.ssh(f"sudo pkill -KILL {pattern}")

        def is_back(machine: Machine = machine, before: str = before) -> bool:
            seen = machine.ssh(f"ls /srv/daskdata/seen && pgrep {pattern}", check=False)
            return seen.returncode == 0 and before not in seen.stdout

        until(is_back)


def test_many_machines_that_meet_one_at_once_all_get_in(machines: Mapping[str, Machine]) -> None:
    scheduler = machines["scheduler"]
    many = f"for each in $(seq 40); do sudo -u dask ssh {scheduler.address} true || echo refused & done; wait"
    assert machines["worker-1"].ssh(f"cd /; {many}").stdout == ""


def test_storage_that_is_away_gives_errors_and_then_comes_back(
    cluster: Cluster, machines: Mapping[str, Machine]
) -> None:
    """The scheduler's machine holds the data, so all of Dask waits with it."""
    worker = machines["worker-1"]
    worker.ssh("echo kept >/srv/daskdata/kept")
    with unplugged(machines["scheduler"]):
        for _ in range(2):  # once the link is known to be lost, too
            done = worker.ssh("timeout 60 touch /srv/daskdata/astray", check=False)
            assert done.returncode not in (0, 124), "expected an error, neither success nor a hanging access"
    until(lambda: worker.ssh("timeout 20 cat /srv/daskdata/kept", check=False).stdout == "kept\n")
    assert "astray" not in machines["scheduler"].ssh("ls /srv/daskdata").stdout
    cluster.works()


def test_a_full_disk_is_named_and_the_next_up_mends_what_it_left(
    cluster: Cluster, machines: Mapping[str, Machine]
) -> None:
    """That next `up` meets an sshd that restarts again and again, and a machine that stands still for 20 seconds."""
    lock, worker = cluster.checkout.folder / "environment.lock", machines["worker-1"]
    text = lock.read_text()
    lock.write_text(re.sub(r"^tzdata==.*\n(?: .*\n)*", "", text, flags=re.MULTILINE))
    worker.ssh("sudo mount -t tmpfs -o size=1M,mode=0755 tmpfs /opt/daskstack")
    try:
        printed = cluster.checkout.make("up", succeeds=False)
    finally:
        worker.ssh("sudo umount -l /opt/daskstack")
    assert re.search(r"the disk of /opt/daskstack on worker-1 is full \(\d MB left\): make room there", printed)

    over = threading.Event()

    def restart_sshd() -> None:
        while not over.wait(3):  # systemd gives up on five within ten seconds
            as_root("nsenter", "--target", str(worker.pid), "--all", "systemctl", "restart", "ssh")

    def stand_still() -> None:
        with frozen(machines["worker-2"]):
            over.wait(20)

    disturbers = [threading.Thread(target=restart_sshd), threading.Thread(target=stand_still)]
    for each in disturbers:
        each.start()
    try:
        assert "30 packages as locked on 3 processes" in cluster.checkout.make("up")
    finally:
        over.set()
        for each in disturbers:
            each.join()
        lock.write_text(text)
    cluster.works()
