"""A local port is used only if our own ssh or kubectl listens on it."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daskstack import cluster_commands, kubectl, tunnel
from daskstack.tunnel import TunnelError
from tests.client_outputs import machines_client
from tests.engine.support import Keys, Sshd, wait_for


@contextmanager
def another_program(port: int = 0) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(0.2)
        yield server


def port_of(server: socket.socket) -> int:
    return server.getsockname()[1]


def nothing_was_sent(server: socket.socket) -> bool:
    with pytest.raises(TimeoutError):
        server.accept()
    return True


@pytest.mark.parametrize("bastion", [False, True])
def test_a_tunnel_leads_to_its_target_and_ends_with_its_context(
    sshd: Sshd, bastion: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a folder"))
    connection = sshd.connection(proxy=sshd.connection() if bastion else None)
    with another_program() as target:
        with tunnel.tunnel(connection, [f"127.0.0.1:{port_of(target)}"]) as way:
            with socket.create_connection(("127.0.0.1", way.ports[0]), timeout=5) as here:
                target.settimeout(10)
                there, _ = target.accept()
                there.sendall(b"the target")
                assert here.recv(20) == b"the target"
                there.close()
            assert way.fault() == ""
        assert not tunnel.opens(way.ports[0])


def test_a_port_held_by_another_program_is_not_taken_for_a_tunnel(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    with another_program() as theirs:
        monkeypatch.setattr(tunnel, "free_port", lambda: port_of(theirs))
        with (
            pytest.raises(TunnelError, match=r"did not open: .*Address already in use"),
            tunnel.tunnel(sshd.connection(), ["127.0.0.1:1"]),
        ):
            pass
        assert nothing_was_sent(theirs)


def test_a_machine_with_a_wrong_host_key_gets_no_data(sshd: Sshd, keys: Keys) -> None:
    with (
        pytest.raises(TunnelError, match="Host key verification failed"),
        tunnel.tunnel(sshd.connection(host_key=keys.public("other")), ["127.0.0.1:1"]),
    ):
        pass
    assert "Accepted" not in sshd.log.read_text()


def test_a_silent_ssh_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "WAIT", 1)
    with another_program() as silent:
        connection = {"host": "127.0.0.1", "port": port_of(silent), "user": "x", "host_key": "ssh-ed25519 AAAA"}
        with pytest.raises(TunnelError, match="did not open within 1 s"), tunnel.tunnel(connection, ["127.0.0.1:1"]):
            pass


def test_the_holder_of_a_tunnel_is_notified_when_it_ends(sshd: Sshd, capsys: pytest.CaptureFixture) -> None:
    facts = machines_client(tunnel=sshd.connection())
    printed, real = [], cluster_commands.time.sleep

    def sleep(seconds: float) -> None:
        printed.append(capsys.readouterr().out)
        for pid in _sessions(sshd):
            os.kill(pid, 9)
        real(0.2)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(TunnelError, match="the SSH tunnel has ended"):
        patch.setattr(cluster_commands.time, "sleep", sleep)
        cluster_commands.keep_open(facts, "it", "127.0.0.1:1", "path")
    assert "it: http://127.0.0.1:" in printed[0]


@pytest.mark.parametrize("rule", ["AllowTcpForwarding no", "DisableForwarding yes", "PermitOpen 127.0.0.1:2"])
def test_a_tunnel_that_sshd_forbids_names_the_rules_to_look_for(make_sshd: Callable[[str], Sshd], rule: str) -> None:
    """ssh itself keeps running, and accepts connections to its port."""
    sshd = make_sshd("strict").start(rule)
    with tunnel.tunnel(sshd.connection(), ["127.0.0.1:1"]) as way:
        assert way.fault() == ""
        with socket.create_connection(("127.0.0.1", way.ports[0]), timeout=5) as here:
            assert here.recv(1) == b""
        wait_for("the reason", lambda: bool(way.fault()))
        fault = way.fault()
    assert "open failed: administratively prohibited" in fault and "AllowTcpForwarding" in fault


def test_a_bastion_that_forwards_nothing_is_named(sshd: Sshd, make_sshd: Callable[[str], Sshd]) -> None:
    connection = sshd.connection(proxy=make_sshd("gate").start("AllowTcpForwarding no").connection())
    with (
        pytest.raises(TunnelError, match="stdio forwarding failed; sshd of the bastion forwards no connections"),
        tunnel.tunnel(connection, ["127.0.0.1:1"]),
    ):
        pass


def test_a_stopped_target_is_no_fault_of_the_tunnel(sshd: Sshd) -> None:
    with (
        tunnel.tunnel(sshd.connection(), ["127.0.0.1:1"]) as way,
        socket.create_connection(("127.0.0.1", way.ports[0]), timeout=5) as here,
    ):
        assert here.recv(1) == b""
        assert way.fault() == ""


def test_an_agent_with_too_many_keys_is_named_with_the_remedy(
    make_sshd: Callable[[str], Sshd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sshd, socket_path = make_sshd("strict").start("MaxAuthTries 1"), tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket_path], stdout=subprocess.DEVNULL)
    try:
        wait_for("the agent", socket_path.exists)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket_path))
        for name in ("a", "b"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
            subprocess.run(["ssh-add", "-q", tmp_path / name], check=True)
        connection = sshd.connection()
        del connection["private_key"]
        with (
            pytest.raises(TunnelError, match=r"Too many authentication failures; .*ssh-add -D; .*dask:sshKey"),
            tunnel.tunnel(connection, ["127.0.0.1:1"]),
        ):
            pass
    finally:
        agent.terminate()
        agent.wait()


def _sessions(sshd: Sshd) -> list[int]:
    """The server's connection processes."""
    return [int(pid) for pid in Path(f"/proc/{sshd.pid}/task/{sshd.pid}/children").read_text().split()]


