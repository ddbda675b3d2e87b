"""Machines of the rehearsed Compute Engine: real machines behind a network that enforces its firewall rules."""

import base64
import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from daskstack.engine import PROJECT
from on_this_computer.send_environment import collect
from rehearsal.compute import bridge
from rehearsal.environment import environment as rehearsal_environment
from rehearsal.machines import Machine, as_root, until
from tests.engine.support import PROGRAMS, Cloud, Project, descendants, processes, wait_for
from tests.outside import Stranger
from tests.rehearsals import Shared, end_processes

CALLER, STRANGER = "203.0.113.7", "198.51.100.1"
INSTANCES = "projects/my-project/zones/us-central1-a/instances"
PROGRAM = """
network = make("compute/network:Network", "network", name="net", autoCreateSubnetworks=False)
subnetwork = make("compute/subnetwork:Subnetwork", "sub", name="sub", network=network.id, ipCidrRange="10.9.0.0/24")
account = make("serviceaccount/account:Account", "account", accountId="dask-machines")
door = make("compute/address:Address", "door", name="door")
disk = make("compute/disk:Disk", "disk", name="data", size=%(size)s)
make("compute/firewall:Firewall", "door", name="door", network=network.id, sourceRanges=%(sources)s,
    targetTags=["door"], allows=[{"protocol": "tcp", "ports": ["22"]}])
if %(inside)s:
    make("compute/firewall:Firewall", "inside", name="inside", network=network.id,
        sourceServiceAccounts=[account.email], targetServiceAccounts=[account.email], allows=%(inside)s)
for name in %(names)s:
    address = make("compute/address:Address", name, name=name, addressType="INTERNAL", subnetwork=subnetwork.id)
    interface = {"subnetwork": subnetwork.id, "networkIp": address.address}
    head = name == "head"
    make("compute/instance:Instance", name, name=name, machineType="e2-small",
        bootDisk={"initializeParams": {"image": "debian-cloud/debian-12"}},
        networkInterfaces=[interface | ({"accessConfigs": [{"natIp": door.address}]} if head else {})],
        metadata={"ssh-keys": %(keys)s, "enable-oslogin": "FALSE"}, tags=["door"] if head else %(tags)s,
        serviceAccount={"email": account.email, "scopes": ["cloud-platform"]}, desiredStatus="RUNNING",
        allowStoppingForUpdate=True, attachedDisks=[{"source": disk.id, "deviceName": "data"}] if head else [],
        scheduling={"provisioningModel": "SPOT", "preemptible": True, "automaticRestart": False,
            "instanceTerminationAction": %(action)s})
"""
INSIDE = [{"protocol": "tcp", "ports": ["22", "8000-8010"]}, {"protocol": "icmp"}]


