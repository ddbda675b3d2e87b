"""The command line."""

import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from daskstack import cli, cluster_commands, engine, stack_commands

CALLS = {
    "up": stack_commands, "preview": stack_commands, "status": cluster_commands, "check": cluster_commands,
    "logs": cluster_commands, "dashboard": cluster_commands, "jupyter": cluster_commands,
    "destroy": stack_commands, "leftovers": stack_commands, "rehearse": stack_commands,
}  # fmt: skip


def run(*words: str, environ: dict[str, str] | None = None) -> click.testing.Result:
    return CliRunner().invoke(cli.main, words, env={"STACK": None, **(environ or {})})


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The calls that command lines have made."""
    calls: list[tuple] = []
    for name, module in CALLS.items():
        monkeypatch.setattr(module, name, lambda *words, name=name: calls.append((name, *words)))
    monkeypatch.setattr(cluster_commands, "shell", lambda *words: calls.append(("ssh", *words)) or 3)
    return calls


@pytest.mark.parametrize("name", CALLS)
def test_the_stack_option_overrides_the_variable_and_the_default_is_dev(name: str, called: list[tuple]) -> None:
    for words, environ in (((), {}), (("-s", "a"), {"STACK": "b"}), (("--stack", "a"), {}), ((), {"STACK": "b"})):
        assert run(name, *words, environ=environ).exit_code == 0
    assert [call[:2] for call in called] == [(name, "dev"), (name, "a"), (name, "a"), (name, "b")]


def test_words_after_the_machine_are_passed_to_its_command(called: list[tuple]) -> None:
    assert run("ssh", "-s", "gke", "worker-1", "ls", "-s", "--help").exit_code == 3, "the status of the command"
    assert run("ssh").exit_code == 3
    assert called == [("ssh", "gke", "worker-1", ("ls", "-s", "--help")), ("ssh", "dev", None, ())]


def test_scale_takes_a_number_or_adapts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    monkeypatch.setattr(cluster_commands, "scale", lambda *words: calls.append(words))
    for words in ("3", ""), ("--adapt", "--maximum", "4"), ("-s", "a", "0"):
        assert run("scale", *filter(None, words)).exit_code == 0
    assert calls == [("dev", 3, False, None, None), ("dev", None, True, None, 4), ("a", 0, False, None, None)]
    for words in ("3", "--adapt"), ("--minimum", "1"), ("-1",), ("three",):
        assert run("scale", *words).exit_code == 2


def test_help_describes_every_command_and_option_in_full() -> None:
    listed = run("--help").output.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(cli.main.commands)
    assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []
    for name, command in cli.main.commands.items():
        assert [option.name for option in command.params if isinstance(option, click.Option) and not option.help] == []
        assert run(name, "--help").exit_code == 0


def test_an_error_is_one_line_without_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise engine.EngineError("no such\x1b stack")

    monkeypatch.setattr(cluster_commands, "status", fail)
    done = run("status")
    assert (done.exit_code, done.output) == (1, "error: no such\ufffd stack\n")


RUN = """
from daskstack import stack_commands
script = 'trap "sleep 1; echo written; exit 7" INT; echo ready; while :; do sleep 0.1; done'
print(stack_commands.run(["sh", "-c", script], {"PATH": "/usr/bin:/bin"}))
"""


def test_after_ctrl_c_a_command_waits_until_pulumi_has_ended() -> None:
    """Pulumi still writes its state after Ctrl-C; a command that ended earlier would hide a failure."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN], cwd=engine.PROJECT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "written\n7\n"


RUN_INTERRUPTED_AT_ONCE = """
import os, signal, subprocess
from daskstack import stack_commands

class Popen(subprocess.Popen):
    def __init__(self, *words, **options):
        super().__init__(*words, **options)
        os.killpg(0, signal.SIGINT)

subprocess.Popen = Popen
print(stack_commands.run(["sleep", "60"], {"PATH": "/usr/bin:/bin"}))
"""


def test_ctrl_c_while_pulumi_starts_prints_no_traceback() -> None:
    # If this process ignores SIGINT, as in the background of a script, its children would ignore it too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = subprocess.run(
            [sys.executable, "-c", RUN_INTERRUPTED_AT_ONCE],
            cwd=engine.PROJECT, capture_output=True, text=True, timeout=60, start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.stdout, done.stderr) == ("130\n", "")


def test_only_locks_that_ask_get_the_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(stack_commands, "run", lambda command, environ: commands.append(command[2:]) or 0)
    for words in (["x.in", "--yes"], ["x.yml", "--yes"], ["x.in", "--from-here", "-y"], ["--from-here"]):
        assert run("lock", *words).exit_code == 0
    asks = "tools.lock_from"
    assert commands == [["tools.lock", "x.in"], [asks, "x.yml", "--yes"], [asks, "x.in", "--yes"], [asks]]
    done = run("lock", "x.yml", "--from-here")
    assert done.exit_code == 1 and len(commands) == 4
