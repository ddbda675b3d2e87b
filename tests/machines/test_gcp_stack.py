"""The shipped stack of machines in Google Cloud, rehearsed in a network that exists already: who gets in, and what
becomes of its work. With a network of its own it is rehearsed in test_rehearsed.py.
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet import Machine, Stranger, as_root, until

from daskstack import compute
from daskstack.connection import Client
from daskstack.engine import PROJECT
from daskstack.tunnel import free_port
from rehearsal.compute import bridge
from tools import left
from tools.rehearse import KEY, Rehearsal

sys.path.append(str(PROJECT / "rehearsal" / "plugins"))  # from where plugins import each other

from gcp import cloud

SHIPPED = yaml.safe_load((PROJECT / "Pulumi.vms.yaml").read_text())
MACHINE = "compute/instance:Instance"
STRANGER = "198.51.100.1"
# Each project has this network, with these rules.
SHIPPED["config"][KEY]["machines"]["network"] = {
    "name": "default",
    "subnetwork": "default",
    "range": "10.128.0.0/20",
}
DEFAULT_RULES: dict[str, dict[str, Any]] = {
    "default-allow-ssh": {"allows": [{"protocol": "tcp", "ports": ["22"]}]},
    "default-allow-rdp": {"allows": [{"protocol": "tcp", "ports": ["3389"]}]},
    "default-allow-icmp": {"allows": [{"protocol": "icmp"}]},
    "default-allow-internal": {
        "sourceRanges": ["10.128.0.0/9"],
        "allows": [{"protocol": each, "ports": ["0-65535"]} for each in ("tcp", "udp")] + [{"protocol": "icmp"}],
    },
}
PORTS = [*range(1, 1025), *range(8000, 10000)]


class Stack(Rehearsal):
    def __init__(self, folder: Path) -> None:
        super().__init__("vms", folder)
        self.start(SHIPPED)
        self.cloud = cloud.Cloud(folder / "gcp")
        self.make("compute/network:Network", name="default")
        self.make("compute/subnetwork:Subnetwork", name="default", network="default", ipCidrRange="10.128.0.0/20")
        for name, rule in DEFAULT_RULES.items():
            sources = {"sourceRanges": ["0.0.0.0/0"], "direction": "INGRESS", "priority": 65534}
            self.make("compute/firewall:Firewall", **sources | rule, name=name, network="default")
        self.bridge = bridge(folder / "machines")

    def client(self) -> dict[str, Any]:
        return self.outputs()["client"]

    def make(self, token: str, **inputs: Any) -> str:
        """A resource that is not the stack's."""
        config = {"project": "my-project", "region": "us-central1", "zone": "us-central1-a"}
        identity, record = cloud.new_record(token, inputs, config, known=self.cloud.records())
        if token == MACHINE:
            self.compute("create", identity, json.dumps(record))
        self.cloud.create(identity, record)
        return identity

    def compute(self, word: str, identity: str, stdin: str = "") -> None:
        command = [sys.executable, "-m", "rehearsal.compute", word, identity]
        subprocess.run(command, cwd=PROJECT, env=self.environ, input=stdin, text=True, check=True)

    def gcloud(self, what: str, machine: str) -> None:
        compute.gcloud(self.client()["google"], what, machine)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.environ.items():
            patch.setenv(name, value)
        try:
            stack.up()
            yield stack
        finally:
            try:
                stack.destroy()
            finally:
                stack.stop()


def opens(address: str, port: int) -> bool:
    with socket.socket() as attempt:
        attempt.settimeout(1)
        return attempt.connect_ex((address, port)) == 0


def test_a_scan_from_where_the_user_is_finds_the_door_alone(stack: Stack) -> None:
    door = stack.client()["tunnel"]["host"]
    with ThreadPoolExecutor(256) as pool:
        assert [port for port, open in zip(PORTS, pool.map(lambda p: opens(door, p), PORTS), strict=True) if open] == [
            22
        ]


