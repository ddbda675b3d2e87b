"""A complete stack on real machines, built with `make up` like a user's, from the first job to its removal."""

import base64
import functools
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import distributed
import psutil
import pytest

import daskstack
from components.machines.step import script
from daskstack import connection, engine, private_folder, ssh
from on_the_cluster import check
from rehearsal.machines import Machine, run, until
from tests.checkout import Checkout
from tests.outside import Outside
from tests.tls import accepts, imitated
from tests.work import wait_until_working

NAMES = ("scheduler", "worker-1", "worker-2")
pytestmark = pytest.mark.timeout(1800)


def test_up_prints_the_result_of_the_job_and_how_to_connect(checkout: Checkout) -> None:
    ending = checkout.first_up[checkout.first_up.index("Duration:") :]
    assert re.search(r"^workers +2 running", ending, re.MULTILINE)
    assert re.search(r"^job +timeseries, mean of x by name: correct for 26 names", ending, re.MULTILINE)
    assert ".venv/bin/daskstack dashboard\n" in ending
    assert 'daskstack.connect("dev")' in ending


def test_the_first_up_warns_about_the_limits_of_local_machines(checkout: Checkout) -> None:
    warning = "root in one of them can become root of this computer"
    summary = checkout.first_up.partition("Diagnostics:")[2]  # the progress output before it also contains each message
    assert summary.count(warning) == 1
    assert "can become root of your computer" in checkout.folder.joinpath("docs/machines.md").read_text()


def test_a_clone_stays_clean_after_up(checkout: Checkout) -> None:
    """Only files that git ignores are new: bytecode and the environment."""
    left = checkout.first_status.splitlines()
    assert [line for line in left if not re.fullmatch(r"!! (\.venv|\S*__pycache__/\S*)", line)] == []
    assert "!! .venv" in left


