"""What the plugin `command` does for a program, seen through the real engine and a real sshd."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.engine.support import descendants, processes, wait_for


@pytest.fixture(params=["local", "remote"])
def command(request):
    """How a program begins a command: on this machine, or on a real sshd. For what both promise."""
    if request.param == "local":
        return "local.Command('it', "
    return f"remote.Command('it', connection={request.getfixturevalue('sshd').connection()}, "


def at(connection, **arguments):
    """A program that is one remote command."""
    return f"remote.Command('it', connection={connection}, **{arguments})"


def test_create_update_and_delete_run_in_turn_and_each_gets_stdin(project, command, tmp_path):
    log = tmp_path / "did"

    def program(stdin):
        return f"""
it = {command}
    create="(echo create; cat) | tee -a {log}",
    update="(echo update; cat) >> {log}; echo updated; echo why >&2",
    delete="(echo delete; cat) >> {log}",
    stdin="{stdin}",
    logging="none",
)
pulumi.export("it", [it.stdout, it.stderr])
"""

    project.up(program("first"))
    assert project.outputs() == {"it": ["create\nfirst", ""]}
    log.write_text("")
    project.up(program("second"))
    assert project.outputs() == {"it": ["updated", "why"]}
    assert log.read_text() == "update\nsecond"
    log.write_text("")
    project.run("destroy", "--yes", "--skip-preview")
    assert log.read_text() == "delete\nsecond"


def test_a_change_runs_create_again_where_there_is_no_update(project, command):
    project.up(f"{command} create='echo one')")
    assert "two" in project.up(f"{command} create='echo two')")


def test_triggers_replace_and_the_old_ones_delete_runs_last(project, tmp_path):
    log = tmp_path / "did"
    program = f"local.Command('it', create='echo create >> {log}', delete='echo delete >> {log}', triggers=[%d])"
    project.up(program % 1)
    assert "to replace" in project.preview(program % 2)
    project.up(program % 2)
    assert log.read_text().split() == ["create", "create", "delete"]


def test_a_local_command_has_its_environment_folder_and_interpreter(project, tmp_path):
    project.environment["INHERITED"] = "from outside"
    output = project.up(f"""
local.Command(
    "it",
    create="import os; print(os.environ['INHERITED'], os.environ['OWN'], os.getcwd())",
    environment={{"OWN": "from the program"}},
    dir="{tmp_path}",
    interpreter=["python3", "-c"],
)
""")
    assert f"from outside from the program {tmp_path}\n" in output


def test_an_update_finds_the_previous_output_in_its_environment(project):
    show = "'echo so: $PULUMI_COMMAND_STDOUT, $PULUMI_COMMAND_STDERR.'"
    project.up("local.Command('it', create='echo out; echo err >&2')")
    assert "so: out, err." in project.up(f"local.Command('it', create={show})")
    assert "so: , ." in project.up(f"local.Command('it', create={show}, add_previous_output_in_env=False)")


def test_a_remote_environment_needs_a_server_that_accepts_it(project, make_sshd, sshd):
    script = {"create": "echo did run $OWN", "environment": {"OWN": "taken"}}
    report = project.fails(at(sshd.connection(), **script))
    assert "could not set environment variable OWN" in report
    assert "AcceptEnv" in report
    assert "did run" not in report
    accepting = make_sshd("accepting").start("AcceptEnv OWN")
    assert "did run taken" in project.up(at(accepting.connection(), **script))


def test_a_refused_previous_output_is_a_warning_alone(project, sshd):
    project.up(at(sshd.connection(), create="echo one"))
    output = project.up(at(sshd.connection(), create="echo two"))
    assert "warning: 127.0.0.1 refused the variable PULUMI_COMMAND_STDOUT" in output
    assert "refused" not in project.up(at(sshd.connection(), create="true", add_previous_output_in_env=False))


def test_output_is_shown_line_by_line_while_the_command_runs(project, command):
    project.up(f"{command} create='echo early; echo also >&2; sleep 1; echo late')")
    assert project.seen("late") - project.seen("early") > 0.7
    assert project.seen("late") - project.seen("also") > 0.7


def test_logging_says_what_is_shown(project):
    output = project.up("""
