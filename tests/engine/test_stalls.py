"""No program waits forever: each program that `up`, `connect` and `status` talk to hangs in turn, on this computer.

tests/machines/test_full_disk.py tests a full disk.
"""

import fcntl
import io
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from distributed.security import Security

from daskstack import connection, engine, kubectl, ssh, status_and_logs
from daskstack.engine import PROJECT
from daskstack.tunnel import Way
from on_this_computer import (
    check_namespace,
    check_release,
    confirm_ssh_access,
    read_host_key,
    send_environment,
    wait_for_deletion,
)
from tests.client_outputs import machines_client
from tests.engine.support import wait_for
from tests.scripts import script

PATIENCE = 60  # seconds; much longer than any limit here, for a busy computer


def ends(call: Callable[[], object]) -> str:
    """The error message of a call that must fail by itself within PATIENCE."""
    said: list[str] = []

    def run() -> None:
        try:
            call()
        except (Exception, SystemExit) as error:
            said.append(str(error))
        else:
            said.append("it did not fail")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert said, f"the call did not end within {PATIENCE} s"
    return said[0]


# ssh


def test_a_rejected_login_fails_with_the_message_of_ssh(project, sshd, keys):
    """The command sends more data than a pipe holds, and no process reads it."""
    refused = sshd.connection(private_key=keys.folder.joinpath("other").read_text())
    environment = {
        "LOCK": "environment.lock",
        "PYTHON": "3.11",
        "SOURCE": "wheelhouse",
        "SYSTEM": "",
        "JUPYTER": "",
        "CONNECTION": json.dumps(refused),
    }
    create = f"{sys.executable} -m on_this_computer.send_environment"
    said = project.fails(f"""
local.Command("files", create="{create}", dir="{PROJECT}", environment={environment})
""")
    assert "Permission denied" in said
    assert "copying the lock and wheels to /opt/daskstack on 127.0.0.1 failed" in said


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict]:
    """The connection of a server that accepts and never answers."""
    monkeypatch.setitem(ssh.OPTIONS, "ConnectTimeout", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {
            "host": "127.0.0.1",
            "port": server.getsockname()[1],
            "user": "admin",
            "host_key": "ssh-ed25519 AAAA",
            "private_key": "none",
        }


def test_every_program_of_up_times_out_if_a_machine_accepts_but_never_answers(silent, monkeypatch, tmp_path, capfd):
    folder = tmp_path / send_environment.FOLDER
    folder.mkdir()
    (folder / "wheel").write_bytes(bytes(1 << 20))
    assert "copying the lock and wheels to /opt/daskstack on 127.0.0.1 failed" in ends(
        lambda: send_environment.send(folder, silent)
    )
    assert "timed out" in capfd.readouterr().err

    monkeypatch.setattr(read_host_key, "ATTEMPTS", 1)
    monkeypatch.setattr(read_host_key, "ANSWER", 1)
    port = str(silent["port"])
    assert f"127.0.0.1 port {port} shows no ed25519 host key" in ends(
        lambda: read_host_key.read("127.0.0.1", port, None)
    )

    monkeypatch.setattr(confirm_ssh_access, "WAIT", 1)
    monkeypatch.setenv("CONNECTION", json.dumps(silent))
    monkeypatch.setenv("COMMAND", "true")
    monkeypatch.setattr(sys, "stdin", io.StringIO("true"))
    assert "a new SSH connection to 127.0.0.1" in ends(confirm_ssh_access.main)


def test_status_and_logs_time_out_if_a_machine_accepts_but_never_answers(silent):
    outputs = {"client": machines_client(), "admin": {"machines": {"head": silent}}}
    for ask in (lambda: status_and_logs.status(outputs), lambda: status_and_logs.journal(silent)):
        assert re.search("`ssh` ended with status 255: .*timed out", ends(ask), re.DOTALL)


def test_up_times_out_if_a_machine_never_finishes_receiving_files(monkeypatch, tmp_path):
    """Its sshd runs, but every command of root hangs."""
    program(tmp_path, "ssh", "exec sleep 600")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(send_environment, "WAIT", 1)
    folder = tmp_path / send_environment.FOLDER
    folder.mkdir()
    (folder / "wheel").write_bytes(bytes(1 << 20))
    machine = {"host": "10.1.0.1", "user": "admin", "host_key": "ssh-ed25519 AAAA"}
    assert ends(lambda: send_environment.send(folder, machine)) == "error: copying files to 10.1.0.1 took more than 1 s"


def program(folder: Path, name: str, text: str) -> None:
    """Writes an executable shell script with this name."""
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("text", [send_environment.TAKE, send_environment.REMOVE])
def test_remote_commands_work_in_every_login_shell(text):
    """One word in single quotes; csh interprets ! and line ends even there, and fish a backslash."""
    assert not set(text) & set("'\\!\n")
    subprocess.run(["bash", "-n", "-c", text], check=True)


# kubectl


@pytest.fixture
def dumb_kubectl(tmp_path, monkeypatch) -> None:
    program(tmp_path, "kubectl", "exec sleep 600")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    told = {"NAMESPACE": "dask", "CREATE": "yes", "STACK": "test", "RELEASE": "dask", "WAIT": "600", "CHECK": ""}
    for name, value in (told | {"EXPECT": "", "NOTEBOOK": "", "CLUSTER": json.dumps(CLUSTER)}).items():
        monkeypatch.setenv(name, value)
    for module, limit in (
        (check_namespace, "WAIT"),
        (wait_for_deletion, "ANSWER"),
        (check_release, "ANSWER"),
        (kubectl, "ANSWER"),
    ):
        monkeypatch.setattr(module, limit, 1)
    monkeypatch.setattr(kubectl, "WAIT", 1)


CLUSTER = {"kubeconfig": "/nowhere", "context": ""}


@pytest.mark.parametrize(
    ("call", "culprit"),
    [
        (
            check_namespace.main,
            "the cluster does not answer `kubectl version --output json`: kubectl did not answer within 1 s",
        ),
        (check_release.main, "`kubectl get deployments` did not answer within 1 s"),
        (
            wait_for_deletion.main,
            "the cluster's remaining resources cannot be listed: `kubectl get persistentvolumeclaims` did not answer",
        ),
        (lambda: kubectl.wake(CLUSTER, "dask"), "did not answer within 1 s"),
        (lambda: kubectl.forward(CLUSTER, "dask", ["x:1"]).__enter__(), "the port-forward did not open within 1 s"),
        (lambda: status_and_logs.ask(["kubectl", "logs"], wait=1), "`kubectl` did not answer completely within 1 s"),
    ],
    ids=["up's first look", "up's check", "destroy", "connect, which wakes", "connect", "status and logs"],
)
def test_a_hanging_kubectl_is_reported(dumb_kubectl, call, culprit):
    assert culprit in ends(call)


# The scheduler


@pytest.fixture(params=["tls"])
def stopped(request, tmp_path, monkeypatch) -> Iterator[str]:
    """The address of a scheduler stopped by SIGSTOP: its port accepts connections, but nothing answers."""
    if request.param == "tls":
        keys, prefix = Security.temporary(), "DASK_DISTRIBUTED__COMM__TLS__"
        monkeypatch.setenv(f"{prefix}CA_FILE", keys.tls_ca_file)
        for role in ("scheduler", "client"):
            for half in ("cert", "key"):
                monkeypatch.setenv(f"{prefix}{role}__{half}".upper(), getattr(keys, f"tls_{role}_{half}"))
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "dask", "scheduler", "--protocol", request.param, "--host", "127.0.0.1"]
    with (tmp_path / "log").open("w") as log:
        command += ["--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for("the scheduler is there", lambda: file.exists() and file.read_text(), seconds=PATIENCE)
        process.send_signal(signal.SIGSTOP)
        yield json.loads(file.read_text())["address"]
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("path", "limit", "arguments"),
    [
        ("on_the_cluster/check.py", "timeout=30", lambda address: [json.dumps({"address": address})]),
        ("daskstack/report_status.py", "timeout=20", lambda address: [address]),
        ("charts/dask/files/drain.py", "timeout=60", lambda address: [address, "--all-but", "worker-1-0"]),
    ],
    ids=["check", "status", "members"],
)
def test_programs_report_a_scheduler_that_hangs(stopped, path, limit, arguments):
    text = (PROJECT / path).read_text()
    assert limit in text
    command = [sys.executable, "-c", text.replace(limit, "timeout=1"), *arguments(stopped)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert re.search("the scheduler.* does not answer", done.stderr.splitlines()[-1])


@pytest.mark.parametrize("stopped", ["tcp"], indirect=True)  # a TLS handshake would time out earlier
def test_connect_times_out_if_the_scheduler_hangs(stopped, monkeypatch):
    @contextmanager
    def way(facts, targets, restarts):
        port = int(stopped.rpartition(":")[2])
        yield Way([port, port], lambda: "")

    minor = ".".join(platform.python_version_tuple()[:2])
    facts = machines_client(python=minor, scheduler=stopped, dashboard="http://127.0.0.1:1/status")
    monkeypatch.setattr(engine, "cluster", lambda stack: {"client": facts})
    monkeypatch.setattr(connection, "way_to", way)
    said = ends(lambda: connection.connect("mine", wakes=False, timeout=1))
    assert "the scheduler of stack mine does not answer" in said and "make status STACK=mine" in said


def test_a_check_that_times_out_blames_the_scheduler_or_workers():
    """If the scheduler hangs during the check, Dask itself waits forever."""
    step = script(
        "check",
        {"CHECK": "import time; time.sleep(600)", "EXPECT": "", "NOTEBOOK": "", "CONFIRMS": "", "PROVES": "all"},
    )
    step = step.replace("CHECK_LIMIT=240", 'CHECK_LIMIT=1\nin_environment() { timeout "$within" "$@"; }')
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-s"], input=step, env=environ, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert "the check timed out after 1 s, because the scheduler or workers do not answer" in done.stderr


# Package sources of steps


@pytest.mark.parametrize(("waited", "status"), [(5, "1"), (PATIENCE, "0")], ids=["for ever", "for a while"])
def test_a_held_package_lock_is_waited_for_and_reported(tmp_path, waited, status):
    """A new cloud machine holds this lock in its first minutes. The test runs the real apt-get on its own lists."""
    lists = tmp_path / "lists"
    (lists / "partial").mkdir(parents=True)
    config = tmp_path / "apt.conf"
    nothing = "".join(f'Dir::Etc::{name} "/dev/null";\n' for name in ("sourcelist", "sourceparts"))
    config.write_text(f'Dir::State::lists "{lists}";\nAPT::Sandbox::User "root";\n{nothing}')
    step = script("check", {}).partition("\nmain()")[0].replace("LOCKED=600", f"LOCKED={waited}")
    step += "\n(update_lists) && echo 0 || echo 1\nexit 0\n"
    with (lists / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            ["bash", "-s"], env=os.environ | {"APT_CONFIG": str(config)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        process.stdin.write(step)
        process.stdin.close()
        told = process.stderr.readline()
        if status == "0":
            fcntl.lockf(lock, fcntl.LOCK_UN)
        said, more = process.stdout.read(), process.stderr.read()
        process.wait(PATIENCE)
    assert "waiting for another program to release apt's lock" in told and f"{lists}/lock" in told
    assert said.strip() == status, more
    assert status == "0" or f"{lists}/lock" in more


def test_a_package_index_that_never_answers_is_reported(tmp_path):
    """Runs the functions of the real step with the test's folder instead of /opt."""
    handed_out = tmp_path / "files"
    handed_out.mkdir()
    collected = send_environment.collect(PROJECT / "environment.lock", "3.11", "wheelhouse")
    [uv] = collected.glob("uv-*.whl")
    (handed_out / uv.name).symlink_to(uv)
    (handed_out / "environment.lock").write_text(f"nowhere==1 --hash=sha256:{'0' * 64}\n")
    variables = {
        "SOURCE": "index",
        "SYSTEM": "",
        "UV": uv.name,
        "UV_SHA256": send_environment.sha256(uv),
        "UV_ENV": "",
        "CERTIFICATES": "",
        "PYTHON": "3.11",
    }
    variables |= {"LOCK_SHA256": send_environment.sha256(handed_out / "environment.lock"), "AUTHORITY_ADDRESS": ""}
    step = script("environment", variables).partition("\nmain()")[0]
    step = step.replace("OPT=/opt/daskstack", f"OPT={tmp_path}").replace("UV_SILENCE=30", "UV_SILENCE=1")
    step += '\ncopy_verified environment.lock "$LOCK_SHA256"; install_uv; make_environment; install_packages\n'
    with socket.create_server(("127.0.0.1", 0)) as server:
        index = f"http://127.0.0.1:{server.getsockname()[1]}/simple"
        environ = os.environ | {"UV_DEFAULT_INDEX": index, "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            ["bash", "-s"], input=step, env=environ, capture_output=True, text=True, timeout=2 * PATIENCE
        )
    assert done.returncode == 1
    assert "uv could not install the lock's packages" in done.stderr
    assert index in done.stderr, done.stderr
