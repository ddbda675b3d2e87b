"""The contract of the plugin `command`, of Pulumi's own and of the stand-in, tested with the real engine.

test_command_standin.py tests the stand-in's own messages.
"""

import os
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pytest

from daskstack import engine
from tests.engine.support import descendants, is_stand_in, plugin, processes, wait_for


@pytest.fixture(params=["stand-in", "official"])
def pulumi_environment(request, pulumi_environment):
    if request.param == "stand-in":
        home = engine.standins(engine.engine()) / "home"
        return pulumi_environment | {"PULUMI_HOME": str(home), "PULUMI_IGNORE_AMBIENT_PLUGINS": "true"}
    if is_stand_in(plugin(pulumi_environment, "resource", "command", engine.COMMAND)):
        pytest.skip("Pulumi's own plugin command is not installed")
    return pulumi_environment


def both(sshd, program):
    """Runs the program for a local command (`place` is "here") and for a remote one on a real sshd ("there")."""
    return f"""
import functools

places = {{"here": local.Command, "there": functools.partial(remote.Command, connection={sshd.connection()})}}
for place, Command in places.items():
{textwrap.indent(textwrap.dedent(program), "    ")}
"""


def at(connection, name="it", **arguments):
    """A program with one remote command."""
    return f"remote.Command('{name}', connection={connection}, **{arguments})\n"


def test_create_update_and_delete_run_in_order_and_get_stdin(project, sshd, tmp_path):
    """Without an update command, create runs again, with the previous output if that is enabled."""

    def program(stdin):
        return both(
            sshd,
            f"""
            log = f"{tmp_path}/{{place}}"
            it = Command(
                place,
                create=f"(echo create; cat) | tee -a {{log}}",
                update=f"(echo update; cat) >> {{log}}; echo updated; echo why >&2",
                delete=f"(echo delete; cat) >> {{log}}",
                stdin="{stdin}",
                logging="none",
            )
            pulumi.export(place, [it.stdout, it.stderr])
            again = Command(f"{{place}}-again", create="echo {stdin}")
            pulumi.export(f"{{place}}-again", again.stdout)
            """,
        ) + (
            "for wanted in (True, False):\n"
            f"    show = 'echo {stdin}; echo so: $PULUMI_COMMAND_STDOUT, $PULUMI_COMMAND_STDERR. >&2'\n"
            "    it = local.Command(f'previous-{wanted}', create=show, add_previous_output_in_env=wanted)\n"
            "    pulumi.export(f'previous-{wanted}', it.stderr)\n"
        )

    project.up(program("first"))
    found = project.outputs()
    assert found["here"] == found["there"] == ["create\nfirst", ""]
    assert found["previous-True"] == "so: , ."
    (tmp_path / "here").write_text("")
    (tmp_path / "there").write_text("")
    project.up(program("second"))
    found = project.outputs()
    assert found["here"] == found["there"] == ["updated", "why"]
    assert found["here-again"] == found["there-again"] == "second"
    assert found["previous-True"] == "so: first, so: , .."
    assert found["previous-False"] == "so: , ."
    for place in ("here", "there"):
        assert (tmp_path / place).read_text() == "update\nsecond"
        (tmp_path / place).write_text("")
    project.run("destroy", "--yes", "--skip-preview")
    for place in ("here", "there"):
        assert (tmp_path / place).read_text() == "delete\nsecond"


def test_triggers_replace_the_command_and_the_old_delete_runs_last(project, tmp_path):
    log = tmp_path / "did"
    program = f"local.Command('it', create='echo create >> {log}', delete='echo delete >> {log}', triggers=[%d])"
    project.up(program % 1)
    assert "1 replaced" in project.up(program % 2)
    assert log.read_text().split() == ["create", "create", "delete"]


def test_a_command_gets_its_environment_folder_and_interpreter(project, make_sshd, tmp_path):
    accepting = make_sshd("accepting").start("AcceptEnv OWN")
    project.environment["INHERITED"] = "from outside"
    output = project.up(f"""
local.Command(
    "here",
    create="import os; print(os.environ['INHERITED'], os.environ['OWN'], os.getcwd())",
    environment={{"OWN": "from the program"}},
    dir="{tmp_path}",
    interpreter=["python3", "-c"],
)
remote.Command("there", connection={accepting.connection()}, create="echo did run $OWN", environment={{"OWN": "taken"}})
""")
    assert f"from outside from the program {tmp_path}\n" in output
    assert "did run taken" in output