def test_a_tunnel_that_ends_is_opened_again_on_the_same_port(
    sshd: Sshd, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "PAUSE", 0.1)
    with another_program() as target:
        target.settimeout(10)
        with tunnel.tunnel(sshd.connection(), [f"127.0.0.1:{port_of(target)}"], restarts=True) as way:
            for pid in _sessions(sshd):
                os.kill(pid, 9)
            wait_for("it ended", lambda: "trying again" in capsys.readouterr().err)
            wait_for("it is open again", lambda: way.fault() == "")
            with socket.create_connection(("127.0.0.1", way.ports[0]), timeout=5) as here:
                there, _ = target.accept()
                there.sendall(b"the target")
                assert here.recv(20) == b"the target"
                there.close()
        assert not tunnel.opens(way.ports[0])


def test_a_tunnel_is_not_opened_again_on_a_port_that_another_program_took(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "PAUSE", 1)
    with tunnel.tunnel(sshd.connection(), ["127.0.0.1:1"], restarts=True) as way:
        for pid in _sessions(sshd):
            os.kill(pid, 9)
        wait_for("the port is free", lambda: not tunnel.opens(way.ports[0]))
        with another_program(way.ports[0]):
            wait_for("the fault", lambda: "Address already in use" in way.fault())


KUBECTL = """#!{python}
import os, socket, sys, time
here = int(sys.argv[-1].partition(":")[0] or 0)
with open(__file__ + ".ports", "a") as file:
    print(os.getpid(), here, file=file)
try:
    server = socket.create_server(("127.0.0.1", here))
except OSError as error:
    sys.exit(f"Unable to listen on port {{here}}: {{error}}\\nerror: unable to listen on any of the requested ports")
print(f"Forwarding from 127.0.0.1:{{server.getsockname()[1]}} -> 8787", flush=True)
time.sleep(600)
"""


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[int, int]]]:
    """A fake kubectl that behaves like the real one. Returns the process and requested port of each start."""
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    ports = tmp_path / "kubectl.ports"
    return lambda: [tuple(map(int, line.split())) for line in ports.read_text().splitlines()]


def test_a_port_forward_restarts_on_the_port_that_kubectl_chose(
    started: Callable[[], list[tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubectl, "PAUSE", 0.1)
    with kubectl.forward({"kubeconfig": "/x"}, "n", ["dask-webui:80"]) as way:
        [(pid, asked)] = started()
        assert asked == 0
        os.kill(pid, 9)
        wait_for("another one", lambda: len(started()) == 2)
        assert started()[1][1] == way.ports[0]
        wait_for("it listens", lambda: tunnel.opens(way.ports[0]))
        assert way.fault() == ""


def test_a_port_forward_does_not_restart_if_another_program_took_its_port(
    started: Callable[[], list[tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubectl, "PAUSE", 0.5)
    with kubectl.forward({"kubeconfig": "/x"}, "n", ["dask-webui:80"]) as way:
        os.kill(started()[0][0], 9)
        wait_for("the port is free", lambda: not tunnel.opens(way.ports[0]))
        with another_program(way.ports[0]):
            wait_for("the fault", lambda: "another program has taken port" in way.fault())
