"""The shipped stack of machines in Google Cloud, rehearsed in an existing network: its open ports, and its work during
preemptions. test_rehearsed.py rehearses it with its own network.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from distributed import Worker, wait

import daskstack
from daskstack import configuration, engine, stack_commands, wake_machines
from daskstack.configuration import StackKind
from daskstack.connection import Client
from daskstack.engine import PROJECT
from daskstack.tunnel import TunnelError
from rehearsal.compute import bridge
from rehearsal.machines import SUDO, Machine, as_root, run, until
from rehearsal.programs import google_program
from tests.checkout import Checkout
from tests.outside import Stranger
from tests.rehearsals import Shared, end_processes
from tests.work import Work
from tools import cloud_leftovers
from tools.rehearse import KEY, Rehearsal

sys.path.append(str(PROJECT / "rehearsal" / "plugins"))  # from where plugins import each other

from gcp import cloud

SETTINGS = yaml.safe_load((PROJECT / "Pulumi.vms.yaml").read_text())
MACHINE = "compute/instance:Instance"
STRANGER = "198.51.100.1"
# A project's default network with its rules, and the data disk of a destroyed cluster.
SETTINGS["config"][KEY]["machines"] |= {
    "network": {"name": "default", "subnetwork": "default", "range": "10.128.0.0/20"},
    "dataDisk": {"name": "mine"},
}
SETTINGS["config"][KEY]["machines"]["worker"] |= {"machine": "n1-standard-4", "localSsds": 1}
SETTINGS["config"][KEY]["jupyter"] = {"enabled": False}
SETTINGS["config"][KEY]["data"] = {"buckets": [{"name": "readable"}, {"name": "writable", "write": True}]}
# The second zone is used only if Google has no capacity in the first one.
SPREAD = SETTINGS["config"][KEY] | {
    "machines": SETTINGS["config"][KEY]["machines"]
    | {"worker": SETTINGS["config"][KEY]["machines"]["worker"] | {"capacity": [{}, {"zone": "us-central1-b"}]}}
}
PLACED = SPREAD | {"machines": SPREAD["machines"] | {"placement": {"worker-2": 1}}}
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
        self.start(SETTINGS)
        self.cloud = cloud.Cloud(folder / "gcp")
        self.make("compute/network:Network", name="default")
        self.make("compute/subnetwork:Subnetwork", name="default", network="default", ipCidrRange="10.128.0.0/20")
        for name, rule in DEFAULT_RULES.items():
            sources = {"sourceRanges": ["0.0.0.0/0"], "direction": "INGRESS", "priority": 65534}
            self.make("compute/firewall:Firewall", **sources | rule, name=name, network="default")
        self.disk = folder / "gcp" / f"{self.make('compute/disk:Disk', name='mine', size=10)}.img"
        (folder / "mine").mkdir()
        (folder / "mine" / "before").write_text("kept")
        as_root("mke2fs", "-q", "-t", "ext4", "-d", str(folder / "mine"), str(self.disk), "10G")
        self.bridge = bridge(folder / "machines")
        self.stands = False

    def stand(self) -> None:
        """Brings the stack up with SETTINGS, unless it already is."""
        if not self.stands:
            self.start(SETTINGS)
            self.up("--refresh")
        self.stands = True

    def make(self, token: str, **inputs: Any) -> str:
        """Creates a resource outside of the stack."""
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
        wake_machines.gcloud(self.client().google, what, machine)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared[Stack]]:
    @contextmanager
    def life() -> Iterator[Stack]:
        folder = tmp_path_factory.mktemp("stack")
        stack = Stack(folder)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in stack.environ.items():
                patch.setenv(name, value)
            try:
                yield stack
            finally:
                end_processes(folder)
                stack.stop()

    with closing(Shared(life)) as shared:
        yield shared


@pytest.fixture
def stack(shared: Shared[Stack], request: pytest.FixtureRequest) -> Iterator[Stack]:
    for stack in shared.lend(request):
        stack.stand()
        yield stack


def opens(address: str, port: int) -> bool:
    with socket.socket() as attempt:
        attempt.settimeout(1)
        return attempt.connect_ex((address, port)) == 0


def test_only_ssh_of_the_scheduler_is_open_to_the_users_network(stack: Stack) -> None:
    door = stack.client().tunnel["host"]
    until(lambda: opens(door, 22))
    with ThreadPoolExecutor(512) as pool:
        found = pool.map(lambda port: opens(door, port), PORTS)
        assert {port for port, open in zip(PORTS, found, strict=True) if open} <= {22}


@contextmanager
def neighbour(stack: Stack) -> Iterator[tuple[Machine, str, str]]:
    """A machine of another user in the same network, with its internal and external address."""
    identity = stack.make(
        MACHINE,
        name="neighbour",
        machineType="e2-small",
        bootDisk={"initializeParams": {"image": "debian-cloud/debian-12"}},
        networkInterfaces=[{"subnetwork": "default", "accessConfigs": [{}]}],
    )
    try:
        interface = dict(stack.cloud.records(MACHINE))[identity]["outputs"]["networkInterfaces"][0]
        folder = stack.folder / "machines" / "neighbour"
        machine = Machine("neighbour", "", "", "", stack.bridge, folder, folder)
        yield machine, interface["networkIp"], interface["accessConfigs"][0]["natIp"]
    finally:
        stack.compute("delete", identity)
        stack.cloud.delete(identity)


def test_no_port_is_open_to_the_internet_or_to_other_machines_in_the_network(stack: Stack) -> None:
    ours = [record["outputs"]["networkInterfaces"][0] for _, record in stack.cloud.records(MACHINE)]
    inside = [each["networkIp"] for each in ours]
    outside = [config["natIp"] for each in ours for config in each.get("accessConfigs", [])]
    assert (len(inside), len(outside)) == (3, 1)
    ports = (22, 8786, 8787, 9000)
    stranger = Stranger(stack.bridge, STRANGER)
    try:
        with neighbour(stack) as (machine, own, public), ThreadPoolExecutor() as pool:

            def connects(address: str, port: int) -> bool:
                words = ("timeout", "2", "bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}")
                return as_root("nsenter", "--target", str(machine.pid), "--net", *words, check=False).returncode == 0

            # Both can connect where a rule admits them, so a failure is due to the rules.
            until(lambda: connects(own, 22))
            until(lambda: stranger.connects(public, 22))
            near = [(address, port) for address in inside for port in ports]
            assert not any(pool.map(lambda way: connects(*way), near))
            far = [(address, port) for address in inside + outside for port in ports]
            assert not any(pool.map(lambda way: stranger.connects(*way), far))
    finally:
        stranger.remove()


def test_the_disk_of_a_destroyed_cluster_can_be_read_and_written_by_the_next(stack: Stack) -> None:
    read, write = tasks()
    with Client(stack.client()) as dask:
        dask.wait_for_workers(2, timeout=300)
        assert dask.submit(read, "before").result(timeout=60) == "kept"
        for reader, writer in ("worker-1-1", "worker-2-1"), ("worker-2-1", "worker-1-1"):
            dask.submit(write, f"by-{writer}", workers=writer).result(timeout=60)
            assert dask.submit(read, f"by-{writer}", workers=reader).result(timeout=60) == "new"


def tasks() -> tuple[Callable[[str], str], Callable[[str], None]]:
    """Functions defined inside a function are pickled by value: the cluster does not have this file."""

    def read(name: str) -> str:
        return Path("/srv/daskdata", name).read_text()

    def write(name: str) -> None:
        Path("/srv/daskdata", name).write_text("new")

    return read, write


def test_a_job_returns_the_right_result_despite_repeated_preemptions(stack: Stack) -> None:
    def slow(number: int) -> int:  # inside, so that it is pickled by value: the cluster does not have this file
        time.sleep(0.3)
        return number * number

    with Client(stack.client()) as dask:
        dask.wait_for_workers(2, timeout=300)
        futures = []
        for number, name in enumerate(("worker-1", "worker-2", "worker-1")):
            # On a slow computer too, some tasks are running when the machine is preempted.
            futures += dask.map(slow, range(130 * number, 130 * (number + 1)), pure=False)
            stack.gcloud("simulate-maintenance-event", name)
            stack.gcloud("start", name)
            dask.wait_for_workers(2, timeout=300)
        assert dask.submit(sum, futures).result(timeout=300) == sum(number * number for number in range(390))


METADATA, STORAGE = "169.254.169.254", "199.36.153.8"  # as in Google's networks
SERVICES = """
add table ip google
add chain ip google prerouting {{ type nat hook prerouting priority dstnat; }}
add rule ip google prerouting ip daddr {metadata} tcp dport 80 redirect to :8001
add rule ip google prerouting ip daddr {storage} tcp dport 80 redirect to :8002
"""


def access(*words: str) -> str:
    command = [sys.executable, "-m", "daskstack", "access", *words, "--stack", "vms"]
    return run(command, cwd=PROJECT, seconds=300, together=True).stdout


def test_three_people_work_with_files_of_their_own_until_one_loses_access(stack: Stack, tmp_path: Path) -> None:
    people = ["alice", "bob", "carol"]
    for name in people:
        access("add", name, "--output", str(tmp_path / f"{name}.json"))
    alice, bob, carol = working = [Work(daskstack.connect(f"{tmp_path}/{name}.json"), starts=False) for name in people]
    try:
        for each in working:
            each.thread.start()
        for each in working:
            each.check_progress()
        access("revoke", "carol")
        until(lambda: "Permission denied" in carol.client._way.fault())
        until(lambda: carol.client.status != "running")
        for each in (alice, bob):
            each.check_progress()
    finally:
        for each in working:
            each.end()
    with pytest.raises(TunnelError, match="access was revoked"):
        daskstack.connect(f"{tmp_path}/carol.json")
    for name in ("alice", "bob"):
        access("revoke", name)


@contextmanager
def google(stack: Stack, *buckets: str) -> Iterator[None]:
    """A metadata server and Google's API, with these buckets, in the machines' network."""
    inside = [*SUDO, "nsenter", f"--net=/run/netns/{stack.bridge}"]
    rules = SERVICES.format(metadata=METADATA, storage=STORAGE)
    run([*inside, "nft", "-f", "-"], seconds=60, stdin=rules)
    variables = [f"{name}={value}" for name, value in stack.environ.items() if name.startswith("DASKSTACK_REHEARSAL")]
    program = ["env", *variables, google_program(), stack.folder / "gcp", ":8001", ":8002"]
    server = subprocess.Popen([*inside, *program, *buckets])
    try:
        yield
    finally:
        as_root("kill", str(server.pid))
        server.wait(60)
        run([*inside, "nft", "delete table ip google"], seconds=60)


def bucket_tasks() -> tuple[Callable[[str], str], Callable[[str, str], str]]:
    """Functions that read and write an object of a bucket, and return the result or the server's refusal."""

    def files() -> Any:
        os.environ |= {"GCE_METADATA_HOST": METADATA, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
        import gcsfs

        return gcsfs.GCSFileSystem(endpoint_url=f"http://{STORAGE}", skip_instance_cache=True)

    def read(bucket: str) -> str:
        try:
            return files().cat(f"{bucket}/greeting").decode()
        except OSError as error:
            return f"refused: {error}"

    def write(bucket: str, text: str) -> str:
        try:
            files().pipe(f"{bucket}/greeting", text.encode())
        except OSError as error:
            return f"refused: {error}"
        return read(bucket)

    return read, write


def test_tasks_read_and_write_only_the_buckets_that_the_stack_grants(stack: Stack) -> None:
    read, write = bucket_tasks()
    with google(stack, "readable", "writable", "secret"), Client(stack.client()) as dask:
        dask.wait_for_workers(2, timeout=300)

        def on_each(function: Callable[..., str], *words: str) -> list[str]:
            """The results on a worker and on the scheduler's machine, which has another account."""
            there = dask.submit(function, *words, workers="worker-1-1", pure=False).result(timeout=60)
            return [there, dask.run_on_scheduler(function, *words)]

        assert on_each(read, "readable") == ["readable", "readable"]
        assert on_each(write, "writable", "new") == ["new", "new"]
        refused = [*on_each(write, "readable", "new"), *on_each(read, "secret"), *on_each(write, "secret", "new")]
        assert all("does not have this access" in each for each in refused), refused


def test_workers_spill_to_local_ssds_which_a_power_off_empties(stack: Stack) -> None:
    def spill(dask_worker: Worker) -> tuple[int, int, list[str]]:
        """The spilled bytes, the disk's bytes, and the files in the folder. Leaves a file there."""
        dask_worker.data.evict()
        folder = Path("/var/lib/daskstack/spill/daskstack")
        spilled, disk = sum(each.stat().st_size for each in folder.rglob("storage/*")), os.statvfs(folder)
        found = [each.name for each in folder.iterdir()]
        (folder / "left").touch()
        return spilled, disk.f_frsize * disk.f_blocks, found

    with Client(stack.client()) as dask:
        for _ in range(2):
            dask.wait_for_workers(2, timeout=300)
            random = dask.submit(os.urandom, 10**7, workers="worker-1-1", pure=False)
            wait(random, timeout=60)
            [(spilled, size, found)] = dask.run(spill, workers=next(iter(dask.who_has(random).values()))).values()
            assert spilled > 10**7
            assert size > 360 * 10**9
            assert "left" not in found
            stack.gcloud("simulate-maintenance-event", "worker-1")
            stack.gcloud("start", "worker-1")


@contextmanager
def capacity(stack: Stack, **left: int) -> Iterator[None]:
    """Google has this many machines of a kind: `a=1` of the workers' type in zone us-central1-a."""
    kinds = {f"us-central1-{zone} n1-standard-4 spot": number for zone, number in left.items()}
    file = stack.folder / "limits.json"
    file.write_text(json.dumps({"capacity": kinds}))
    try:
        yield
    finally:
        file.unlink()


def daskstack_up(stack: Stack, checkout: Checkout, home: Path) -> dict[str, Any]:
    """Runs what `daskstack up` runs in a checkout with the stack's settings. Returns the settings afterwards."""
    shutil.copy(stack.settings, checkout.folder / stack.settings.name)
    with pytest.MonkeyPatch.context() as patch, checkout.home():
        # Stand-ins for Google Cloud run only in a rehearsal's home, which it takes for the user's own.
        patch.setenv("PULUMI_HOME", str(home))
        patch.setattr(engine, "official", lambda *_: True)
        kind, words = StackKind.of(configuration.read("vms")), ("up", "--yes", "--skip-preview", "--refresh")
        stack_commands.pulumi(kind, "vms", *words, leaves_out=kind.at_least)
        return configuration.read("vms")


def test_up_and_waking_use_the_machines_that_google_has(
    stack: Stack, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stack.stands = False
    stack.start({"config": {KEY: SPREAD}})
    stack.gcloud("delete", "worker-2")
    (tmp_path / "home").symlink_to(os.environ["PULUMI_HOME"])
    checkout = Checkout(tmp_path)
    with capacity(stack, a=1):
        settings = daskstack_up(stack, checkout, tmp_path / "home")
        lacks, tries = (f"n1-standard-4 spot in us-central1-{zone}" for zone in "ab")
        assert f"worker-2: Google has no {lacks} now; trying {tries}\n" in capfd.readouterr().err
        assert settings["machines"]["placement"] == {"worker-2": 1}
        stack.start({"config": {KEY: settings}})
        with Client(stack.client()) as dask:
            dask.wait_for_workers(2, timeout=300)
        assert daskstack_up(stack, checkout, tmp_path / "home") == settings
        assert not re.search("created|updated|deleted|replaced", capfd.readouterr().out), (
            "the second `up` changes nothing"
        )

    client = stack.client()
    assert client.google
    google, door = client.google, client.tunnel
    names = [*google.machines]
    wake_machines.gcloud(google, "stop", *names)
    with capacity(stack, b=0):
        assert wake_machines.wake(google, door, "scheduler") == 1
    assert "Google has no capacity for worker-2 now; the cluster works without" in capfd.readouterr().err
    assert statuses(stack) == {"scheduler": "RUNNING", "worker-1": "RUNNING", "worker-2": "TERMINATED"}

    # Google has no capacity for it in any entry, and the cluster can do without.
    stack.start({"config": {KEY: settings | {"workers": {"atLeast": 1}}}})
    with capacity(stack, a=1, b=0):
        settings = daskstack_up(stack, checkout, tmp_path / "home")
    assert f"missing: worker-2: Google has no capacity for it now; tried {tries}, {lacks}\n" in capfd.readouterr().err
    assert settings["workers"] == {"atLeast": 1, "missing": ["worker-2"]}
    assert settings["machines"]["placement"] == {"worker-2": 1}
    assert [*statuses(stack)] == ["scheduler", "worker-1"]
    with Client(stack.client()) as dask:
        assert dask.submit(sum, [1, 2]).result(timeout=300) == 3


def ask_google() -> Callable[[str, str], str]:
    """A function that asks Google's API for something with the account of its machine, and returns the answer."""

    def ask(method: str, what: str) -> str:
        import json
        from urllib import error, request

        server = f"http://{METADATA}/computeMetadata/v1/instance/service-accounts/default/token"
        token = json.load(request.urlopen(request.Request(server, headers={"Metadata-Flavor": "Google"})))
        headers = {"Authorization": f"Bearer {token['access_token']}"}
        place = f"http://{STORAGE}/compute/v1/projects/my-project/zones/us-central1-a/instances/dask-vms-{what}"
        try:
            return request.urlopen(request.Request(place, headers=headers, method=method)).read().decode()
        except error.HTTPError as refusal:
            return f"{refusal.code} {refusal.read().decode()}"

    return ask


def test_machines_start_and_stop_with_their_workers_without_losing_results(stack: Stack) -> None:
    def random_bytes(_: int) -> bytes:  # a repeated task has another result
        import os

        return os.urandom(100_000)

    stack.stands = False
    told = PLACED | {"workers": {"min": 0}}
    with google(stack):
        stack.start({"config": {KEY: told}})
        stack.up("--refresh")
        with Client(stack.client()) as dask:

            def scale(number: int) -> None:
                dask.sync(dask.scheduler.workers_scale, number=number)

            scale(2)
            dask.wait_for_workers(2, timeout=300)
            parts = dask.map(random_bytes, range(20), pure=False)
            before = dask.gather(parts)

            scale(1)
            until(lambda: "TERMINATED" in statuses(stack).values(), 300)
            assert dask.gather(parts) == before
            [worker] = dask.scheduler_info()["workers"].values()
            on = worker["name"].rpartition("-")[0]
            off = {"worker-1": "worker-2", "worker-2": "worker-1"}[on]
            assert statuses(stack) == {"scheduler": "RUNNING", on: "RUNNING", off: "TERMINATED"}

            # `up` starts the machine on which it has something to do, and keeps the number.
            assert touched(stack) == set(), "nothing has changed"
            assert statuses(stack)[off] == "TERMINATED"
            stack.start({"config": {KEY: told | {"limits": {"idle": "40m"}}}})
            steps = {f"dask-{machine}-idle" for machine in ("scheduler", on, off)}
            assert touched(stack) == steps | {"dask-power", "dask-check"}
            until(lambda: statuses(stack)[off] == "TERMINATED", 300)
            assert dask.gather(parts) == before
            assert len(dask.nthreads()) == 1

            # Its last worker's results are lost with the machine, which starts again.
            stack.gcloud("simulate-maintenance-event", on)
            until(lambda: statuses(stack)[on] == "RUNNING", 300)
            dask.wait_for_workers(1, timeout=300)

            # If Google has no capacity for it, the other one starts, whose zone has some.
            on_head(stack, "echo 0 2 40 >/etc/daskstack/bounds")  # seconds to join
            zone = {"worker-1": "a", "worker-2": "b"}[on]
            with capacity(stack, **{zone: 0}):
                stack.gcloud("simulate-maintenance-event", on)
                until(lambda: statuses(stack)[off] == "RUNNING", 300)
                dask.wait_for_workers(1, timeout=300)
                assert statuses(stack)[on] == "TERMINATED"
                [last, *_] = reversed(on_head(stack, "journalctl --unit dask-power --output cat").split("Starting "))
                assert f"instances/dask-vms-{off}" in last
                assert on_head(stack, "journalctl -u dask-power").count(f"Starting zones/us-central1-{zone}/") > 1
            scale(2)
            dask.wait_for_workers(2, timeout=300)

            # The accounts of the machines can do nothing else.
            ask = ask_google()
            assert '"status":"RUNNING"' in dask.run_on_scheduler(ask, "GET", "worker-1")
            for method, what in (("GET", "scheduler"), ("POST", "scheduler/stop")):
                assert dask.run_on_scheduler(ask, method, what).startswith("403 ")
            for method, what in (("GET", "worker-1"), ("POST", "worker-1/stop")):
                assert dask.submit(ask, method, what, pure=False).result(timeout=60).startswith("403 ")

            # The machine of a group always runs.
            del parts
            stack.start({"config": {KEY: told | {"workers": {"min": 0, "groups": [{"name": "big"}]}}}})
            assert "dask-big-1-service" in touched(stack)
            scale(0)
            until(lambda: list(statuses(stack).values()).count("TERMINATED") == 2, 300)
            stack.gcloud("simulate-maintenance-event", "big-1")
            until(lambda: statuses(stack)["big-1"] == "RUNNING", 300)
            dask.wait_for_workers(1, timeout=300)
            assert [each["name"] for each in dask.scheduler_info()["workers"].values()] == ["big-1-1"]
            assert {name for name, status in statuses(stack).items() if status == "RUNNING"} == {"scheduler", "big-1"}


def on_head(stack: Stack, command: str) -> str:
    """The output of a command in the files of the scheduler's machine."""
    head = Machine("dask-vms-scheduler", "", "", "", stack.bridge, stack.folder, stack.folder)
    return as_root("nsenter", "--target", str(head.pid), "--mount", "sh", "-c", command).stdout


def statuses(stack: Stack) -> dict[str, str]:
    return wake_machines.statuses(stack.client().google)


def touched(stack: Stack) -> set[str]:
    """The commands that `up` runs."""
    printed = stack.pulumi("up", "--yes", "--skip-preview", "--refresh", stdout=subprocess.PIPE, text=True).stdout
    return set(re.findall(r"command:\w+:Command (\S+) (?:creat|updat|delet)", printed))


@contextmanager
def tunnel(stack: Stack) -> Iterator[int]:
    """Opens an IAP tunnel to the scheduler's SSH server and yields its local port."""
    words = ["gcloud", "compute", "start-iap-tunnel", "dask-vms-scheduler", "22", "--local-host-port=localhost:0"]
    place = ["--zone", "us-central1-a", "--project", "my-project"]
    with (stack.folder / "tunnel").open("w+") as said:
        process = subprocess.Popen([*words, *place], env=stack.environ, stderr=said)
        try:
            until(lambda: "]" in (stack.folder / "tunnel").read_text())
            yield int(re.findall(r"\[(\d+)\]", (stack.folder / "tunnel").read_text())[0])
        finally:
            process.terminate()
            process.wait(60)


def test_a_cluster_is_reachable_through_iap_alone_and_destroyed_without_a_deleted_worker(
    stack: Stack,
) -> None:
    stack.stands = False
    with tunnel(stack) as port:
        machines = PLACED["machines"] | {"iapPort": port}
        stack.start({"config": {KEY: PLACED | {"machines": machines, "firewall": {}}}})
        stack.up("--refresh")
        assert stack.client().tunnel["host"] == "127.0.0.1"
        with Client(stack.client()) as dask:
            dask.submit(tasks()[1], "last").result(timeout=60)
        listed = subprocess.run(
            ["gcloud", "compute", "addresses", "list", "--project", "my-project", "--format", "json"],
            env=stack.environ, check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert '"EXTERNAL"' not in listed.stdout

    stack.gcloud("delete", "worker-2")
    stack.destroy()
    assert [*stack.cloud.records("projects/iAMCustomRole:IAMCustomRole")] == [], "bounds need it, and are gone"
    assert cloud_leftovers.report("vms", "my-project") == "nothing of stack vms is left in project my-project"
    # The disk does not belong to the stack.
    assert [as_root("debugfs", "-R", f"cat /{name}", str(stack.disk)).stdout for name in ("before", "last")] == [
        "kept",
        "new",
    ]
