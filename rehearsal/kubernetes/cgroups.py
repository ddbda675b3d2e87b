"""The control groups of a cluster: NAME/node contains its processes, CONTAINERS/ID one of its containers.

The cgroup v2 hierarchy tracks processes even if controllers use v1. Groups then have the same names under each
controller.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

from rehearsal.kubernetes import NodeError

# containerd's group for containers, which all clusters share.
CONTAINERS = "k8s.io"
# By default, all containers together would get as much CPU time as one process without a group, and starve.
SHARES = 8 * 1024


def enter(name: str) -> None:
    """Move this process and its future children to the cluster's group."""
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
    """Kill all processes of the cluster. Raises NodeError if some remain."""
    deadline = time.monotonic() + seconds
    while _is_populated(name):
        processes = _processes(name)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise NodeError(f"processes of {name} are still running after {seconds:.0f} s: {processes}")
        time.sleep(0.05)


def remove(name: str, containers: list[str]) -> None:
    """Remove a cluster's empty groups. `containers` are the IDs of its containers."""
    for each in (name, *(f"{CONTAINERS}/{container}" for container in containers)):
        _remove_below(each)


def _remove_below(name: str) -> None:
    for folder in [*_controllers(), _unified()]:
        for path, _, _ in os.walk(folder / name, topdown=False):
            _remove(path)


def _remove(path: str, attempts: int = 100) -> None:
    """Remove a group, with retries: it can be busy for a moment after its last process has ended."""
    for attempt in range(attempts):
        try:
            return os.rmdir(path)
        except OSError:
            if attempt == attempts - 1:
                raise
            time.sleep(0.05)


def _is_populated(name: str) -> bool:
    """Whether the group has processes, including ending ones that cgroup.procs does not list."""
    try:
        return "populated 1" in (_unified() / name / "cgroup.events").read_text()
    except FileNotFoundError:
        return False


def _processes(name: str) -> list[int]:
    found = []
    for path, _, _ in os.walk(_unified() / name):
        with contextlib.suppress(OSError):  # the group was just removed
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
        raise NodeError("cgroup v2 is not mounted on this computer (boot with systemd.unified_cgroup_hierarchy=1)")
    return folders


def _take_settings(folder: Path) -> None:
    """Fill a new cpuset, because processes cannot run in it without CPUs and memory nodes."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if (folder / file).exists():
            (folder / file).write_text((folder.parent / file).read_text())
