"""An `up` that is killed at any moment, and the next one.

KILLS=20 kills `make up` at more moments.
"""

import os
import random
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from rehearsal.machines import as_root, until
from tests.checkout import LIMIT, Checkout, made_once, stack_dev
from tests.work import wait_until_working

pytestmark = pytest.mark.timeout(1800)
KILLS = int(os.environ.get("KILLS", "4"))


def processes() -> dict[int, tuple[int, int]]:
    """All processes with their parents and sessions."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,sid="], capture_output=True, text=True, check=True).stdout
    return {pid: (parent, session) for pid, parent, session in (map(int, line.split()) for line in listed.splitlines())}


def kill(make: subprocess.Popen, with_commands: bool) -> None:
    """Kills make, the engine and its plugins with SIGKILL, with or without the local commands that they run."""
    stopped: set[int] = set()
    while True:
        found = processes()
        family = {make.pid}
        while more := {pid for pid, (parent, _) in found.items() if parent in family} - family:
            family |= more
        doomed = {pid for pid in family & found.keys() if with_commands or found[pid][1] == make.pid}
        if doomed <= stopped:
            break
        # Stop them all first, so that none can start another process during the kill.
        as_root("kill", "-STOP", *map(str, doomed - stopped), check=False)
        stopped |= doomed
    as_root("kill", "-KILL", *map(str, stopped), check=False)
    make.wait()


class Cluster:
    """A user's checkout, its stack of local machines, and observations of both."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout
        self.data = Path(checkout.environ["XDG_DATA_HOME"], "daskstack")
        self.last = ""

    def locked(self) -> bool:
        return any(self.data.glob("state/.pulumi/locks/organization/dask/dev/*.json"))

    def resources(self) -> dict[str, dict]:
        """The resources in the state; empty if `up` was killed before it wrote one."""
        if not list(self.data.glob("state/.pulumi/stacks/dask/dev.json*")):
            return {}
        return self.checkout.resources()

    def finished(self) -> dict[str, tuple[str, str]]:
        """The first start and the last run of each completed Command."""
        known = self.resources().items()
        return {name: (each["created"], each["modified"]) for name, each in known if ":Command" in each["type"]}

    def made(self) -> dict[tuple[str, str], str]:
        return made_once(self.checkout) if self.resources() else {}

    def killed_up(self, created: int, seconds: float, with_commands: bool) -> None:
        """Runs `up` and kills it some seconds after it created this number of resources."""
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

    def traces(self) -> list[str]:
        """Traces of the stack on this computer."""
        folder = self.data / "machines/dev"
        digest = subprocess.run(["sha256sum"], input=str(folder), capture_output=True, text=True).stdout
        words = (f"dask-{digest[:8]}", str(folder))
        found = as_root("ip", "-o", "link").stdout + as_root("ip", "netns").stdout + Path("/proc/mounts").read_text()
        # Other processes' cgroups can disappear during the search.
        groups = as_root("find", "/sys/fs/cgroup", "-maxdepth", "2", check=False)
        found += as_root("ps", "-eo", "args").stdout + groups.stdout
        found += "\n".join(str(path) for path in self.data.glob("machines/*"))
        return [line for line in found.splitlines() if any(word in line for word in words)]


def test_the_next_up_resumes_a_killed_one_and_destroy_leaves_nothing(image: str, tmp_path: Path) -> None:
    """Completed commands do not run again, and the files that they created stay."""
    chance = random.Random(KILLS)
    with stack_dev(tmp_path) as checkout:
        cluster = Cluster(checkout)
        for _ in range(max(1, KILLS // 4)):
            finished: dict[str, tuple[str, str]] = {}
            made: dict[tuple[str, str], str] = {}
            locked = False
            # Spread the kills from the beginning to the end. The last one lets `up` finish most of the stack.
            for moment, most in enumerate((0, 12, 24, 36)):
                more = max(1, most - len(cluster.resources())) if moment else 0
                cluster.killed_up(chance.randint((more + 1) // 2, more), chance.uniform(0.3, 2), moment % 2 == 0)
                assert ("Cleared the lock of a killed run" in cluster.last) == locked
                locked = cluster.locked()
                assert locked or moment == 0
                # Commands that survived the kill do not disturb completed ones.
                assert finished.items() <= cluster.finished().items()
                assert made.items() <= cluster.made().items()
                finished, made = cluster.finished(), cluster.made()
                print(most, len(finished), len(made))
            assert len(finished) > 10 and made
            checkout.make("up")
            assert finished.items() <= cluster.finished().items()
            assert made.items() <= cluster.made().items()
            assert re.search(r"Resources:\n +\d+ unchanged\n", checkout.make("up"))
            wait_until_working()
            running = [psutil.Process(machine.pid) for machine in checkout.machines().values()]
            checkout.make("destroy")
            until(lambda: cluster.traces() == [])
            assert [process for process in running if process.is_running()] == []
            # The engine's own file with the folder's format belongs to no stack.
            files = [path for path in cluster.data.rglob("*") if path.is_file()]
            assert [path for path in files if not path.name.startswith("meta.yaml")] == []