def test_a_stranger_finds_nothing_at_all(stack: Stack) -> None:
    machines = stack.outputs()["admin"]["machines"]
    stranger = Stranger(stack.bridge, STRANGER)
    try:
        ways = [(machine["host"], port) for machine in machines.values() for port in (22, 8786, 8787, 9000)]
        with ThreadPoolExecutor(len(ways)) as pool:
            assert not any(pool.map(lambda way: stranger.connects(*way), ways))
    finally:
        stranger.remove()


def test_a_neighbour_in_the_same_network_finds_nothing_either(stack: Stack) -> None:
    identity = stack.make(
        MACHINE,
        name="neighbour",
        machineType="e2-small",
        bootDisk={"initializeParams": {"image": "debian-cloud/debian-12"}},
        networkInterfaces=[{"subnetwork": "default"}],
    )
    folder = stack.folder / "machines" / "neighbour"
    neighbour = Machine("neighbour", "", "", "", stack.bridge, folder, folder)

    def connects(address: str, port: int) -> bool:
        words = ("timeout", "2", "bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}")
        return as_root("nsenter", "--target", str(neighbour.pid), "--net", *words, check=False).returncode == 0

    try:
        records = {name: record["outputs"] for name, record in stack.cloud.records(MACHINE)}
        own = records.pop(identity)["networkInterfaces"][0]["networkIp"]
        until(lambda: connects(own, 22))
        ways = [
            (each["networkInterfaces"][0]["networkIp"], port)
            for each in records.values()
            for port in (22, 8786, 8787, 9000)
        ]
        assert len(ways) == 12
        with ThreadPoolExecutor(len(ways)) as pool:
            assert not any(pool.map(lambda way: connects(*way), ways))
    finally:
        stack.compute("delete", identity)
        stack.cloud.delete(identity)


def test_a_job_gives_the_right_answer_while_workers_are_preempted_again_and_again(stack: Stack) -> None:
    def slow(number: int) -> int:  # inside, so that it travels whole: the cluster does not have this file
        time.sleep(0.3)
        return number * number

    with Client(stack.client()) as dask:
        dask.wait_for_workers(2, timeout=60)
        futures = []
        for number, name in enumerate(("worker-1", "worker-2", "worker-1")):
            # Some of this work is under way when the machine goes, however slow this computer is.
            futures += dask.map(slow, range(130 * number, 130 * (number + 1)), pure=False)
            stack.gcloud("simulate-maintenance-event", name)
            stack.gcloud("start", name)
            dask.wait_for_workers(2, timeout=120)
        assert dask.submit(sum, futures).result(timeout=300) == sum(number * number for number in range(390))


def test_without_any_address_outside_it_is_reached_through_identity_aware_proxy(stack: Stack) -> None:
    port = free_port()
    with tunnel(stack, port):
        told = SHIPPED["config"][KEY]
        machines = told["machines"] | {"iapPort": port}
        stack.start({"config": {KEY: told | {"machines": machines, "firewall": {}}}})
        stack.up("--refresh")
        assert stack.client()["tunnel"]["host"] == "127.0.0.1"
        with Client(stack.client()) as dask:
            assert dask.submit(sum, range(10)).result(timeout=60) == 45
    listed = subprocess.run(
        ["gcloud", "compute", "addresses", "list", "--project", "my-project", "--format", "json"],
        env=stack.environ, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert '"EXTERNAL"' not in listed.stdout


@contextmanager
def tunnel(stack: Stack, port: int) -> Iterator[None]:
    words = ["gcloud", "compute", "start-iap-tunnel", "dask-vms-scheduler", "22", f"--local-host-port=localhost:{port}"]
    process = subprocess.Popen([*words, "--zone", "us-central1-a", "--project", "my-project"], env=stack.environ)
    try:
        until(lambda: opens("127.0.0.1", port))
        yield
    finally:
        process.terminate()
        process.wait(20)


def test_a_worker_that_is_not_there_any_more_does_not_block_destroy_and_the_datas_disk_alone_is_left(
    stack: Stack,
) -> None:
    stack.gcloud("delete", "worker-2")
    stack.destroy()
    assert "disks dask-vms-data" in (report := left.report("vms", "my-project"))
    assert report.count("gcloud compute") == 1 and "gcloud iam" not in report