for logging in ("stdout", "stderr", "stdoutAndStderr", "none"):
    local.Command(logging, create=f"echo OUT-{logging}; echo ERR-{logging} >&2", logging=logging)
""")
    words = {f"{stream}-{logging}" for stream in ("OUT", "ERR") for logging in ("stdout", "stderr", "none")}
    assert {word for word in words if word + "\n" in output} == {"OUT-stdout", "ERR-stderr"}
    assert "OUT-stdoutAndStderr" in output
    assert "ERR-stdoutAndStderr" in output


def test_a_failing_command_shows_its_status_and_last_lines(project, command):
    report = project.fails(f"{command} create='seq 1000 1300; echo bad >&2; exit 7', logging='none')")
    assert 'status 7: running "seq 1000 1300; echo bad >&2; exit 7":' in report
    assert "1300\n" in report
    assert "bad" in report
    assert "1100\n" not in report
    assert "+ 1 created" in project.up(f"{command} create='true')"), "what failed must not count as created"


def test_a_failed_update_is_tried_again(project, tmp_path):
    project.up("local.Command('it', create='true')")
    program = f"local.Command('it', create='test -e {tmp_path}/there')"
    project.fails(program)
    (tmp_path / "there").touch()
    assert "1 updated" in project.up(program)


def test_a_secret_stays_secret_in_state_and_errors(project, command):
    program = f"{command} create=secret('true private-script; exit %d'), stdin=secret('private-stdin'))"
    project.up(program % 0)
    report = project.fails(program % 3)
    assert 'status 3: running "[secret]"' in report
    for text in (report, project.stored()):
        assert "private-" not in text
        assert "PRIVATE KEY" not in text


@pytest.mark.parametrize(
    ("program", "refused"),
    [
        ("local.Command('it', create='true', asset_paths=['*'])", "assetPaths of command:local:Command"),
        ("remote.CopyFile('it', connection={'host': 'h'}, local_path='a', remote_path='b')", "remote:CopyFile"),
        ("pulumi.export('it', local.run_output(command='true').stdout)", "command:local:run"),
    ],
)
def test_what_the_stand_in_does_not_do_it_refuses_by_name(project, program, refused):
    project.write(program)
    output = project.run("up", "--yes", "--skip-preview", succeeds=False)
    assert f"{refused}; install the official plugin" in output


def test_the_stand_in_says_once_that_it_is_one(project):
    output = project.up("for name in 'abc':\n    local.Command(name, create='true')")
    assert output[output.index("Diagnostics") :].count("is a stand-in") == 1


def test_commands_run_at_the_same_time(project, sshd, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    # Each waits for all the others, so none would end if they ran one after the other.
    script = f"touch {here}/$(cat); timeout 20 sh -c 'until [ $(ls {here} | wc -l) = 12 ]; do sleep 0.1; done'"
    project.up(
        f"""
for number in range(6):
    local.Command(f"local-{{number}}", create="{script}", stdin=f"local-{{number}}")
    remote.Command(
        f"remote-{{number}}", connection={sshd.connection()}, create="{script}", stdin=f"remote-{{number}}"
    )
""",
        "--parallel=32",
    )


def test_a_preview_runs_and_connects_to_nothing(project, sshd, tmp_path):
    output = project.preview(f"""
connection = {sshd.connection()}
first = local.Command("first", create="touch {tmp_path}/ran")
remote.Command("second", connection=connection, create=first.stdout, stdin=first.stdout)
remote.Command("third", connection=connection | {{"host": first.stdout}}, create="true")
remote.CopyToRemote(
    "fourth", connection=connection, source=pulumi.FileAsset("Pulumi.yaml"), remote_path=first.stdout
)
""")
    assert "5 to create" in output
    assert not (tmp_path / "ran").exists()
    assert sshd.connections == 0


def test_a_second_up_opens_no_connection(project, sshd, tmp_path):
    tmp_path.joinpath("folder").mkdir()
    tmp_path.joinpath("folder", "file").write_text("content")
    program = f"""
