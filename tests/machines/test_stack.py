"""A whole stack on real machines, built by `make up` as a user would, from its first job to its last trace."""

import functools
import json
import os
import re
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import distributed
import psutil
import pytest
from checkout import PROJECT, Checkout, stack_dev
from fleet import Machine, Outside, until

import daskstack
from components import check
from components.vms.step import script
from daskstack import connection, engine, private, ssh

NAMES = ("scheduler", "worker-1", "worker-2")


@pytest.fixture(scope="module")
def checkout(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    with stack_dev(tmp_path_factory.mktemp("user")) as checkout:
        checkout.first_up = checkout.make("up")
        yield checkout


@pytest.fixture(scope="module")
def machines(checkout: Checkout) -> Mapping[str, Machine]:
    return checkout.machines()


def test_up_ends_with_the_jobs_result_and_the_ways_in(checkout: Checkout) -> None:
    ending = checkout.first_up[checkout.first_up.index("Duration:") :]
    assert re.search(r"^workers +2 running", ending, re.MULTILINE)
    assert re.search(r"^job +timeseries, mean of x by name: right for 26 names", ending, re.MULTILINE)
    assert "daskstack dashboard dev" in ending
    assert 'daskstack.connect("dev")' in ending


def test_the_first_up_says_what_local_machines_do_not_protect_from(checkout: Checkout) -> None:
    warning = "root in one of them can become root of this computer"
    summary = checkout.first_up.partition("Diagnostics:")[2]  # progress, before it, shows each message too
    assert summary.count(warning) == 1
    assert warning.split(" can ")[1] in checkout.folder.joinpath("README.md").read_text()


def test_a_clone_stays_clean_after_up(checkout: Checkout) -> None:
    for file in PROJECT.glob("Pulumi*.yaml"):
        assert checkout.folder.joinpath(file.name).read_text() == file.read_text()


def test_a_second_up_changes_nothing_and_opens_no_ssh_session(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    before = {name: machine.logins() for name, machine in machines.items()}
    second_up = checkout.make("up")
    assert re.search(r"Resources:\n +\d+ unchanged\n", second_up)
    assert "become root of this computer" not in second_up
    assert {name: machine.logins() - 1 for name, machine in machines.items()} == before, "more than this test's own"


def test_dask_does_not_start_without_the_rule_that_keeps_tasks_from_the_metadata_server(
    machines: Mapping[str, Machine],
) -> None:
    for machine, unit in (("scheduler", "dask-scheduler"), ("worker-1", "dask-worker@1")):
        shown = machines[machine].run(f"systemctl show --value -p Requires {unit}").stdout
        assert "dask-metadata.service" in shown.split()


def test_no_private_key_is_in_the_state_or_in_what_up_prints(checkout: Checkout) -> None:
    # The words that begin every private key, as text and as JSON has it in JSON.
    written = [
        path.read_text(errors="replace")
        for path in Path(checkout.environ["XDG_DATA_HOME"]).rglob("state/**/*")
        if path.is_file()
    ]
    assert written
    for text in (*written, checkout.first_up, checkout.pulumi("stack", "export")):
        assert "PRIVATE KEY" not in text


def test_what_runs_shows_no_key_to_other_users(checkout: Checkout, machines: Mapping[str, Machine]) -> None:
    for machine in machines.values():
        assert "PRIVATE" not in machine.ssh("sudo -u nobody ps -eo args && sudo cat /proc/[0-9]*/cmdline").stdout


def test_connect_gives_a_client_that_leaves_nothing_behind(checkout: Checkout) -> None:
    def tunnels() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child.name() == "ssh"]

    keys, before = set(private.place().iterdir()), tunnels()
    with daskstack.connect("dev") as client:
        assert client.submit(sum, [1, 2, 3]).result(timeout=60) == 6
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        assert urllib.request.urlopen(client.dashboard_link, timeout=60).status == 200
        assert len(tunnels()) == len(before) + 1
    assert tunnels() == before
    assert set(private.place().iterdir()) == keys


class Poison:
    """Makes a file where it is unpickled, and is `value` there."""

    def __init__(self, marker: Path, value: object) -> None:
        self.marker, self.value = str(marker), value

    def __reduce__(self) -> tuple:
        return eval, ("open(marker, 'w').close() or value", {"marker": self.marker, "value": self.value})


def test_status_runs_nothing_on_this_computer_that_a_task_has_put_into_the_scheduler(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    marker = Path("/tmp", f"daskstack-marker-{uuid.uuid4()}")  # a folder that machines have, too
    switch = f"/var/lib/daskstack/home/{marker.name}"  # so that the client of this test gets none of it

    def poison(dask_scheduler: distributed.Scheduler) -> None:
        identity = dask_scheduler.handlers["identity"]

        @functools.wraps(identity)
        def poisoned(*arguments: object, **options: object) -> object:
            answer = identity(*arguments, **options)
            return Poison(marker, answer) if os.path.exists(switch) else answer

        dask_scheduler.handlers["identity"] = poisoned

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with daskstack.connect("dev") as client:
        client.run_on_scheduler(poison)
    machines["scheduler"].ssh(f"sudo -u dask touch {switch}")
    try:
        said = checkout.make("status")
        assert not marker.exists()
        there = machines["scheduler"].ssh(f"ls {marker}", check=False)
        assert there.returncode == 0, "the scheduler's poison did not reach anybody"
    finally:
        machines["scheduler"].ssh(f"sudo rm -f {switch} {marker}")
        marker.unlink(missing_ok=True)
    assert re.search(r"^scheduler +tls://\S+, 2 workers$", said, re.MULTILINE)
    assert re.search(r"^worker-1-1 +running, \d+ threads, [\d.]+ of [\d.]+ GiB, \d+ % CPU$", said, re.MULTILINE)


def test_logs_are_the_services_last_lines(checkout: Checkout) -> None:
    assert re.search(r"^== worker-1\n.*dask", checkout.make("logs", "MACHINE=worker-1"), re.MULTILINE | re.DOTALL)


def test_what_a_client_has_opens_dask_and_nothing_else(checkout: Checkout, machines: Mapping[str, Machine]) -> None:
    facts = engine.cluster("dev")["client"]
    assert "machines" not in facts
    door, address = facts["tunnel"], machines["scheduler"].address

    def refused(*options: str, words: Sequence[str] = ()) -> str:
        with ssh.command(connection) as command:
            done = subprocess.run(
                [*command[:-1], *options, command[-1], *words],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
        assert done.returncode, done.stdout
        return done.stderr

    connection = door
    for words in (["true"], ["id"], []):
        refused(words=words)
    refused("-s", words=["sftp"])
    for target in ("127.0.0.1:22", f"{address}:22", f"{address}:9000", f"{machines['worker-1'].address}:22"):
        assert "forwarding failed" in refused("-W", target)
    assert "forwarding failed" in refused("-N", "-oExitOnForwardFailure=yes", "-R", "0:127.0.0.1:22")
    for name, machine in machines.items():
        for user in ("root", "admin", "dask", *([] if name == "scheduler" else ["dask-tunnel"])):
            connection = {**door, "host": machine.address, "host_key": machine.host_key, "user": user}
            assert "Permission denied" in refused(words=["true"])


def test_tasks_in_a_closed_unit_can_do_what_tasks_do(checkout: Checkout, machines: Mapping[str, Machine]) -> None:
    def work(machine: str) -> tuple[float, bytes, str, str]:
        import subprocess
        import sys
        from multiprocessing.shared_memory import SharedMemory

        import numpy

        grid = numpy.ones((500, 500))
        memory = SharedMemory(create=True, size=5)
        memory.buf[:5] = b"hello"
        seen = bytes(memory.buf[:5])
        memory.close()
        memory.unlink()
        pool = "import multiprocessing as m; print(m.get_context('fork').Pool(2).map(abs, [-1, -2]))"
        processes = subprocess.run([sys.executable, "-c", pool], capture_output=True, text=True)
        file = f"/srv/daskdata/from-{machine}"
        with open(file, "w") as output:
            output.write(machine)
        with open(file) as written:
            return float((grid @ grid).sum()), seen, processes.stdout + processes.stderr, written.read()

    with daskstack.connect("dev") as client:
        for name in ("worker-1", "worker-2"):
            done = client.submit(work, name, workers=[f"{name}-1"], pure=False).result(timeout=120)
            assert done == (500.0**3, b"hello", "[1, 2]\n", name)
        # A mount that dies and comes back is seen by a worker that runs all the time.
        machines["worker-1"].ssh("sudo pkill -KILL -f '^[^ ]*sshfs [^ ]* /srv/daskdata '")

        def comes_back() -> bool:
            try:
                return client.submit(work, "worker-1", workers=["worker-1-1"], pure=False).result(timeout=60)[3] != ""
            except OSError:
                return False

        until(comes_back)


def statuses(checkout: Checkout) -> dict[str, str]:
    """Of each worker, by its name."""
    return dict(re.findall(r"^(worker\S+) +(\w+),", checkout.make("status"), re.MULTILINE))


def test_dask_does_not_start_without_the_firewall_and_outlives_its_restart(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    machine = machines["worker-1"]
    ask = "systemctl show -P MainPID dask-worker@1"
    before = machine.ssh(ask).stdout
    machine.ssh("sudo systemctl restart firewalld")
    assert machine.ssh(ask).stdout == before != "0\n"
    machine.run("systemctl stop firewalld && systemctl restart --no-block dask-worker@1")
    try:
        until(lambda: machine.ssh("systemctl show -P SubState dask-worker@1").stdout == "auto-restart\n")
    finally:
        machine.run("systemctl start firewalld")
    until(lambda: statuses(checkout) == dict.fromkeys(["worker-1-1", "worker-2-1"], "running"))


def test_a_python_that_differs_is_refused_with_what_mends_it(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection.importlib.metadata, "version", lambda name: "1.2.3")
    with pytest.raises(
        daskstack.connection.VersionError, match=r"dask \(1.2.3, there .*uv run --no-project --python 3.11"
    ):
        daskstack.connect("dev")


def test_a_client_without_the_stacks_certificate_is_refused(checkout: Checkout) -> None:
    address = json.loads(checkout.pulumi("stack", "output", "--json"))["scheduler"]
    with pytest.raises((OSError, TimeoutError)):
        distributed.Client(address, timeout=5, security=distributed.Security.temporary())
    with pytest.raises((OSError, TimeoutError)):
        distributed.Client(address.replace("tls://", "tcp://"), timeout=5)


def test_from_outside_every_port_is_closed(checkout: Checkout, machines: Mapping[str, Machine]) -> None:
    outside = Outside(SimpleNamespace(**json.loads(checkout.printed("machines-network"))))
    try:
        for machine in machines.values():
            assert [port for port in (22, 8786, 8787, 9000, 9001, 9002) if outside.connects(machine, port)] == []
    finally:
        outside.remove()


@pytest.mark.parametrize("name", NAMES)
def test_dask_runs_as_the_clusters_user_without_a_way_to_more(machines: Mapping[str, Machine], name: str) -> None:
    unit = "dask-scheduler" if name == "scheduler" else "dask-worker@1"
    shown = (
        machines[name]
        .ssh(f"systemctl show {unit} -p User -p NoNewPrivileges -p CapabilityBoundingSet -p Restart")
        .stdout
    )
    assert set(shown.split()) == {"User=dask", "NoNewPrivileges=yes", "CapabilityBoundingSet=", "Restart=always"}


def test_a_killed_worker_comes_back(machines: Mapping[str, Machine]) -> None:
    with daskstack.connect("dev") as client:

        def pids() -> dict[str, tuple[str, int]]:
            return client.run(lambda dask_worker: (dask_worker.name, os.getpid()), on_error="ignore")

        client.wait_for_workers(2, timeout=120)
        before = dict(pids().values())
        machines["worker-1"].ssh("sudo systemctl kill --signal=KILL dask-worker@1")

        def is_back() -> bool:
            now = dict(pids().values())
            return now.keys() == before.keys() and now["worker-1-1"] != before["worker-1-1"]

        until(is_back)
        assert dict(pids().values())["worker-2-1"] == before["worker-2-1"]


def run_check(machines: Mapping[str, Machine], checkout: Checkout, **changes) -> subprocess.CompletedProcess[str]:
    """The stack's own check, expecting something else."""
    resources = json.loads(checkout.pulumi("stack", "export"))["deployment"]["resources"]
    stdin = next(each["inputs"]["stdin"] for each in resources if each["urn"].endswith("::check"))
    line = next(line for line in stdin.splitlines() if line.startswith("EXPECT="))
    expect = json.loads(line.removeprefix("EXPECT=").strip("'")) | changes
    source = Path(check.__file__).read_text().replace("WAIT = 90", "WAIT = 2")
    variables = {"CHECK": source, "EXPECT": json.dumps(expect)}
    return machines["scheduler"].run(script("check", variables), check=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workers": ["worker-1-1", "worker-2-1", "worker-3-1"]}, "missing ['worker-3-1'], not asked for none"),
        ({"workers": ["worker-1-1"]}, "missing none, not asked for ['worker-2-1']"),
        ({"packages": {"dask": "2020.1.0"}}, "and 2020.1.0 in the lock"),
        ({"python": "3.9"}, "and 3.9 in the lock"),
        ({"data": "/var/tmp"}, "is not seen by"),
    ],
)
def test_a_failed_check_says_first_what_failed(
    machines: Mapping[str, Machine], checkout: Checkout, changes: dict, said: str
) -> None:
    done = run_check(machines, checkout, **changes)
    assert done.returncode == 1
    assert done.stderr.startswith("check failed: ")
    assert said in done.stderr.splitlines()[0]


def test_a_cluster_that_is_gone_for_destroy_leaves_nothing(checkout: Checkout, machines: Mapping[str, Machine]) -> None:
    running = [psutil.Process(machine.pid) for machine in machines.values()]
    checkout.make("destroy")
    assert [process for process in running if process.is_running()] == []
    data = Path(checkout.environ["XDG_DATA_HOME"])
    # The engine's own note on the format of the folder is no stack's.
    left = [path for path in data.rglob("*") if path.is_file() and not path.name.startswith("meta.yaml")]
    assert left == []
    assert str(data) not in Path("/proc/mounts").read_text()