class Rehearsal(Cloud):
    """A stack with the machines `head` and `worker-1` on the rehearsed Google Cloud."""

    def __init__(self, project: Project, folder: Path, key: Path, packages: Path) -> None:
        super().__init__(project, folder)
        self.key, self.packages = key, packages
        self.brought: str | None = None
        self.settings: dict[str, Any] = {
            "names": ["head", "worker-1"], "sources": [f"{CALLER}/32"], "inside": INSIDE, "action": "STOP",
            "tags": [], "size": 1, "keys": f"admin:{key.with_suffix('.pub').read_text()}",
        }  # fmt: skip

    def text(self, **changes: Any) -> str:
        return PROGRAM % {name: repr(value) for name, value in (self.settings | changes).items()}

    def bring(self, **changes: Any) -> str:
        printed = self.up(self.text(**changes))
        self.brought = self.text(**changes)
        return printed

    def brings(self, **changes: Any) -> None:
        """Brings the stack into this state, unless the last change already did."""
        if self.brought != self.text(**changes):
            self.bring(**changes)

    def up(self, text: str, **config: Any) -> str:
        self.brought = None
        return super().up(text, **config)

    def fails(self, text: str, **config: Any) -> str:
        self.brought = None
        return super().fails(text, **config)

    def refresh(self) -> str:
        self.brought = None
        return self.project.run("refresh", "--yes", "--skip-preview")

    def destroy(self) -> str:
        self.brought = None
        return super().destroy()

    def gcloud(self, word: str, *names: str, status: int = 0) -> str:
        """Changes machines behind the stack's back."""
        self.brought = None
        return self.run("gcloud", "compute", "instances", word, *names, "--zone", "us-central1-a", status=status)

    def compute(self, *words: str) -> str:
        command = [sys.executable, "-m", "rehearsal.compute", *words]
        done = subprocess.run(command, cwd=PROJECT, env=self.project.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def interface(self, name: str) -> dict[str, Any]:
        [interface] = self.record(f"{INSTANCES}/{name}")["outputs"]["networkInterfaces"]
        return interface

    def inner(self, name: str) -> str:
        """The machine's address in the network."""
        return self.interface(name)["networkIp"]

    def machine(self, name: str) -> Machine:
        """The machine at its external address, or at its internal one if it has no other."""
        address = self.interface(name).get("accessConfigs", [{"natIp": self.inner(name)}])[0]["natIp"]
        folder = self.folder / "machines" / name
        host_key = " ".join((folder / "upper/etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2])
        return Machine(name, address, (folder / "id").read_text().strip(), host_key, self.bridge, folder, self.key)

    @property
    def bridge(self) -> str:
        return bridge(self.folder / "machines")

    def up_and_answering(self, **changes: Any) -> Machine:
        """Brings the stack into this state and waits until `head`, which has the external address, accepts SSH."""
        self.brings(**changes)
        head = self.machine("head")
        until(lambda: head.ssh("true", check=False).returncode == 0)
        return head

    def status(self, name: str) -> str:
        return self.compute("status", f"{INSTANCES}/{name}").strip()

    def traces(self) -> list[str]:
        """Traces of the rehearsal on this computer other than its records."""
        words = (self.bridge, str(self.folder))
        found = Path("/proc/mounts").read_text().splitlines()
        for command in (
            "ip -o link", "ip route", "ip netns", "losetup --list", "find /sys/fs/cgroup -maxdepth 2 -type d",
        ):  # fmt: skip
            # Entries of other programs can disappear during the listing.
            found += as_root(*command.split(), check=False).stdout.splitlines()
        found += [line for line in as_root("ps", "-eo", "args").stdout.splitlines() if "ps -eo" not in line]
        found += [str(self.folder / "machines")] if (self.folder / "machines").exists() else []
        return [line for line in found if any(word in line for word in words)]


@contextlib.contextmanager
def rehearsing(tmp_path_factory: pytest.TempPathFactory, image: str, key: Path) -> Iterator[Rehearsal]:
    """A rehearsal that is removed completely at the end, even if operations are still running."""
    packages = collect(PROJECT / "environment.lock", "3.11", "wheelhouse") / "wheels"
    folder = Path(tempfile.mkdtemp(prefix="daskstack-"))
    environment = rehearsal_environment(tmp_path_factory.mktemp("state"))
    environment |= {
        "DASKSTACK_REHEARSAL": str(folder),
        "DASKSTACK_REHEARSAL_CALLER": CALLER,
        "DASKSTACK_REHEARSAL_MACHINES": json.dumps(
            {
                "command": [sys.executable, "-m", "rehearsal.compute"],
                "cwd": str(PROJECT),
                "image": image,
                "packages": str(packages),
            }
        ),
        "GOOGLE_OAUTH_ACCESS_TOKEN": "none",
        "PATH": f"{PROGRAMS}:{environment['PATH']}",
        "PULUMI_STACK": "test",
    }
    project = Project(tmp_path_factory.mktemp("program"), environment)
    made = Rehearsal(project, folder, key, packages)
    try:
        project.write("")
        project.run("stack", "init", "test", "--no-select")
        yield made
    finally:
        end_processes(folder)
        made.compute("sweep")
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, image: str, key: Path) -> Iterator[Shared[Rehearsal]]:
    with contextlib.closing(Shared(lambda: rehearsing(tmp_path_factory, image, key))) as shared:
        yield shared


@pytest.fixture
def rehearsal(shared: Shared[Rehearsal], request: pytest.FixtureRequest) -> Iterator[Rehearsal]:
    """The shared rehearsal, which each test brings into the state that it needs."""
    yield from shared.lend(request)


def reach(address: str, port: int) -> str:
    return f"timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/{port}'"


def test_a_new_machine_runs_and_accepts_ssh_before_its_startup_ends(rehearsal):
    head = rehearsal.up_and_answering()
    until(lambda: head.ssh("systemctl is-system-running", check=False).stdout == "running\n")
    moments = ("ActiveEnterTimestampMonotonic ssh", "FinishTimestampMonotonic")
    answers, done = (int(head.ssh(f"systemctl show --value -p {each}").stdout) for each in moments)
    assert done - answers >= 5_000_000, "microseconds"
    assert head.ssh("hostname").stdout == "head\n"
    # As on Google Cloud: an address without neighbors.
    assert head.ssh("ip -4 -brief address show host0").stdout.split()[2] == f"{rehearsal.inner('head')}/32"
    assert head.ssh("ip -4 route").stdout.startswith("default via 10.9.0.1 ")
    [first, second] = rehearsal.list("compute instances")
    assert (first["status"], second["status"]) == ("RUNNING", "RUNNING")
    assert "ssh.service" in rehearsal.run(
        "gcloud", *("compute", "instances", "get-serial-port-output", "head", "--zone", "us-central1-a")
    )
    assert "created" not in rehearsal.bring()


def test_ssh_is_open_only_to_the_callers_network_and_workers_are_closed_to_the_outside(rehearsal):
    head = rehearsal.up_and_answering()
    stranger = Stranger(rehearsal.bridge, STRANGER)
    try:
        assert not stranger.connects(head.address, 22)
        for port in (22, 8000):
            assert not stranger.connects(rehearsal.inner("head"), port)
            assert not stranger.connects(rehearsal.inner("worker-1"), port)
        until(lambda: head.ssh(reach(rehearsal.inner("worker-1"), 22), check=False).returncode == 0)
        head.ssh("sudo -n systemd-run --unit listener python3 -m http.server 8001")
        until(lambda: head.ssh(reach(rehearsal.inner("head"), 8001), check=False).returncode == 0)
        assert not stranger.connects(head.address, 8001)

        # A rule that is too wide or missing shows up here.
        rehearsal.bring(sources=["0.0.0.0/0"])
        until(lambda: stranger.connects(head.address, 22))
        assert not stranger.connects(head.address, 8001)
        assert not stranger.connects(rehearsal.inner("head"), 22), "internal addresses are unreachable from outside"
        assert not stranger.connects(rehearsal.inner("worker-1"), 22)
    finally:
        stranger.remove()
    rehearsal.bring(sources=[f"{STRANGER}/32"])
    assert "timed out" in head.ssh("true", check=False).stderr


def test_machines_reach_each_other_only_where_a_rule_allows_it(rehearsal):
    head = rehearsal.up_and_answering()
    worker = rehearsal.machine("worker-1")

    def attempt(port: int) -> int:
        return head.ssh(reach(worker.address, port), check=False).returncode

    until(lambda: attempt(22) == 0)
    until(lambda: attempt(8005) == 1)  # admitted by the network, and rejected by the machine itself
    assert attempt(8011) == 124, "dropped on the way"
    rehearsal.bring(inside=[{"protocol": "icmp"}])
    assert attempt(22) == 124
    rehearsal.bring(inside=[])
    assert attempt(22) == 124
    # Not even if both pretend to be neighbors, and also if the kernel does not forward bridged packets.
    bridged = "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables"
    as_root("nsenter", f"--net=/run/netns/{rehearsal.bridge}", "sh", "-c", bridged, check=False)
    for one, other in ((head, "worker-1"), (worker, "head")):
        route = ("ip", "route", "add", f"{rehearsal.inner(other)}/32", "dev", "host0")
        as_root("nsenter", "--target", str(one.pid), "--net", *route)
    assert attempt(22) != 0
    for one, other in ((head, "worker-1"), (worker, "head")):
        route = ("ip", "route", "delete", f"{rehearsal.inner(other)}/32", "dev", "host0")
        as_root("nsenter", "--target", str(one.pid), "--net", *route)
    rehearsal.bring()
    until(lambda: attempt(22) == 0)


def first_contact(rehearsal: Rehearsal, asked: str, path: str) -> subprocess.CompletedProcess[str]:
    """The output of the first contact with `head` when Google's API is asked for the keys of machine `asked`."""
    head = rehearsal.machine("head")
    connection = {"host": head.address, "port": 22, "user": "admin", "private_key": rehearsal.key.read_text()}
    keys = f"gcloud compute instances get-guest-attributes {asked} --query-path=hostkeys/ --zone us-central1-a"
    told = {"NAME": "head", "CONNECTION": json.dumps(connection), "WAIT": "120", "CONSOLE": "", "TUNNEL": ""}
    command = [sys.executable, "-m", "on_this_computer.wait_for_boot"]
    environ = rehearsal.project.environment | told | {"HOST_KEYS": keys, "PATH": path}
    return subprocess.run(command, cwd=PROJECT, env=environ, capture_output=True, text=True, timeout=300)


def test_a_host_key_unknown_to_googles_api_is_rejected_on_first_contact(rehearsal):
    head = rehearsal.up_and_answering()
    path = rehearsal.project.environment["PATH"]
    done = first_contact(rehearsal, "head", path)
    assert (done.returncode, done.stdout) == (0, head.host_key) and "not compared" not in done.stderr, done.stderr
    done = first_contact(rehearsal, "worker-1", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "another machine or program answered in its place" in done.stderr


def test_without_gcloud_the_first_host_key_is_accepted_and_up_says_so(rehearsal, tmp_path):
    head = rehearsal.up_and_answering()
    for program in ("ssh", "ssh-keyscan"):
        (tmp_path / program).symlink_to(shutil.which(program))
    done = first_contact(rehearsal, "head", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, head.host_key)
    assert "was not compared with Google's API (gcloud is not installed)" in done.stderr


def test_stopping_and_starting_keeps_address_files_and_host_key(rehearsal):
    head = rehearsal.up_and_answering()
    head.ssh("echo kept > ~/file")
    number = rehearsal.record(f"{INSTANCES}/head")["outputs"]["instanceId"]
    rehearsal.gcloud("stop", "head", "worker-1")
    assert [each["status"] for each in rehearsal.list("compute instances")] == ["TERMINATED", "TERMINATED"]
    rehearsal.gcloud("start", "worker-1", "head")
    assert rehearsal.machine("head") == head
    until(lambda: head.ssh("cat ~/file", check=False).stdout == "kept\n")
    until(lambda: head.ssh(reach(rehearsal.inner("worker-1"), 22), check=False).returncode == 0)
    assert rehearsal.record(f"{INSTANCES}/head")["outputs"]["instanceId"] == number
    assert "nosuch" in rehearsal.gcloud("stop", "nosuch", status=1)


def test_refresh_detects_stopped_and_deleted_machines_and_up_restores_them(rehearsal):
    head = rehearsal.up_and_answering()
    head.ssh("sudo -n systemctl poweroff", check=False)
    until(lambda: rehearsal.status("head") == "TERMINATED")
    rehearsal.gcloud("simulate-maintenance-event", "worker-1")
    assert rehearsal.status("worker-1") == "TERMINATED"
    assert "2 updated" in rehearsal.refresh()
    assert "2 updated" in rehearsal.bring(action="DELETE")
    assert [rehearsal.status(name) for name in ("head", "worker-1")] == ["RUNNING", "RUNNING"]
    # This is its termination action now.
    number = rehearsal.record(f"{INSTANCES}/worker-1")["outputs"]["instanceId"]
    rehearsal.gcloud("simulate-maintenance-event", "worker-1")
    assert [each["name"] for each in rehearsal.list("compute instances")] == ["head"]
    assert not (rehearsal.folder / "machines" / "worker-1").exists()
    printed = rehearsal.refresh()
    assert "1 deleted" in printed and "updated" not in printed
    assert "1 created" in rehearsal.bring(action="DELETE")
    assert rehearsal.record(f"{INSTANCES}/worker-1")["outputs"]["instanceId"] != number


def test_a_preempted_machine_is_powered_off_after_thirty_seconds_at_the_latest(rehearsal):
    head = rehearsal.up_and_answering()
    head.ssh("cat >/var/tmp/slow", stdin="while sleep 1; do echo second >>/var/tmp/seconds; done")
    endless = "--property TimeoutStopSec=infinity --property 'ExecStop=/bin/bash /var/tmp/slow'"
    head.run(f"rm -f /var/tmp/seconds; systemd-run {endless} --unit slow sleep infinity")
    started = time.monotonic()
    rehearsal.gcloud("simulate-maintenance-event", "head")
    assert time.monotonic() - started >= 29
    assert rehearsal.status("head") == "TERMINATED"
    rehearsal.gcloud("start", "head")
    until(lambda: head.ssh("true", check=False).returncode == 0)
    # The machine's own clock, so that the load of this computer does not count.
    assert head.ssh("cat /var/tmp/seconds").stdout.count("second") < 60


def test_data_on_a_disk_survives_its_machine_until_the_disk_is_deleted(rehearsal):
    device, mount = "/dev/disk/by-id/google-data", "sudo -n mount /dev/disk/by-id/google-data /mnt"
    head = rehearsal.up_and_answering()
    head.ssh(f"sudo -n mkfs.ext4 -q {device} && {mount} && echo kept | sudo -n tee /mnt/file")
    assert head.ssh(f"lsblk --bytes --noheadings --output SIZE {device}").stdout.strip() == str(2**30)
    rehearsal.bring(size=2)
    assert head.ssh(f"lsblk --bytes --noheadings --output SIZE {device}").stdout.strip() == str(2**31)
    rehearsal.bring(size=2, names=["worker-1"])
    head = rehearsal.up_and_answering(size=2)
    assert head.ssh(f"{mount} && cat /mnt/file").stdout == "kept\n"
    file = rehearsal.folder / "gcp/projects/my-project/zones/us-central1-a/disks/data.img"
    assert file.stat().st_blocks * 512 < 2**28, "as large as what is in it"
    rehearsal.destroy()
    assert not file.exists()


@pytest.mark.parametrize("trace", ["machines", "machines/*/id", "machines/*/console.log"])
def test_the_next_up_recovers_from_a_killed_plugin(rehearsal, trace):
    def killed() -> bool:
        """Whether the plugin was still running when it was killed."""
        rehearsal.destroy()
        rehearsal.project.write(rehearsal.program(rehearsal.text()))
        with rehearsal.project.started("up", "--yes", "--skip-preview") as pulumi:
            wait_for("the first machine", lambda: [*rehearsal.folder.glob(trace)], seconds=120)
            plugins = descendants(pulumi.pid) & processes("resource_gcp.py")
            for pid in plugins.union(*map(descendants, plugins)):
                with contextlib.suppress(psutil.Error):
                    psutil.Process(pid).kill()
            pulumi.communicate()
            return pulumi.returncode != 0

    until(killed, 300)
    rehearsal.up_and_answering()
    assert rehearsal.status("worker-1") == "RUNNING"
    rehearsal.destroy()
    until(lambda: rehearsal.traces() == [])


def test_machines_install_locked_packages_from_the_index_at_their_gateway(rehearsal):
    head = rehearsal.up_and_answering()
    uv = next(rehearsal.packages.parent.glob("uv-*.whl"))
    head.ssh(f"cat >{uv.name}", stdin=base64.b64encode(uv.read_bytes()).decode())
    head.ssh("cat >environment.lock", stdin=(PROJECT / "environment.lock").read_text())
    install = """
        base64 -d "$UV" >uv.zip
        python3 -m zipfile -e uv.zip uv && chmod +x uv/uv-*.data/scripts/uv
        uv() { uv/uv-*.data/scripts/uv "$@"; }
        uv venv -q environment
        uv pip sync -q --require-hashes --python environment/bin/python environment.lock
        environment/bin/python -c 'import distributed'
    """
    head.run(f"set -e; cd ~admin{install}", {"UV": uv.name})
    stranger = Stranger(rehearsal.bridge, STRANGER)
    try:
        assert not stranger.connects("10.9.0.1", 80)
    finally:
        stranger.remove()


def test_an_iap_tunnel_reaches_a_machine_only_if_a_rule_admits_its_range(rehearsal):
    # The worker does not have the tag that opens SSH.
    rehearsal.brings(sources=["35.235.240.0/20"])
    with tunnel(rehearsal) as (process, answer):
        assert answer() == b""
        assert "does a firewall rule allow 35.235.240.0/20?" in process.stderr.readline()
        rehearsal.bring(sources=["35.235.240.0/20"], tags=["door"])
        until(lambda: answer() == b"SSH-")


@contextlib.contextmanager
def tunnel(rehearsal: Rehearsal) -> Iterator[tuple[subprocess.Popen[str], Callable[[], bytes]]]:
    """A tunnel to the SSH server of worker-1, and a function that reads the server's greeting."""
    command = ["gcloud", "compute", "start-iap-tunnel", "worker-1", "22", "--local-host-port=localhost:0"]
    environ = rehearsal.project.environment
    process = subprocess.Popen([*command, "--zone=us-central1-a"], env=environ, stderr=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r"\d+", process.stderr.readline())[0])

        def answer() -> bytes:
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), 60) as connection:
                return connection.recv(4)
            return b""

        yield process, answer
    finally:
        process.kill()
        process.communicate()