connection = {sshd.connection()}
made = remote.Command("command", connection=connection, create="date", triggers=["x", 1])
local.Command("local", create="true", environment={{"A": made.stdout}}, interpreter=["/bin/sh", "-c"])
remote.CopyToRemote(
    "copy", connection=connection, source=pulumi.FileArchive("{tmp_path}/folder"), remote_path="{tmp_path}/copy"
)
"""
    project.up(program)
    before = sshd.connections
    assert before == 2
    assert "4 unchanged" in project.up(program)
    project.run("refresh", "--yes")
    assert sshd.connections == before


def test_a_wrong_host_key_is_refused_with_both_fingerprints(project, sshd, keys):
    connection = sshd.connection(host_key=keys.public("other"), dial_error_limit=10)
    report = project.fails(at(connection, create="true"))
    assert f"expected {keys.fingerprint('other')}, found {keys.fingerprint('host')}" in report
    assert sshd.connections == 1
    assert "Accepted" not in sshd.log.read_text()


def test_only_the_pinned_keys_type_is_asked_for(project, sshd, keys):
    project.up(f"""
for name, key in {[[name, keys.public(name)] for name in ("host", "host-rsa")]}:
    remote.Command(name, connection={sshd.connection()} | {{"host_key": f"10.0.0.1 {{key}}"}}, create="true")
""")
    assert sshd.connections == 2


def test_a_host_key_of_a_type_that_the_server_lacks_is_refused(project, sshd, keys):
    keys.make("ecdsa", kind="ecdsa")
    report = project.fails(at(sshd.connection(host_key=keys.public("ecdsa")), create="true"))
    assert "has the server a host key of the pinned type ecdsa-sha2-nistp256?" in report


def test_without_a_host_key_any_server_is_taken(project, sshd):
    project.up(at(sshd.connection(host_key=None), create="true"))


def test_a_bastion_is_passed_through_with_its_own_host_key(project, sshd, make_sshd, keys):
    bastion = make_sshd("bastion").start()
    project.up(at(sshd.connection(proxy=bastion.connection()), create="true"))
    assert (bastion.connections, sshd.connections) == (1, 1)
    closed = make_sshd("closed").start("AllowTcpForwarding no")
    report = project.fails(at(sshd.connection(proxy=closed.connection()), create="echo again"))
    assert "open failed" in report
    wrong = bastion.connection(host_key=keys.public("other"))
    report = project.fails(at(sshd.connection(proxy=wrong), create="echo again"))
    assert f"127.0.0.1:{bastion.port} is not the machine" in report
    assert sshd.connections == 1


def test_dialling_goes_on_until_the_server_is_there(project, make_sshd):
    late = make_sshd("late")
    project.write(at(late.connection(dial_error_limit=-1), create="true"))
    with project.started("up", "--yes", "--skip-preview") as engine:
        assert any(f":{late.port} 3/inf failed: retrying" in line for line in engine.stdout)
        late.start()
        engine.stdout.read()
        assert engine.wait() == 0
    assert late.connections == 1


def test_dialling_ends_at_its_limit_with_the_reason(project, make_sshd):
    report = project.fails(at(make_sshd("absent").connection(dial_error_limit=2), create="true"))
    assert "after 3 failed attempts" in report
    assert "Connect call failed" in report


def test_a_server_that_does_not_answer_is_given_up_after_the_time_for_one_dial(project, sshd):
    begin = time.monotonic()
    os.kill(sshd.pid, signal.SIGSTOP)
    try:
        report = project.fails(at(sshd.connection(per_dial_timeout=1), create="true"))
    finally:
        os.kill(sshd.pid, signal.SIGCONT)
    assert "no answer within 1 s" in report
    assert time.monotonic() - begin < 14  # seconds: less than one dial takes by default


def test_a_connection_that_breaks_ends_the_command_with_a_reason(project, sshd):
    # $PPID is the process of sshd that holds this one connection.
    report = project.fails(at(sshd.connection(), create="echo begun; kill -9 $PPID; sleep 5"))
    assert "connection to 127.0.0.1 was" in report
    assert "begun" in report


def test_the_agents_keys_are_used_where_no_private_key_is_given(project, sshd, keys, tmp_path):
    path = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        wait_for("the agent's socket", path.exists)
        environment = os.environ | {"SSH_AUTH_SOCK": str(path)}
        subprocess.run(["ssh-add", "-q", keys.folder / "user"], env=environment, check=True)
        project.up(at(sshd.connection(agent_socket_path=str(path), private_key=None), create="true"))
    finally:
        agent.terminate()
        agent.wait(10)


def test_an_encrypted_private_key_opens_with_its_password(project, sshd, keys):
    private = keys.make("locked", passphrase="open sesame").read_text()
    with (sshd.folder / "authorized_keys").open("a") as authorized:
        authorized.write(keys.public("locked") + "\n")
    project.up(at(sshd.connection(private_key=private, private_key_password="open sesame"), create="true"))
    report = project.fails(at(sshd.connection(private_key=private), create="true"))
    assert "connection.privateKey cannot be read" in report


def copying(sshd, source, remote_path):
    """A program that copies `source`, an asset or archive as it stands in a program."""
    return f"""