def test_output_is_shown_while_the_command_runs(project, sshd, tmp_path):
    wait = f"until [ -e {tmp_path}/go ]; do sleep 0.1; done"
    project.write(
        both(sshd, f'Command(place, create=f"echo early-{{place}}; echo also-{{place}} >&2; {wait}; echo late")')
    )
    expected = {f"{word}-{place}\n" for word in ("early", "also") for place in ("here", "there")}
    with project.started("up", "--yes", "--skip-preview") as pulumi:
        while expected:
            line = pulumi.stdout.readline()
            assert line, "the engine has ended"
            assert "late" not in line
            expected = {words for words in expected if words not in line}
        (tmp_path / "go").touch()
        rest = pulumi.stdout.read()
        assert pulumi.wait() == 0, rest
    assert rest.count("late\n") >= 2


def test_logging_selects_the_output_that_is_shown(project):
    output = project.up("""
for logging in ("stdout", "stderr", "stdoutAndStderr", "none"):
    local.Command(logging, create=f"echo OUT-{logging}; echo ERR-{logging} >&2", logging=logging)
""")
    words = {f"{stream}-{logging}" for stream in ("OUT", "ERR") for logging in ("stdout", "stderr", "none")}
    assert {word for word in words if word + "\n" in output} == {"OUT-stdout", "ERR-stderr"}
    assert "OUT-stdoutAndStderr" in output
    assert "ERR-stdoutAndStderr" in output


def test_a_failed_command_shows_status_and_output_and_is_retried(project, sshd, tmp_path):
    project.up("local.Command('later', create='true')")
    program = both(sshd, f"Command(place, create='echo bad >&2; test -e {tmp_path}/there || exit 7')")
    program += f"local.Command('later', create='test -e {tmp_path}/there')\n"
    report = project.fails(program)
    assert report.count("status 7") >= 2
    assert report.count("bad\n") >= 2
    (tmp_path / "there").touch()
    output = project.up(program)
    assert "2 created" in output, "what failed must not count as created"
    assert "1 updated" in output


def test_a_secret_stays_secret_in_the_state(project, sshd):
    program = both(sshd, "Command(place, create=secret('true private-script; exit %d'), stdin=secret('private-stdin'))")
    project.up(program % 0)
    project.fails(program % 3)
    for text in ("private-", "PRIVATE KEY"):
        assert text not in project.stored()


