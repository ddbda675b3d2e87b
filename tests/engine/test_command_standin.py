"""The limits and messages of the stand-in for the plugin `command`; test_command_plugin.py tests the contract."""

import os
import signal

import pytest

from daskstack.engine import COMMAND
from tests.engine.test_command_plugin import at, both, copying

PLUGIN = "resource", "command", COMMAND
pytestmark = pytest.mark.usefixtures("stand_in")


def test_the_stand_in_rejects_unsupported_inputs_by_name_and_announces_itself_once(project):
    report = project.fails("""
for name in "ab":
    local.Command(name, create="true")
local.Command("it", create="true", asset_paths=["*"])
""")
    assert "assetPaths of command:local:Command; install the official plugin" in report
    assert report.count("is a stand-in") == 1
    for program, refused in (
        ("remote.CopyFile('it', connection={'host': 'h'}, local_path='a', remote_path='b')", "command:remote:CopyFile"),
        ("pulumi.export('it', local.run_output(command='true').stdout)", "command:local:run"),
    ):
        project.write(program)
        output = project.run("up", "--yes", "--skip-preview", succeeds=False)
        assert f"{refused}; install the official plugin" in output


def test_a_failing_command_shows_its_last_lines_and_no_secret(project, sshd):
    report = project.fails(
        both(
            sshd,
            """
            Command(f"{place}-long", create="seq 1000 1300; echo bad >&2; exit 7", logging="none")
            Command(f"{place}-secret", create=secret("true private-script; exit 3"), stdin=secret("private-stdin"))
            """,
        )
    )
    assert report.count('status 7: running "seq 1000 1300; echo bad >&2; exit 7":') >= 2
    assert "1300\n" in report
    assert "1100\n" not in report
    assert report.count('status 3: running "[secret]"') >= 2
    assert "private-" not in report


def test_each_kind_of_connection_failure_has_its_own_message(project, sshd, make_sshd, keys, tmp_path):
    keys.make("ecdsa", kind="ecdsa")
    private = keys.make("locked", passphrase="open sesame").read_text()
    closed, silent, breaking = (make_sshd(name) for name in ("closed", "silent", "breaking"))
    closed.start("AllowTcpForwarding no"), silent.start(), breaking.start()
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "tree").mkdir()
    wrong = sshd.connection(host_key=keys.public("other"), dial_error_limit=10)
    connections = {
        "wrong": wrong,
        "lacking": sshd.connection(host_key=keys.public("ecdsa")),
        "closed": sshd.connection(proxy=closed.connection()),
        "wrong-proxy": sshd.connection(proxy=wrong),
        "absent": make_sshd("absent").connection(dial_error_limit=2),
        "silent": silent.connection(per_dial_timeout=1),
        "locked": sshd.connection(private_key=private),
    }
    os.kill(silent.pid, signal.SIGSTOP)
    try:
        report = project.fails(
            "".join(at(connection, name, create="true") for name, connection in connections.items())
            + at(breaking.connection(), "breaking", create="echo begun; kill -9 $PPID; sleep 5")
            + at(sshd.connection(), "environment", create="echo did run", environment={"OWN": "refused"})
            + copying(
                sshd,
                nowhere=("FileAsset('Pulumi.yaml')", tmp_path / "no" / "where"),
                file=(f"FileArchive('{tmp_path}/tree')", tmp_path / "file"),
            )
        )
    finally:
        os.kill(silent.pid, signal.SIGCONT)
    fingerprints = f"expected {keys.fingerprint('other')}, found {keys.fingerprint('host')}"
    assert report.count(f"127.0.0.1:{sshd.port} differs from connection.hostKey: {fingerprints}") >= 2
    for words in (
        "does the server have a host key of the pinned type ecdsa-sha2-nistp256?",
        "open failed",
        "after 3 failed attempts",
        "Connect call failed",
        "timed out after 1 s",
        "cannot read connection.privateKey",
        "connection to 127.0.0.1 was",
        "could not set environment variable OWN",
        "AcceptEnv",
        f"{tmp_path}/no/where: No such file",
        f"{tmp_path}/file exists but is not a directory",
    ):
        assert words in report
    assert "did run" not in report


def test_a_wrong_host_key_is_not_retried_and_a_rejected_previous_output_only_warns(project, sshd, make_sshd, keys):
    strange = make_sshd("strange").start()
    known = make_sshd("known").start()
    program = at(known.connection(), "known", create="echo %s")
    project.up(program % "one")
    assert "warning: 127.0.0.1 refused the variable PULUMI_COMMAND_STDOUT" in project.up(program % "two")
    quiet = at(known.connection(), "known", create="true", add_previous_output_in_env=False)
    # One connection attempt instead of the eleven for a server that does not answer.
    wrong = strange.connection(host_key=keys.public("other"), dial_error_limit=10)
    report = project.fails(quiet + at(wrong, "strange", create="true"))
    assert "refused the variable" not in report
    assert strange.connections == 1