def test_a_second_up_changes_nothing_and_opens_no_ssh_session(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    before = {name: machine.logins() for name, machine in machines.items()}
    second_up = checkout.make("up")
    assert re.search(r"Resources:\n +\d+ unchanged\n", second_up)
    assert "become root of this computer" not in second_up
    assert {name: machine.logins() - 1 for name, machine in machines.items()} == before, "more than this test's own"


def test_dask_does_not_start_without_the_rule_that_blocks_the_metadata_server(
    machines: Mapping[str, Machine],
) -> None:
    for machine, unit in (("scheduler", "dask-scheduler"), ("worker-1", "dask-worker@1")):
        shown = machines[machine].run(f"systemctl show --value -p Requires {unit}").stdout
        assert "dask-metadata.service" in shown.split()


def secrets(key: str) -> set[str]:
    """Fragments that reveal a private key: its lines, plain and in base64 at each possible offset."""
    begin, *lines, _end = key.strip().splitlines()
    # In OpenSSH's ed25519 keys only the fourth line is entirely private: all but a random byte of the third line is
    # also in certificates. The last lines of other keys contain only the public half.
    lines = lines[3:4] if "OPENSSH" in begin else lines[:2]
    assert lines, begin
    found = set()
    for line in filter(lambda line: len(line) > 20, lines):
        coded = [base64.b64encode(bytes(shift) + line.encode()).decode()[4:-4] for shift in range(3)]
        found |= {line, *coded}
    return found


def revealing(keys: Mapping[str, str]) -> dict[str, set[str]]:
    """The fragments that reveal each of these keys."""
    kinds = {(name, Path(place).name) for place in keys for name in NAMES if place.startswith(name)}
    assert kinds >= {(name, key) for name in NAMES for key in ("ssh_host_ed25519_key", "id_ed25519", "key.pem")}
    assert {f"scheduler:/etc/daskstack/authority/{key}" for key in ("host", "user", "tls.key")} <= keys.keys()
    return {place: secrets(key) for place, key in keys.items()}


def test_private_keys_of_machines_are_not_in_state_outputs_or_logs_even_encrypted(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    state = Path(checkout.environ["XDG_DATA_HOME"], "daskstack/state")
    written = {str(path): path.read_text(errors="replace") for path in state.rglob("*") if path.is_file()}
    assert written
    revealed = checkout.pulumi("stack", "export", "--show-secrets")
    seen = written | {
        "what up printed": checkout.first_up,
        "the state": checkout.pulumi("stack", "export"),
        "the state's secrets": revealed,
        "the outputs": checkout.pulumi("stack", "output", "--json", "--show-secrets"),
        "make logs": checkout.make("logs"),
    }
    for name, machine in machines.items():
        seen[f"the journal of {name}"] = machine.ssh("sudo journalctl -o cat").stdout
    for key, words in [*revealing(checkout.first_keys).items(), *revealing(checkout.private_keys()).items()]:
        assert [(place, word) for place, text in seen.items() for word in words if word in text] == [], key
    # The user's own login key is a secret of the stack: it appears only where secrets are shown.
    [login] = {facts["private_key"] for facts in engine.cluster("dev")["admin"]["machines"].values()}
    found = {place for place, text in seen.items() if any(word in text for word in secrets(login))}
    assert found == {"the state's secrets", "the outputs"}


def test_no_key_is_on_a_command_line_while_steps_run(checkout: Checkout, machines: Mapping[str, Machine]) -> None:
    seen = {line for _, line in checkout.seen_running}
    [login] = {facts["private_key"] for facts in engine.cluster("dev")["admin"]["machines"].values()}
    for words in (*revealing(checkout.first_keys).values(), secrets(login)):
        assert [line for line in seen if any(word in line for word in words)] == []
    # Steps were observed on each machine, and their command lines contain only this.
    for name, machine in machines.items():
        there = {line for group, line in checkout.seen_running if group.startswith(f"/{machine.bridge}-{name}/")}
        assert "bash\0-s\0first\0" in there
        assert not [line for line in there if "IDENTITY=" in line], "a step's text"


def test_steps_are_sent_on_standard_input(checkout: Checkout) -> None:
    commands = [each for each in checkout.resources().values() if each["type"] == "command:remote:Command"]
    assert len(commands) > 20
    for each in commands:
        lines = [each["inputs"].get(when) for when in ("create", "update", "delete")]
        assert lines == ["sudo -n bash -s first", "sudo -n bash -s", "sudo -n bash -s undo"], each["urn"]
        assert "environment" not in each["inputs"]


def test_connect_returns_a_client_and_leaves_no_files_or_processes(checkout: Checkout) -> None:
    def tunnels() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child.name() == "ssh"]

    keys, before = set(private_folder.place().iterdir()), tunnels()
    with daskstack.connect("dev") as client:
        assert client.submit(sum, [1, 2, 3]).result(timeout=60) == 6
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        assert urllib.request.urlopen(client.dashboard_link, timeout=60).status == 200
        assert len(tunnels()) == len(before) + 1
    assert tunnels() == before
    assert set(private_folder.place().iterdir()) == keys


class Poison:
    """Unpickling it creates a file and returns `value`."""

    def __init__(self, marker: Path, value: object) -> None:
        self.marker, self.value = str(marker), value

    def __reduce__(self) -> tuple:
        return eval, ("open(marker, 'w').close() or value", {"marker": self.marker, "value": self.value})


def test_status_runs_no_code_that_a_task_put_into_the_scheduler(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    marker = Path("/tmp", f"daskstack-marker-{uuid.uuid4()}")  # a folder that also exists on machines
    switch = f"/var/lib/daskstack/home/{marker.name}"  # so that this test's client does not receive it

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


def test_logs_prints_the_last_lines_of_all_machines_or_one(checkout: Checkout) -> None:
    said = re.split(r"^== (\S+)\n", checkout.make("logs"), flags=re.MULTILINE)
    assert said[1::2] == list(NAMES)
    for name, text in zip(said[1::2], said[2::2], strict=True):
        assert "distributed.scheduler" in text if name == "scheduler" else "distributed.worker" in text
        assert 1 < len(text.splitlines()) <= 41  # journalctl can print a line about the start of the log
    assert re.findall("^== .*", checkout.make("logs", "MACHINE=worker-1"), re.MULTILINE) == ["== worker-1"]
    said = checkout.make("logs", "MACHINE=worker-9", succeeds=False)
    assert "stack dev has no machine worker-9; it has scheduler, worker-1, worker-2" in said


def test_status_prints_one_line_per_worker(checkout: Checkout) -> None:
    said = checkout.make("status")
    assert re.search(r"^scheduler +tls://[\d.]+:8786, 2 workers$", said, re.MULTILINE)
    for name in ("worker-1-1", "worker-2-1"):
        line = rf"^{name} +running, \d+ threads, [\d.]+ of [\d.]+ GiB, \d+ % CPU$"
        assert re.search(line, said, re.MULTILINE)


def test_check_and_ssh_work_on_the_running_cluster(checkout: Checkout) -> None:
    def said(*words: str) -> str:
        command = [".venv/bin/daskstack", *words]
        return run(command, cwd=checkout.folder, env=checkout.environ, seconds=300).stdout

    before = checkout.pulumi("stack", "export")
    table = said("check")
    assert re.search(r"^workers +2 running.*^job +timeseries, .*\.\d s\n\Z", table, re.MULTILINE | re.DOTALL)
    assert checkout.pulumi("stack", "export") == before
    assert said("ssh", "worker-1", "hostname") == "worker-1\n"
    assert said("ssh", "scheduler", "echo $((1 + 1));", "exit 0") == "2\n"


def test_the_dashboard_stays_open_until_ctrl_c(checkout: Checkout, tmp_path: Path) -> None:
    said = tmp_path / "said"
    command = [".venv/bin/daskstack", "dashboard"]
    with said.open("w") as output:
        process = subprocess.Popen(
            command, cwd=checkout.folder, env=checkout.environ, stdout=output, stderr=output, start_new_session=True
        )
    try:
        until(lambda: "\n" in said.read_text() or process.poll() is not None)
        found = re.fullmatch(
            r"the dashboard of dev: (http://127\.0\.0\.1:\d+/status) \(until Ctrl-C\)\n", said.read_text()
        )
        assert found, said.read_text()
        with urllib.request.urlopen(found[1], timeout=60) as page:
            assert "<title>Dask" in page.read().decode()
        tunnels = psutil.Process(process.pid).children()
        assert [tunnel.name() for tunnel in tunnels] == ["ssh"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "Traceback" not in said.read_text()
        until(lambda: not any(tunnel.is_running() for tunnel in tunnels))
    finally:
        process.kill()
        process.wait()


def test_jupyter_fails_if_there_is_no_notebook_server(checkout: Checkout) -> None:
    command = [".venv/bin/daskstack", "jupyter"]
    done = run(command, cwd=checkout.folder, env=checkout.environ, seconds=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: stack dev has no notebook server\n"


def test_a_clients_credentials_open_dask_and_nothing_else(checkout: Checkout, machines: Mapping[str, Machine]) -> None:
    outputs = engine.cluster("dev")
    facts = outputs["client"]
    assert facts.tunnel["private_key"] not in [each["private_key"] for each in outputs["admin"]["machines"].values()]
    door, address = facts.tunnel, machines["scheduler"].address

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


def test_hardened_units_do_not_restrict_ordinary_tasks(checkout: Checkout, machines: Mapping[str, Machine]) -> None:
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
        # A running worker sees the mount again after it died and recovered.
        machines["worker-1"].ssh("sudo pkill -KILL -f '^[^ ]*sshfs [^ ]* /srv/daskdata '")

        def comes_back() -> bool:
            try:
                return client.submit(work, "worker-1", workers=["worker-1-1"], pure=False).result(timeout=60)[3] != ""
            except OSError:
                return False

        until(comes_back)


def test_dask_does_not_start_without_the_firewall_and_survives_its_restart(
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
    wait_until_working()


def test_a_different_python_is_rejected_with_a_remedy(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.importlib.metadata, "version", lambda name: "1.2.3")
    with pytest.raises(
        daskstack.connection.VersionError, match=r"dask \(1.2.3, there .*uv run --no-project --python 3.11"
    ):
        daskstack.connect("dev")


def test_clients_without_a_certificate_from_the_clusters_authority_are_rejected(checkout: Checkout) -> None:
    with daskstack.connect("dev") as client:
        info = client.sync(client.scheduler.identity, n_workers=-1)
    doors = [engine.cluster("dev")["scheduler"]]
    for address, worker in info["workers"].items():
        doors += [address, worker["nanny"]]
    assert len(doors) == 5
    tls = engine.cluster("dev")["client"].tls
    foreign = imitated(tls.certificate)
    for door in doors:
        assert accepts(door, tls.certificate, tls.key), door
        assert not accepts(door), door
        assert not accepts(door, *foreign), door


def test_every_port_of_every_machine_is_closed_to_the_outside(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    outside = Outside(SimpleNamespace(**json.loads(checkout.printed("machines-network"))))
    head = machines["scheduler"]
    try:
        with ThreadPoolExecutor() as pool:
            assert list(pool.map(outside.open_ports, machines.values())) == [[]] * len(machines)
        # The scan finds these ports when they are open.
        head.run("systemctl stop firewalld")
        try:
            assert {22, 8786, 8787} <= set(outside.open_ports(head))
        finally:
            head.run("systemctl start firewalld")
        until(lambda: not outside.connects(head, 22))  # it reports that it runs shortly before its rules are loaded
    finally:
        outside.remove()


@pytest.mark.parametrize("name", NAMES)
def test_dask_runs_as_an_unprivileged_user(machines: Mapping[str, Machine], name: str) -> None:
    unit = "dask-scheduler" if name == "scheduler" else "dask-worker@1"
    shown = (
        machines[name]
        .ssh(f"systemctl show {unit} -p User -p NoNewPrivileges -p CapabilityBoundingSet -p Restart")
        .stdout
    )
    assert set(shown.split()) == {"User=dask", "NoNewPrivileges=yes", "CapabilityBoundingSet=", "Restart=always"}


def test_a_killed_worker_restarts(machines: Mapping[str, Machine]) -> None:
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
    """The stack's own check with a different expectation."""
    resources = json.loads(checkout.pulumi("stack", "export"))["deployment"]["resources"]
    stdin = next(each["inputs"]["stdin"] for each in resources if each["urn"].endswith("::dask-check"))
    line = next(line for line in stdin.splitlines() if line.startswith("EXPECT="))
    expect = json.loads(line.removeprefix("EXPECT=").strip("'")) | changes
    source = Path(check.__file__).read_text().replace("WAIT = 90", "WAIT = 2")
    variables = {"CHECK": source, "EXPECT": json.dumps(expect)}
    return machines["scheduler"].run(script("check", variables), check=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workers": ["worker-1-1", "worker-2-1", "worker-3-1"]}, "missing ['worker-3-1'], unexpected none"),
        ({"workers": ["worker-1-1"]}, "missing none, unexpected ['worker-2-1']"),
        ({"packages": {"dask": "2020.1.0"}}, "but 2020.1.0 in the lock"),
        ({"python": "3.9"}, "but 3.9 in the lock"),
        ({"data": "/var/tmp"}, "cannot read what"),
    ],
)
def test_a_failed_check_begins_with_the_reason(
    machines: Mapping[str, Machine], checkout: Checkout, changes: dict, said: str
) -> None:
    done = run_check(machines, checkout, **changes)
    assert done.returncode == 1
    assert done.stderr.startswith("check failed: ")
    assert said in done.stderr.splitlines()[0]