def test_commands_run_at_the_same_time(project, sshd, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    # Each command waits for all others, so none would end if they ran one after another.
    script = f"touch {here}/$(cat); timeout 60 sh -c 'until [ $(ls {here} | wc -l) = 12 ]; do sleep 0.1; done'"
    project.up(
        both(
            sshd,
            f"""
            for number in range(6):
                Command(f"{{place}}-{{number}}", create="{script}", stdin=f"{{place}}-{{number}}")
            """,
        ),
        "--parallel=32",
    )


def test_a_preview_runs_no_command_and_opens_no_connection(project, sshd, tmp_path):
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
    assert "4 unchanged" in project.up(program, "--refresh")
    assert sshd.connections == before


def test_a_server_with_a_wrong_host_key_gets_no_login(project, sshd, keys):
    keys.make("ecdsa", kind="ecdsa")
    names = {name: sshd.connection(host_key=keys.public(name)) for name in ("other", "ecdsa")}
    report = project.fails("".join(at(connection, name, create="echo did run") for name, connection in names.items()))
    assert "did run" not in report
    assert "Accepted" not in sshd.log.read_text()


def test_a_pinned_host_key_of_any_type_is_accepted_and_any_key_without_a_pin(project, sshd, keys):
    pins = [[name, keys.public(name)] for name in ("host", "host-rsa")] + [["none", None]]
    project.up(f"""
for name, key in {pins}:
    remote.Command(name, connection={sshd.connection()} | {{"host_key": key}}, create="true")
""")
    assert sshd.connections == 3


def test_a_bastion_is_passed_through_with_its_own_host_key(project, sshd, make_sshd, keys):
    bastion = make_sshd("bastion").start()
    project.up(at(sshd.connection(proxy=bastion.connection()), create="true"))
    assert (bastion.connections, sshd.connections) == (1, 1)
    closed = make_sshd("closed").start("AllowTcpForwarding no")
    wrong = bastion.connection(host_key=keys.public("other"))
    proxies = {"closed": closed.connection(), "wrong": wrong}
    report = project.fails("".join(at(sshd.connection(proxy=p), n, create="echo ran") for n, p in proxies.items()))
    assert "ran" not in report.split()
    assert sshd.connections == 1


def test_dialing_continues_until_the_server_is_up(project, make_sshd):
    late = make_sshd("late")
    project.write(at(late.connection(dial_error_limit=-1), create="true"))
    with project.started("up", "--yes", "--skip-preview") as pulumi:
        assert any(f":{late.port} 3/inf failed: retrying" in line for line in pulumi.stdout)
        late.start()
        output = pulumi.stdout.read()
        assert pulumi.wait() == 0, output
    assert late.connections == 1


def test_a_server_that_never_answers_or_disconnects_fails_the_command(project, sshd, make_sshd):
    """A connection attempt to a frozen machine times out; otherwise the test would never end."""
    silent, breaking = make_sshd("silent").start(), make_sshd("breaking").start()
    os.kill(silent.pid, signal.SIGSTOP)
    try:
        report = project.fails(
            at(make_sshd("absent").connection(dial_error_limit=2), "absent", create="true")
            + at(silent.connection(per_dial_timeout=1), "silent", create="true")
            # $PPID is the sshd process of this connection.
            + at(breaking.connection(), "breaking", create="echo begun; kill -9 $PPID; sleep 5")
        )
    finally:
        os.kill(silent.pid, signal.SIGCONT)
    for name in ("absent", "silent", "breaking"):
        assert f"remote:Command ({name}):\n    error" in report
    assert "begun" in report


def test_agent_keys_and_encrypted_keys_can_log_in(project, sshd, keys, tmp_path):
    private = keys.make("locked", passphrase="open sesame").read_text()
    with (sshd.folder / "authorized_keys").open("a") as authorized:
        authorized.write(keys.public("locked") + "\n")
    path = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        wait_for("the agent's socket", path.exists)
        environment = os.environ | {"SSH_AUTH_SOCK": str(path)}
        subprocess.run(["ssh-add", "-q", keys.folder / "user"], env=environment, check=True)
        project.up(
            at(sshd.connection(agent_socket_path=str(path), private_key=None), "agent", create="true")
            + at(sshd.connection(private_key=private, private_key_password="open sesame"), "locked", create="true")
        )
    finally:
        agent.terminate()
        agent.wait(60)
    used = sshd.log.read_text()
    assert all(keys.fingerprint(name) in used for name in ("user", "locked"))


def copying(sshd, **copies):
    """A program that copies each source (program text of an asset or archive) to its remote path."""
    return "".join(
        f"remote.CopyToRemote('{name}', connection={sshd.connection()}, source=pulumi.{source},"
        f" remote_path='{target}')\n"
        for name, (source, target) in copies.items()
    )


def below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_files_and_directories_are_copied_again_when_they_change(project, sshd, tmp_path):
    """A directory is copied with its name, or only its contents if the name ends with a slash."""
    source, target, folder, tree = (tmp_path / name for name in ("source", "target", "folder", "tree"))
    source.write_text("first")
    folder.mkdir()
    (tree / "sub" / "empty").mkdir(parents=True)
    (tree / "a").write_text("a")
    (tree / "sub" / "b").write_text("b")
    program = copying(
        sshd,
        file=(f"FileAsset('{source}')", target),
        into=(f"FileAsset('{source}')", folder),
        named=(f"FileArchive('{tree}')", tmp_path / "new"),
        contents=(f"FileArchive('{tree}/')", tmp_path / "contents"),
    )
    project.up(program)
    assert target.read_text() == (folder / "source").read_text() == "first"
    assert below(tmp_path / "new") == {"tree"} | {f"tree/{path}" for path in below(tree)}
    assert below(tmp_path / "contents") == below(tree)

    source.write_text("second")
    before = sshd.connections
    assert "2 updated" in project.up(program)
    assert target.read_text() == (folder / "source").read_text() == "second"
    assert sshd.connections == before + 2
    project.run("destroy", "--yes", "--skip-preview")
    assert target.exists()
    assert sshd.connections == before + 2


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_no_process_remains_after_the_engine_exits(project, sshd, ending):
    marker = f"600.{time.time_ns()}"
    # Without a terminal, a remote command notices the disconnect only when it writes output.
    project.write(f"""
local.Command("here", create="sleep {marker} & sleep {marker}; wait")
remote.Command("there", connection={sshd.connection()}, create="while echo {marker}; do sleep 0.2; done")
""")

    def running():
        names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in processes(marker)}
        return {pid for pid, name in names.items() if name in ("sleep", "sh", "bash")}

    with project.started("up", "--yes", "--skip-preview") as pulumi:
        try:
            wait_for("two sleeping commands, their shell, and the remote one", lambda: len(running()) == 4)
            family = descendants(pulumi.pid)
            assert len(family) >= 6, "the two plugins, the program and the local command's processes"
            pulumi.send_signal(ending)
            pulumi.wait(60)
            wait_for("the end of the plugins", lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))
            wait_for("the end of the commands", lambda: not running())
            output = pulumi.stdout.read()
        finally:
            for pid in running():
                os.kill(pid, signal.SIGKILL)
    assert "Traceback" not in output
