"""Starts and removes a cluster."""

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from daskstack.engine import PROJECT
from rehearsal.kubernetes import NodeError, cgroups, components, images, network, objects, pki, supervisor
from rehearsal.kubernetes.api import Api
from rehearsal.programs import kubernetes_programs

# A file that marks a cluster's folder, so that no other folder is mistaken for one.
MARK = ".kubernetes"


def up(
    directory: Path, *, python: str, locks: list[Path], seconds: float, small: bool = False, installed: bool = False
) -> dict[str, str]:
    """Start the cluster unless it runs, and wait at most `seconds` until it is ready.

    With `small`, each pod requests only `objects.LITTLE`, so that pods start even if this computer is small.
    With `installed`, there is an image with the packages of a release's pods.
    Raises NodeError if the cluster does not become ready, and InstallError if images or wheels cannot be created.
    """
    _check(directory)
    wheels = images.wheels(locks, python)
    layers = images.template(python, wheels if installed else None)
    with network.held(directory, seconds):
        (directory / MARK).touch()
        if not _is_running(directory) or (directory / "images").resolve() != layers:
            _prepare(directory, layers)
            _start(directory)
        _point(directory / "wheels", wheels)
        _wait(directory, seconds)
    node = network.addresses(directory)[1]
    if small:
        objects.make_small(Api(node, directory / "pki"))
    return {"kubeconfig": str(directory / "kubeconfig"), "context": pki.CONTEXT, "node": node}


def down(directory: Path) -> None:
    """Remove a cluster or its leftovers. Raises NodeError if the folder is not a cluster's."""
    if directory.exists() and any(directory.iterdir()) and not (directory / MARK).exists():
        raise NodeError(f"{directory} is not a cluster's folder; nothing was removed")
    cgroups.kill(network.name(directory))  # so that a waiting `up` gives up
    with network.held(directory) if directory.exists() else contextlib.nullcontext():
        _end(directory)
        network.down(directory)
        if directory.exists():
            shutil.rmtree(directory)


def _check(directory: Path) -> None:
    programs = [*map(shutil.which, ("etcd", "containerd", "runc", "nft", "unshare"))]
    if None in programs or not kubernetes_programs().exists() or not Path("/usr/lib/cni").exists():
        raise NodeError("programs are missing; install them with `python3 -m tools.install kubernetes`")
    if any(directory.iterdir()) and not (directory / MARK).exists():
        raise NodeError(f"{directory} contains other files; use a new or an empty folder")


def _prepare(directory: Path, layers: Path) -> None:
    _end(directory)
    network.up(directory)
    shutil.rmtree(directory / "log", ignore_errors=True)
    (directory / "log").mkdir()
    (directory / "state").write_text("supervisor")
    _point(directory / "images", layers)
    node = network.addresses(directory)[1]
    folder, new = directory / "pki", directory / "pki.new"
    if not folder.exists():
        shutil.rmtree(new, ignore_errors=True)
        pki.make(new, f"https://{node}:6443", [*components.NAMES, node])
        new.rename(folder)
    pki.private(directory / "kubeconfig", (folder / "admin.kubeconfig").read_bytes())
    os.chown(directory / "kubeconfig", directory.stat().st_uid, directory.stat().st_gid)
    components.write_settings(directory)


def _start(directory: Path) -> None:
    with (directory / "running").open("w") as lock, (directory / "log" / "supervisor.log").open("w") as log:
        network.locked(lock.fileno())
        # The supervisor must outlive this process without blocking callers, so it inherits only the lock.
        subprocess.Popen(
            supervisor.command(directory),
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
            preexec_fn=lambda: cgroups.enter(network.name(directory)),
        )


def _end(directory: Path, seconds: float = 15) -> None:
    name, deadline = network.name(directory), time.monotonic() + seconds
    cgroups.kill(name)
    while _is_running(directory):  # a supervisor that was just started is not in its group yet
        if time.monotonic() > deadline:
            raise NodeError(f"the cluster in {directory} is still running after {seconds:.0f} s")
        time.sleep(0.05)
        cgroups.kill(name)
    cgroups.remove(name, containers(directory))


def containers(directory: Path) -> list[str]:
    """The IDs of the cluster's containers, including pause containers."""
    known = directory / "containerd" / "io.containerd.grpc.v1.cri"
    return [path.name for kind in ("containers", "sandboxes") for path in known.glob(f"{kind}/*")]


def _is_running(directory: Path) -> bool:
    """Whether a supervisor runs; it holds a lock."""
    if not (directory / "running").exists():
        return False
    with (directory / "running").open() as lock:
        return not network.locked(lock.fileno())


def _wait(directory: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (state := (directory / "state").read_text()) != "ready":
        if not _is_running(directory):
            _fail(directory, state, "keeps stopping")
        if time.monotonic() > deadline:
            _fail(directory, state, f"is not ready after {seconds:.0f} s")
        time.sleep(0.1)
    address = network.addresses(directory)[1]
    while True:
        try:
            Api(address, directory / "pki").call("GET", "/readyz")
            return
        except OSError as error:
            if time.monotonic() > deadline:
                _fail(directory, "kube-apiserver", f"does not answer from this computer at {address} ({error})")
            time.sleep(0.1)


def _fail(directory: Path, component: str, what: str) -> None:
    log = directory / "log" / f"{component}.log"
    lines = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else ["(no log)"]
    raise NodeError("\n".join([f"{component} {what}. The last lines of its log ({log}):", *lines]))


def _point(link: Path, target: Path) -> None:
    """Set a symbolic link atomically."""
    new = link.with_name(f"{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)
