"""The node's network namespace, joined to this computer by a link with a small private network of its own."""

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

# Seen inside the node's namespace alone, so clusters may share them; no network that `choose` gives is among them.
PODS = "100.64.0.0/16"
SERVICES = "100.65.0.0/16"
KUBERNETES, DNS = "100.65.0.1", "100.65.0.10"
# The node's address for its own pods, the same in every cluster, so that an image can name it. To network policies it
# is one of the internet (RFC 5737), as a package index is.
INNER = "198.51.100.1"


def name(directory: Path) -> str:
    """Of a cluster's namespace, link and control group: 15 characters, the most that a link may have."""
    return f"dask-kube-{_hash(str(directory))[:5]}"


def addresses(directory: Path) -> tuple[str, str, list[str]]:
    """Of this computer, of the node, and those for Services of type LoadBalancer."""
    hosts = [str(each) for each in ipaddress.ip_network((directory / "network").read_text().strip()).hosts()]
    return hosts[0], hosts[1], hosts[99:]


def up(directory: Path) -> None:
    """Makes what is missing; keeps the network in DIRECTORY/network, so that addresses outlive a restart."""
    link, record = name(directory), directory / "network"
    # Two clusters, or a cluster and a stack's machines, must not choose the same network.
    # Who can open the file can hold its lock, so it is root's alone. local_machines/network.sh locks it too.
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
    """The network that the cluster had before, else a free one; raises NodeError where there is none."""
    record = directory / "network"
    if record.exists() and (network := record.read_text().strip()):
        if routes := _taken_by(network):
            raise NodeError(
                f"network {network} of the cluster in {directory} is now used by this computer itself: {routes};"
                " disconnect that (a VPN?), or take the cluster down and bring it up again"
            )
        return network
    for attempt in range(300):
        digits = bytes.fromhex(_hash(f"{directory} {attempt}"))
        network = (  # a VPN can take all of 10.0.0.0/8
            f"10.{digits[0]}.{digits[1]}.0/24",
            f"172.{16 + digits[0] % 16}.{digits[1]}.0/24",
            f"192.168.{digits[1]}.0/24",
        )[attempt % 3]
        if not _taken_by(network):
            return network
    raise NodeError("found no free private /24 network: each one tried meets a route in 'ip route show table all'")


def _taken_by(network: str) -> str:
    """Routes within it, and routes that cover it but are not the way to everywhere, or what VPNs set in its place."""
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
    """Holds the lock on a file or folder; raises NodeError where somebody else does for longer."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        deadline = time.monotonic() + seconds
        while not locked(descriptor):
            if time.monotonic() > deadline:
                raise NodeError(f"waited {seconds:.0f} s for another run that holds the lock {path}")
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def locked(descriptor: int) -> bool:
    """Takes a lock, unless somebody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
