"""Package names and SELinux labels on distributions that cannot run here. The tests bring programs with their names."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from on_this_computer.send_scripts import STEPS

COMMON = (STEPS / "common.sh").read_text()
DEBIAN = {"apt-get": "apt-get -o DPkg::Lock::Timeout=600 install -y -q --no-install-recommends"}
TOOLS = ("awk", "cat", "chmod", "chown", "cmp", "df", "env", "grep", "hostname")
TOOLS += ("mv", "rm", "sed", "stat", "tail", "timeout", "touch", "tr")
RED_HAT = {"dnf": "dnf -q -y install"}


def call(folder: Path, command: str, programs: dict[str, str]) -> tuple[list[str], str]:
    """The calls of the programs, which are bash texts by name, and the messages."""
    calls = folder / "calls"
    calls.touch()
    for name in TOOLS:
        (folder / name).symlink_to(str(shutil.which(name)))
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/bash"], input=f"{COMMON}\nPATH={folder}\nCALLS={calls}\n{command}\n", capture_output=True, text=True
    )
    return calls.read_text().splitlines(), done.stderr


def installs(folder: Path, manager: str, name: str) -> str:
    """A package manager that notes its call and brings the program."""
    return (
        f'echo "{manager} $*" >>{folder}/calls\nprintf "#!/bin/sh\\n" >{folder}/{name}\n/bin/chmod 755 {folder}/{name}'
    )


TABLE = {
    name: columns for name, *columns in map(str.split, re.search("PACKAGES='\n(.*?)'", COMMON, re.S)[1].splitlines())
}


@pytest.mark.parametrize("name", sorted({*TABLE} - {"libgomp.so.1"}))
@pytest.mark.parametrize("column", [0, 1], ids=["debian", "red-hat"])
def test_a_missing_command_is_installed_by_its_package_of_the_distribution(
    name: str, column: int, tmp_path: Path
) -> None:
    [(manager, arguments)] = (DEBIAN, RED_HAT)[column].items()
    calls, said = call(tmp_path, f"need {name}", {manager: installs(tmp_path, manager, name)})
    assert calls == [f"{arguments} {TABLE[name][column]}"], said


def test_steps_need_only_commands_of_the_table() -> None:
    text = "".join(file.read_text() for file in STEPS.rglob("*.sh"))
    needed = re.findall(r"(?m)^[^#\"\n]*\bneed (\S+)", text)
    assert {*needed, "libgomp.so.1"} == set(TABLE)


def test_without_epel_the_error_says_to_enable_it(tmp_path: Path) -> None:
    _, said = call(tmp_path, "need sshfs", {"dnf": "exit 1"})
    assert "'sshfs' is missing, and its package fuse-sshfs could not be installed; enable the repository EPEL" in said


@pytest.mark.parametrize("state", ["enabled", "disabled"])
def test_new_files_get_the_labels_of_selinux_only_where_it_is_enabled(state: str, tmp_path: Path) -> None:
    programs = {"selinuxenabled": f"[ {state} = enabled ]", "restorecon": f'echo "$*" >>{tmp_path}/calls'}
    owner = "$(stat -c %U:%G .)"
    calls, said = call(tmp_path, f"UNFINISHED=/dev/null; echo a | put {tmp_path}/new 0644 {owner}", programs)
    assert calls == ([f"-R {tmp_path}/new"] if state == "enabled" else []), said
