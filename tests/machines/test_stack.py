"""A complete stack on real machines, built with `make up` like a user's, from the first job to its removal."""

import asyncio
import base64
import functools
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from http.cookiejar import CookieJar
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import dask
import dask.dataframe as dd
import distributed
import fsspec
import pandas
import psutil
import pytest

import daskstack
from daskstack import access_file, cluster_commands, connection, engine, private_folder, ssh
from daskstack.route import way_to
from on_the_cluster import check
from rehearsal.machines import Machine, run, until
from settings import lock
from tests import access
from tests.checkout import Checkout
from tests.notebooks import log_in, page, run_cell
from tests.outside import Outside
from tests.scripts import script
from tests.tls import accepts, imitated
from tests.work import tunnels, wait_until_working

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
    for machine, unit in (
        ("scheduler", "dask-scheduler"),
        ("scheduler", "dask-job@1"),
        ("worker-1", "dask-worker@1"),
    ):
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
    keys, before = set(private_folder.place().iterdir()), tunnels()
    with daskstack.connect("dev") as client:
        assert client.submit(sum, [1, 2, 3]).result(timeout=60) == 6
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        assert urllib.request.urlopen(client.dashboard_link, timeout=60).status == 200
        assert len(tunnels() - before) == 1
    assert not tunnels() - before
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


def test_workers_of_local_machines_do_not_use_all_memory_of_this_computer(checkout: Checkout) -> None:
    said = checkout.make("status")
    assert re.findall(r"of (\S+ GiB)", said) == ["2.0 GiB"] * 2


def test_check_and_ssh_work_on_the_running_cluster(checkout: Checkout) -> None:
    def said(*words: str) -> str:
        command = [".venv/bin/daskstack", *words]
        return run(command, cwd=checkout.folder, env=checkout.environ, seconds=300).stdout

    before = checkout.pulumi("stack", "export")
    table = said("check")
    whole = (
        r"^workers +2 running.*^job .* correct for 26 names in [\d.]+ s$.*"
        r"^jupyter +7 packages can be imported\n\Z"
    )
    assert re.search(whole, table, re.MULTILINE | re.DOTALL)
    assert checkout.pulumi("stack", "export") == before
    assert said("ssh", "worker-1", "hostname") == "worker-1\n"
    assert said("ssh", "scheduler", "echo $((1 + 1));", "exit 0") == "2\n"


def test_a_daskdata_url_names_the_same_file_on_this_computer_and_in_tasks(checkout: Checkout) -> None:
    """As in a notebook on this computer, where pandas and Dask use the URL too."""
    folder = f"daskdata://{uuid.uuid4()}"

    def work() -> tuple[int, int]:
        read = pandas.read_parquet(f"{folder}/series")
        pandas.DataFrame({"a": [1, 2]}).to_csv(f"{folder}/task.csv", index=False)
        return len(read), len(dd.read_csv(f"{folder}/here.csv"))

    with daskstack.connect("dev") as client:
        files = fsspec.filesystem("daskdata")
        files.mkdir(folder)
        rows = len(frame := dask.datasets.timeseries(end="2000-01-03"))
        frame.to_parquet(f"{folder}/series")
        assert len(dd.read_parquet(f"{folder}/series")) == len(pandas.read_parquet(f"{folder}/series")) == rows
        pandas.DataFrame({"a": [1, 2, 3]}).to_csv(f"{folder}/here.csv", index=False)
        assert client.submit(work).result(timeout=120) == (rows, 3)
        assert pandas.read_csv(f"{folder}/task.csv").a.sum() == dd.read_csv(f"{folder}/task.csv").a.sum().compute() == 3
        script = f"import pandas; print(len(pandas.read_csv('{folder}/here.csv')))"
        assert checkout.machines()["scheduler"].ssh("/opt/daskstack/bin/python -", stdin=script).stdout == "3\n"
        files.rm(folder, recursive=True)
        assert not client.submit(os.path.exists, f"/srv/daskdata/{folder[11:]}", pure=False).result(timeout=60)