remote.CopyToRemote(
    "it", connection={sshd.connection()}, source=pulumi.{source}, remote_path="{remote_path}"
)
"""


def test_a_file_is_copied_and_again_when_it_changes(project, sshd, tmp_path):
    source, target, folder = tmp_path / "source", tmp_path / "target", tmp_path / "folder"
    program = copying(sshd, f"FileAsset('{source}')", target)
    source.write_text("first")
    project.up(program)
    assert target.read_text() == "first"

    source.write_text("second")
    assert "1 to update" in project.preview(program)
    project.up(program)
    assert target.read_text() == "second"

    folder.mkdir()
    project.up(copying(sshd, f"FileAsset('{source}')", folder))
    assert (folder / "source").read_text() == "second"

    before = sshd.connections
    project.run("destroy", "--yes", "--skip-preview")
    assert target.exists()
    assert sshd.connections == before


def test_a_directory_is_copied_by_name_and_its_contents_with_a_slash(project, sshd, tmp_path):
    source = tmp_path / "tree"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "a").write_text("a")
    (source / "sub" / "b").write_text("b")

    def below(folder):
        return {str(path.relative_to(folder)) for path in folder.rglob("*")}

    project.up(copying(sshd, f"FileArchive('{source}')", tmp_path / "new"))
    assert below(tmp_path / "new") == {"tree"} | {f"tree/{path}" for path in below(source)}
    project.up(copying(sshd, f"FileArchive('{source}/')", tmp_path / "contents"))
    assert below(tmp_path / "contents") == below(source)

    (tmp_path / "file").write_text("in the way")
    report = project.fails(copying(sshd, f"FileArchive('{source}')", tmp_path / "file"))
    assert f"{tmp_path}/file exists but is not a directory" in report


def test_a_copy_to_a_folder_that_is_not_there_names_the_path(project, sshd, tmp_path):
    report = project.fails(copying(sshd, "FileAsset('Pulumi.yaml')", tmp_path / "no" / "where"))
    assert f"{tmp_path}/no/where: No such file" in report


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_the_engines_end_leaves_no_process(project, sshd, ending):
    marker = f"600.{time.time_ns()}"
    # Without a terminal a remote command learns from its output that nobody is there any more.
    project.write(f"""
local.Command("here", create="sleep {marker} & sleep {marker}; wait")
remote.Command("there", connection={sshd.connection()}, create="while echo {marker}; do sleep 0.2; done")
""")

    def running():
        names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in processes(marker)}
        return {pid for pid, name in names.items() if name in ("sleep", "sh", "bash")}

    with project.started("up", "--yes", "--skip-preview") as engine:
        try:
            wait_for("two sleeping commands, their shell, and the remote one", lambda: len(running()) == 4)
            family = descendants(engine.pid)
            assert len(family) >= 6, "the two plugins, the program and the local command's processes"
            engine.send_signal(ending)
            engine.wait(60)
            wait_for("the end of the plugins", lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))
            wait_for("the end of the commands", lambda: not running())
            output = engine.stdout.read()
        finally:
            for pid in running():
                os.kill(pid, signal.SIGKILL)
    assert "Traceback" not in output
