"""The bash files of the steps."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from components.machines.step import STEPS, script, step_text

STATES = sorted(path.stem for path in STEPS.glob("*.sh") if path.stem != "common")


@pytest.mark.parametrize("state", STATES)
def test_shellcheck_finds_nothing_in_a_step_as_it_runs(state: str) -> None:
    # `changed` is for steps that ask; parameters are upper case, and some have a lower-case local beside them.
    command = [Path(sys.prefix, "bin/shellcheck"), "--shell=bash", "--exclude=SC2034,SC2153", "-"]
    done = subprocess.run(command, input=script(state, {}), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("state", STATES)
def test_a_step_names_its_state_and_its_variables(state: str) -> None:
    text = (STEPS / f"{state}.sh").read_text()
    assert text.startswith("# State")
    header = text.partition("\n\n")[0]
    for variable in used(state) - set(used("common")):
        assert variable in header, f"{state}.sh does not say what {variable} is"


def used(state: str) -> set[str]:
    """Parameters: upper-case names that a file reads and does not set."""
    text = step_text(state)
    read = set(re.findall(r"(?<!\\)\$\{?([A-Z][A-Z_0-9]+)", text))
    assigned = set(re.findall(r"^\s*(?:local |readonly )?([A-Z][A-Z_0-9]+)=", text, re.MULTILINE))
    common = set(re.findall(r"^([A-Z_]+)=", (STEPS / "common.sh").read_text(), re.MULTILINE))
    return read - assigned - common - {"SECONDS", "EXIT"}


PROGRAMS = sorted(state for state in STATES if "declare -f" in step_text(state))


@pytest.mark.parametrize("state", PROGRAMS)
def test_a_program_that_a_step_installs_has_every_function_that_it_calls(state: str) -> None:
    text = f"{step_text('common')}\n{step_text(state)}\n"
    bodies = dict(re.findall(r"^(\w+)\(\) (\{ .*\}|\{\n(?:.*\n)*?\})", text, re.MULTILINE))
    installed = set(" ".join(re.findall(r"declare -f ([\w ]+)", text)).split())
    assert installed <= set(bodies)
    for name in installed:
        code = re.sub(r"(?m)(^|\s)#.*|'[^'\n]*'", "", bodies[name])  # neither comments nor text
        called = {word for word in re.findall(r"(?<![\w/$.-])[a-z_]+(?![\w=-])", code) if word in bodies}
        assert called - {name} <= installed, f"{name} calls {called - installed}"


def test_a_data_path_that_is_a_file_is_rejected_before_anything_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "daskdata"
    path.write_text("")
    body = re.search(r"^directory\(\) \{\n.*?^\}", step_text("data"), re.MULTILINE | re.DOTALL)
    assert body
    stubs = 'is_mounted() { false; }; remember() { echo remembered; }; fatal() { echo "$*"; exit 1; }'
    command = ["bash", "-c", f"{stubs}\n{body[0]}\nDATA_PATH={path} directory"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    expected = f"{path} is not a directory; move it away, or write another data.path\n"
    assert (done.returncode, done.stdout) == (1, expected)
