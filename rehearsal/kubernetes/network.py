"""The node's network namespace, which is connected to this computer by a link with a small private network."""

import contextlib
import fcntl
import hashlib
import ipaddress
import os
import re
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

from rehearsal.kubernetes import NodeError

# Visible only in the node's namespace, so clusters can share them. They never overlap the networks of `choose`.
PODS = "100.64.0.0/16"
SERVICES = "100.65.0.0/16"
KUBERNETES, DNS = "100.65.0.1", "100.65.0.10"
# The node's address for its own pods. It is the same in every cluster, so that images can refer to it. Network policies
# treat it as an internet address (RFC 5737), like that of a package index.
INNER = "198.51.100.1"


def name(directory: Path) -> str:
    """The name of a cluster's namespace, link and control group. Links allow at most 15 characters."""
    return f"dask-kube-{_hash(str(directory))[:5]}"


def addresses(directory: Path) -> tuple[str, str, list[str]]:
    """The addresses of this computer, of the node, and for Services of type LoadBalancer."""
    hosts = [str(each) for each in ipaddress.ip_network((directory / "network").read_text().strip()).hosts()]
    return hosts[0], hosts[1], hosts[99:]


def up(directory: Path) -> None:
    """Create what is missing. DIRECTORY/network stores the network, so that addresses survive a restart."""
    link, record = name(directory), directory / "network"
    # Two clusters, or a cluster and a stack's machines, must not choose the same network.
    # Any user who can open a file can lock it, so only root may open this one. local_machines/network.sh locks it, too.
    lock = Path("/run/daskstack-network.lock")
    lock.touch(mode=0o600)
    lock.chmod(0o600)
    with held(lock):
        if _ip("link", "show", "dev", link, "up", check=False):
            return
        _remove_link(link)
        record.write_text(choose(directory))
        ours, nodes, _ = addresses(directory)
        if not _ip("-n", link, "link", "show", "lo", check=False):
            _delete_namespace(link)
            _ip("netns", "add", link)
        _ip("-n", link, "link", "set", "lo", "up")
        _ip("link", "add", link, "type", "veth", "peer", "name", "host", "netns", link)
        _ip("-n", link, "address", "add", f"{nodes}/24", "dev", "host")
        _ip("-n", link, "link", "set", "host", "up")
        _ip("address", "add", f"{ours}/24", "dev", link)
        _ip("link", "set", link, "up")


def down(directory: Path) -> None:
    _remove_link(name(directory))
    _delete_namespace(name(directory))


def choose(directory: Path) -> str:
    """The cluster's previous network, or else a free one. Raises NodeError if there is none."""
    record = directory / "network"
    if record.exists() and (network := record.read_text().strip()):
        if routes := _taken_by(network):
            raise NodeError(
                f"this computer now uses network {network} of the cluster in {directory} for something else: {routes};"
                " disconnect it (a VPN?), or take the cluster down and bring it up again"
            )
        return network
    for attempt in range(300):
        digits = bytes.fromhex(_hash(f"{directory} {attempt}"))
        network = (  # a VPN can occupy all of 10.0.0.0/8
            f"10.{digits[0]}.{digits[1]}.0/24",
            f"172.{16 + digits[0] % 16}.{digits[1]}.0/24",
            f"192.168.{digits[1]}.0/24",
        )[attempt % 3]
        if not _taken_by(network):
            return network
    raise NodeError("found no free private /24 network: every candidate overlaps a route in 'ip route show table all'")


def _taken_by(network: str) -> str:
    """Routes within the network and routes that cover it, except default routes and what VPNs use instead."""
    found = [_ip("-4", "route", "show", "table", "all", way, network) for way in ("root", "match")]
    lines = "\n".join(found).splitlines()
    return "; ".join(line for line in lines if not re.match(r"([a-z]+ )?(default|[0-9.]+/[1-7]) ", line))


def _remove_link(link: str) -> None:
    if Path("/sys/class/net", link).exists():
        _ip("link", "delete", link)


def _delete_namespace(name: str) -> None:
    if Path("/run/netns", name).exists():
        _ip("netns", "delete", name)


def _ip(*words: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if check and done.returncode:
        raise NodeError(f"'ip {' '.join(words)}' failed: {done.stderr.strip()}")
    return done.stdout.strip()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def held(path: Path, seconds: float = 60) -> Generator[None]:
    """Hold the lock on a file or folder. Raises NodeError on a timeout."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        deadline = time.monotonic() + seconds
        while not locked(descriptor):
            if time.monotonic() > deadline:
                raise NodeError(f"timed out after {seconds:.0f} s waiting for another run that holds the lock {path}")
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def locked(descriptor: int) -> bool:
    """Try to take a lock. Returns whether it succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