def test_files_are_copied_in_both_directions_and_ssh_reaches_every_machine(checkout: Checkout, tmp_path: Path) -> None:
    def said(*words: str, check: bool = True) -> str:
        done = run(
            [".venv/bin/daskstack", *words], cwd=checkout.folder, env=checkout.environ, seconds=300, together=True,
            check=check,
        )  # fmt: skip
        return done.stdout

    source = tmp_path / "a folder"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("hello")
    said("put", str(source), "copied/there/")
    assert "sub" in said("ls", "daskdata://copied/there/a folder")
    said("get", "copied/there/a folder", f"{tmp_path}/back/")
    assert (tmp_path / "back" / "a folder" / "sub" / "file").read_text() == "hello"
    assert "missing: /srv/daskdata/copied/nothing" in said("get", "copied/nothing", str(tmp_path), check=False)
    config = tmp_path / "config"
    config.write_text(said("ssh-config"))
    for name in ("scheduler", "worker-2"):
        assert run(["ssh", "-F", config, f"dev-{name}", "hostname"], seconds=60).stdout == f"{name}\n"
    checkout.machines()["scheduler"].ssh("rm -r /srv/daskdata/copied")


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
        children = psutil.Process(process.pid).children()
        assert [each.name() for each in children] == ["ssh"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "Traceback" not in said.read_text()
        until(lambda: not any(each.is_running() for each in children))
    finally:
        process.kill()
        process.wait()


def test_a_notebook_computes_on_the_cluster_and_shows_its_dashboard(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    """It has the lock's packages, and is in the shared directory. No TCP port shows what its kernel prints."""
    code = """
        import importlib.metadata, ipykernel, json, os
        from distributed import Client
        locked = {name: importlib.metadata.version(name) for name in LOCKED}
        channels = json.loads(ipykernel.get_connection_info())["transport"]
        with Client(timeout=60) as client:
            total = client.submit(sum, range(10)).result(60)
            print(json.dumps([total, client.dashboard_link, os.getcwd(), locked, channels]))
    """
    locked = lock.read(checkout.folder / "environment.lock", "3.11").packages
    outputs = engine.cluster("dev")
    facts, password = outputs["client"], outputs["jupyterPassword"]
    with way_to(facts, [facts.jupyter]) as way:
        [port], jar = way.ports, CookieJar()
        assert not log_in(port, "dask")
        assert log_in(port, password, jar)
        said = run_cell(port, jar, textwrap.dedent(code).replace("LOCKED", repr(list(locked))))
        total, link, folder, found, channels = json.loads(said)
        assert (total, folder, found, channels) == (45, "/srv/daskdata/notebooks", locked, "ipc")
        assert link == f"/proxy/{machines['scheduler'].address}:8787/status"
        assert "Dask Diagnostic UI" in page(port, link, jar)
        panel = json.loads(page(port, "/lab/api/settings/dask-labextension:plugin", jar))["schema"]["properties"]
        assert panel["defaultURL"]["default"] == link.removesuffix("/status")
        assert "Dask Diagnostic UI" not in page(port, link, CookieJar()), "without a login"


def test_notebooks_and_tasks_cannot_use_each_others_files(checkout: Checkout, machines: Mapping[str, Machine]) -> None:
    """Neither can they use those of root. A notebook acts as a task through Dask alone."""
    shown = machines["scheduler"].ssh("systemctl show dask-jupyter -p User -p NoNewPrivileges -p CapabilityBoundingSet")
    assert set(shown.stdout.split()) == {"User=dask-jupyter", "NoNewPrivileges=yes", "CapabilityBoundingSet="}

    def refused(paths: Sequence[str]) -> list[str]:
        import os

        found = []
        for path in paths:
            try:
                os.scandir(path) if os.path.isdir(path) else os.open(path, os.O_RDONLY)
            except PermissionError:
                found.append(path)
        return found

    of_jupyter = [f"/etc/daskstack/jupyter/{name}" for name in ("key.pem", "jupyter_server_config.json")]
    of_jupyter += ["/var/lib/daskstack/jupyter", "/run/dask-jupyter"]
    of_dask = [f"/etc/daskstack/{name}" for name in ("tls/key.pem", "ssh/id_ed25519", "authority", "secret.env")]
    of_dask += ["/var/lib/daskstack/home", "/var/lib/daskstack/data"]
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with daskstack.connect("dev") as client:
        assert client.run_on_scheduler(refused, of_jupyter) == of_jupyter
    program = f"{textwrap.dedent(inspect.getsource(refused))}\nprint(json.dumps(refused({of_dask})))"
    outputs = engine.cluster("dev")
    facts, password = outputs["client"], outputs["jupyterPassword"]
    with way_to(facts, [facts.jupyter]) as way:
        jar = CookieJar()
        assert log_in(way.ports[0], password, jar)
        said = run_cell(way.ports[0], jar, f"import json\nfrom collections.abc import Sequence\n{program}")
    assert json.loads(said) == of_dask


def test_the_login_user_runs_scripts_on_the_scheduler_without_lending_tasks_its_rights(
    checkout: Checkout, machines: Mapping[str, Machine]
) -> None:
    head, python = machines["scheduler"], "/opt/daskstack/bin/python"
    code = "import getpass, sys\nfrom distributed import Client\n"
    code += "print(Client(timeout=30).submit(sum, [1, 2]).result(60), sys.argv[1:], getpass.getuser())\n"
    code += "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('NoNewPrivs')])\n"
    head.ssh("install -m 0600 /dev/stdin ~/job.py", stdin=code)
    try:
        assert head.ssh(f"{python} - 'a b' <~/job.py").stdout == "3 ['a b'] dask\n['1']\n"
        denied = head.ssh(f"{python} ~/job.py", check=False)
        assert denied.returncode == 1
        assert f"cannot read /home/admin/job.py: move it to /srv/daskdata, or write {python} - <" in denied.stderr
    finally:
        head.ssh("rm ~/job.py")
    assert head.ssh(f"{python} -c 'import sys; sys.exit(7)'", check=False).returncode == 7
    # A task could type commands into a terminal that it shares with its caller.
    terminals = f"script -qec 'tty; {python} -c \"import os; print(os.ttyname(0))\"' /dev/null </dev/null"
    ours, theirs = re.findall(r"/dev/pts/\d+", head.ssh(terminals).stdout)
    assert ours != theirs


@pytest.mark.parametrize("whose", ["owner", "person"])
def test_a_clients_credentials_open_dask_and_nothing_else(
    checkout: Checkout, machines: Mapping[str, Machine], whose: str, tmp_path: Path
) -> None:
    outputs = engine.cluster("dev")
    facts = outputs["client"]
    if whose == "person":
        facts = access_file.read(*access.give(checkout, tmp_path, "grace")).client
        assert facts.tunnel["private_key"] != outputs["client"].tunnel["private_key"]
    assert facts.tunnel["private_key"] not in [each["private_key"] for each in outputs["admin"]["machines"].values()]
    door, address = facts.tunnel, machines["scheduler"].address

    def refused(*options: str, words: Sequence[str] = ()) -> str:
        with ssh.command(connection) as command:
            done = subprocess.run(
                [*command[:-1], *options, command[-1], *words],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
        assert done.returncode, done.stdout
        assert done.stdout == ""
        return done.stderr

    connection = door
    for words in (["true"], ["list;id"], ["ended", "1"], []):
        assert "only daskstack uses this login" in refused(words=words)
    refused("-s", words=["sftp"])
    assert "PTY allocation request failed" in refused("-tt", "-oLogLevel=INFO")
    for target in ("127.0.0.1:22", f"{address}:22", f"{address}:9000", f"{machines['worker-1'].address}:22"):
        assert "forwarding failed" in refused("-W", target)
    assert "forwarding failed" in refused("-N", "-oExitOnForwardFailure=yes", "-R", "0:127.0.0.1:22")
    for name, machine in machines.items():
        for user in ("root", "admin", "dask", *([] if name == "scheduler" else ["dask-tunnel"])):
            connection = {**door, "host": machine.address, "host_key": machine.host_key, "user": user}
            assert "Permission denied" in refused(words=["true"])
    if whose == "person":
        access.command(checkout, "revoke", "grace")


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
        machines["worker-1"].ssh("sudo pkill -KILL -f '^sshfs dask@[^ ]* /dev/fd/'")

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


def test_a_client_works_again_after_its_ssh_tunnel_has_ended(checkout: Checkout) -> None:
    def answer(client: daskstack.Client) -> int:
        try:
            return client.submit(sum, range(100), pure=False).result(60)
        except CancelledError:  # submitted before the client noticed the lost connection
            return 0

    before = tunnels()
    with daskstack.connect("dev") as client:
        assert answer(client) == 4950
        client.publish_dataset(kept=client.scatter([1, 2, 3]))
        [tunnel] = tunnels() - before
        tunnel.kill()
        until(lambda: answer(client) == 4950)
        assert client.gather(client.get_dataset("kept")) == [1, 2, 3]
        client.unpublish_dataset("kept")


def test_a_stack_is_a_cluster_of_dask_that_connects_again_and_stays_when_closed(
    checkout: Checkout, capsys: pytest.CaptureFixture
) -> None:
    before = tunnels()
    with daskstack.StackCluster("dev") as cluster, cluster.get_client() as client:
        cluster.wait_for_workers(2, timeout=120)
        assert client.submit(sum, [1, 2]).result(60) == 3
        with distributed.Client(cluster) as plain:
            assert plain.submit(sum, [3, 4]).result(60) == 7
        assert repr(cluster).startswith("StackCluster(dev, 'tls://127.0.0.1:")
        with urllib.request.urlopen(cluster.dashboard_link, timeout=60) as page:
            assert page.status == 200
        assert {"Cluster", "Scheduler", *cluster.scheduler_info["workers"]} == cluster.get_logs().keys()
        [tunnel] = tunnels() - before
        tunnel.kill()
        until(lambda: "stack dev: connected again" in capsys.readouterr().out)
        cluster.wait_for_workers(2, timeout=120)
        until(lambda: client.status == "running" and client.submit(sum, [5, 6]).result(60) == 11)
    assert not tunnels() - before

    async def asynchronous() -> int:
        async with (
            daskstack.StackCluster("dev", asynchronous=True) as cluster,
            distributed.Client(cluster, asynchronous=True) as client,
        ):
            return await client.submit(sum, [7, 8])

    assert asyncio.run(asynchronous()) == 15, "the stack still runs"


def test_a_different_python_is_rejected_with_a_remedy(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.importlib.metadata, "version", lambda name: "1.2.3")
    with pytest.raises(
        daskstack.connection.VersionError, match=r"dask \(1.2.3, there .*python -m daskstack sync --stack dev"
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
    library = "systemd-run -q --unit=library python3 -m http.server 43210"
    for machine in machines.values():
        machine.run(f"systemctl stop library 2>/dev/null; {library}")
    try:
        everyone = "; ".join(f"exec 3<>/dev/tcp/{machine.address}/43210" for machine in machines.values())
        until(lambda: head.run(f"set -e; {everyone}", check=False).returncode == 0)
        with ThreadPoolExecutor() as pool:
            assert list(pool.map(outside.open_ports, machines.values())) == [[]] * len(machines)
        # The scan finds these ports when they are open.
        head.run("systemctl stop firewalld")
        try:
            opened = set(outside.open_ports(head))
            assert {22, 8786, 8787} <= opened
            assert 8888 not in opened, "the notebook server listens on the loopback interface"
        finally:
            head.run("systemctl start firewalld")
        until(lambda: not outside.connects(head, 22))  # it reports that it runs shortly before its rules are loaded
    finally:
        outside.remove()
        for machine in machines.values():
            machine.run("systemctl stop library")


def test_200_connections_at_once_reach_the_schedulers_sshd(machines: Mapping[str, Machine]) -> None:
    """While machines join, each makes connections to it. OpenSSH's default is to drop them from the tenth on."""
    connections = [socket.create_connection((machines["scheduler"].address, 22), timeout=60) for _ in range(200)]
    try:
        assert all(each.recv(8).startswith(b"SSH-2.0") for each in connections)
    finally:
        for each in connections:
            each.close()


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
    stdin = cluster_commands.plain(checkout.resources()["dask-check"]["inputs"])["stdin"]
    line = next(line for line in stdin.splitlines() if line.startswith("EXPECT="))
    expect = json.loads(line.removeprefix("EXPECT=").strip("'")) | changes
    source = Path(check.__file__).read_text().replace("WAIT = 90", "WAIT = 2")
    variables = {"CHECK": source, "EXPECT": json.dumps(expect), "NOTEBOOK": "", "PROVES": "something else"}
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
