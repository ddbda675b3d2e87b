"""The copies of the steps on the machines."""

import subprocess
from pathlib import Path

from components.machines import credentials, steps
from components.machines.step import script
from on_this_computer import send_scripts


def test_every_step_and_every_program_that_it_installs_is_sent() -> None:
    programs = {value for module in (steps, credentials) for value in vars(module).values() if isinstance(value, Path)}
    named = {send_scripts.program(path) for path in programs if path.suffix == ".py"}
    named |= {send_scripts.step(path.stem) for path in send_scripts.STEPS.glob("*.sh")}
    assert len(named) > 30 and named <= send_scripts.texts().keys()


def test_a_step_without_its_copies_fails_before_it_does_anything_and_says_how_to_send_them(tmp_path: Path) -> None:
    text = script("check", {"CHECK": steps.CHECK}).replace(send_scripts.PLACE, str(tmp_path))
    done = subprocess.run(["bash", "-s"], input=text, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert "this machine has lost the copies of its steps; with pulumi up --target-replace URN" in done.stderr


def test_a_step_gets_its_arguments_variables_and_programs_from_the_copies(tmp_path: Path) -> None:
    for name, content in send_scripts.texts().items():
        (tmp_path / name).write_text(content)
    (tmp_path / send_scripts.step("check")).write_text('printf \'%s|\' "$1" "$NAME" "$CHECK" "$(type -t put)"')
    text = script("check", {"NAME": "a b", "CHECK": steps.CHECK}).replace(send_scripts.PLACE, str(tmp_path))
    done = subprocess.run(["bash", "-s", "undo"], input=text, capture_output=True, text=True, check=True)
    assert done.stdout == f"undo|a b|{steps.CHECK.read_text()}|function|"