def test_sweep_removes_everything_a_killed_run_left_and_nothing_of_other_rehearsals(
    rehearsal, tmp_path_factory, image, key
):
    class Killed(Exception):
        pass

    head = rehearsal.up_and_answering()
    with pytest.raises(Killed), rehearsing(tmp_path_factory, image, key) as other:
        there = other.up_and_answering(names=["head"])
        assert (there.host_key, there.address) != (head.host_key, head.address)
        until(lambda: head.ssh(reach(rehearsal.inner("worker-1"), 22), check=False).returncode == 0)
        other.project.write(other.program(other.text()))
        command = ["pulumi", "up", "--yes", "--skip-preview"]
        up = subprocess.Popen(command, cwd=other.project.folder, env=other.project.environment)
        wait_for("the second machine", (other.folder / "machines" / "worker-1").exists, seconds=120)
        assert len(other.traces()) > 4
        raise Killed
    up.wait()
    until(lambda: other.traces() == [])
    assert head.ssh("hostname").stdout == "head\n"


def test_arguments_that_a_rehearsed_machine_would_ignore_are_rejected_by_name(rehearsal):
    report = rehearsal.fails(rehearsal.text(keys="root:ssh-ed25519 AAAA"))
    assert "does not support the user root on a machine (only admin)" in report


def test_deleting_all_machines_leaves_nothing_and_closes_tunnels(rehearsal):
    rehearsal.brings()
    assert len(rehearsal.traces()) > 4
    living = as_root("ip", "netns", "pids", rehearsal.bridge).stdout.split()
    assert living != []
    with tunnel(rehearsal) as (process, _):
        rehearsal.destroy()
        process.wait(60)
    assert rehearsal.files == set()
    until(lambda: rehearsal.traces() == [])
    until(lambda: [pid for pid in living if Path("/proc", pid).exists()] == [])
    assert [*(rehearsal.folder / "gcp").rglob("*.img")] == []
