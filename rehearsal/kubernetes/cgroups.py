"""The control groups of a cluster: NAME/node has its processes, CONTAINERS/ID each of its containers.

Its processes are found in the hierarchy of version 2, also where controllers are those of version 1; groups then have
the same names under each controller.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

from rehearsal.kubernetes import NodeError

# Where containerd puts containers; other clusters' are there, too.
CONTAINERS = "k8s.io"
# Of the processor's time, all containers would get as much as one process that has no group, and starve beside tests.
SHARES = 8 * 1024


def enter(name: str) -> None:
    """This process and all that it starts belong to the cluster, from now on."""
    for folder in _controllers():
        (folder / name).mkdir(exist_ok=True)
        _take_settings(folder / name)
        if (folder / "cpu.shares").exists():
            (folder / CONTAINERS).mkdir(exist_ok=True)
            (folder / CONTAINERS / "cpu.shares").write_text(str(SHARES))
    node = _unified() / name / "node"
    node.mkdir(parents=True, exist_ok=True)
    (node / "cgroup.procs").write_text("0")


def kill(name: str, seconds: float = 15) -> None:
    """Ends all of the cluster's processes; raises NodeError where some do not."""
    deadline = time.monotonic() + seconds
    while _is_populated(name):
        processes = _processes(name)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise NodeError(f"processes of {name} do not end after {seconds:.0f} s: {processes}")
        time.sleep(0.05)


def remove(name: str, containers: list[str]) -> None:
    """Removes the groups of a cluster without processes; `containers` are the ids of its containers."""
    for each in (name, *(f"{CONTAINERS}/{container}" for container in containers)):
        _remove_below(each)


def _remove_below(name: str) -> None:
    for folder in [*_controllers(), _unified()]:
        for path, _, _ in os.walk(folder / name, topdown=False):
            _remove(path)


def _remove(path: str, attempts: int = 100) -> None:
    """A group can be busy a moment longer than its processes live."""
    for attempt in range(attempts):
        try:
            return os.rmdir(path)
        except OSError:
            if attempt == attempts - 1:
                raise
            time.sleep(0.05)


def _is_populated(name: str) -> bool:
    """Also by processes that are about to end, which are not listed."""
    try:
        return "populated 1" in (_unified() / name / "cgroup.events").read_text()
    except FileNotFoundError:
        return False


def _processes(name: str) -> list[int]:
    found = []
    for path, _, _ in os.walk(_unified() / name):
        with contextlib.suppress(OSError):  # it was just removed
            found += Path(path, "cgroup.procs").read_text().split()
    return [int(each) for each in found]


def _unified() -> Path:
    return _mounted("cgroup2")[0]


def _controllers() -> list[Path]:
    return _mounted("cgroup")


def _mounted(kind: str) -> list[Path]:
    found = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    folders = [Path(target) for _, target, filesystem, *_ in found if filesystem == kind]
    if kind == "cgroup2" and not folders:
        raise NodeError("this computer has no control groups v2 (start it with systemd.unified_cgroup_hierarchy=1)")
    return folders


def _take_settings(folder: Path) -> None:
    """A new cpuset is empty, and nothing runs in it until it has processors and memory."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if (folder / file).exists():
            (folder / file).write_text((folder.parent / file).read_text())
