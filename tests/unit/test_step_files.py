"""The bash files of the steps."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from on_this_computer import preflight
from on_this_computer.send_scripts import STEPS, step_text
from tests.scripts import script

STATES = sorted(path.stem for path in STEPS.glob("*.sh") if path.stem != "common")


@pytest.mark.parametrize("state", STATES)
def test_shellcheck_finds_nothing_in_a_step_as_it_runs(state: str) -> None:
    assert not complaints(script(state, {}))


def test_shellcheck_finds_nothing_in_the_preflight_as_it_runs() -> None:
    assert not complaints(preflight.script({}), "SC2329")  # it replaces `fatal`


def complaints(text: str, *allowed: str) -> str:
    # `changed` is for steps that ask; parameters are upper case, and some have a lower-case local beside them.
    exclude = f"--exclude={','.join(['SC2034', 'SC2153', *allowed])}"
    command = [Path(sys.prefix, "bin/shellcheck"), "--shell=bash", exclude, "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True).stdout


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


@pytest.mark.parametrize(
    ("homes", "data", "expected"),
    [("no", "/srv/x", "yes"), ("yes", "/srv/x", "read-only"), ("no", "/home/x", "no"), ("yes", "/home/x", "no")],
)
def test_homes_are_hidden_or_read_only(homes: str, data: str, expected: str) -> None:
    """Unless the shared directory is there."""
    text = (STEPS / "common/units.sh").read_text()
    done = subprocess.run(
        ["bash", "-uec", f"{text}\nHOMES={homes} protection {data}"], stdout=subprocess.PIPE, text=True
    )
    assert f"\nProtectHome={expected}\n" in done.stdout


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


def test_several_local_ssds_are_joined_into_one_disk() -> None:
    """With the sizes of Google's SSDs. This kernel may have no device mapper."""
    text = (STEPS / "service/ssds.sh").read_text()
    stubs = """
    timeout() { :; }
    install() { :; }
    blockdev() { echo 786432000; }
    dmsetup() { [ "$1" = create ] && echo "$@"; }
    mkfs.ext4() { echo "mkfs ${*: -1}"; }
    mount() { echo "mount ${*: -2}"; }
    """
    variables = "OPT=/opt CLUSTER_USER=dask SPILL=/spill SSDS='/dev/a /dev/b'"
    command = ["bash", "-euc", f"{variables}\n{text}\n{stubs}\nFORMATTED=/dev/null/no\ntouch() {{ :; }}\nmount_ssds"]
    assert subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines() == [
        "create dask-spill --table 0 1572864000 striped 2 1024 /dev/a 0 /dev/b 0",
        "mkfs /dev/mapper/dask-spill",
        "mount /dev/mapper/dask-spill /spill",
    ]


def functions(text: str) -> str:
    """A script without its call of `main`."""
    return text.partition("\nmain() {")[0]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("http_proxy=http://10.0.0.1:3128/", "http://10.0.0.1:3128/"),
        ('http_proxy="http://10.0.0.1:3128/" ', "http://10.0.0.1:3128/"),
        ("export http_proxy='http://me:it$s@10.0.0.1:3128'", "http://me:it$s@10.0.0.1:3128"),
        ("# http_proxy=http://10.0.0.1:3128", None),
        ("LD_PRELOAD=/x", None),
    ],
)
def test_packages_are_fetched_through_the_proxies_of_the_machine(
    tmp_path: Path, line: str, expected: str | None
) -> None:
    """sudo can drop the variables of /etc/environment."""
    file = tmp_path / "environment"
    file.write_text(f'PATH="/bin"\n{line}\n')
    text = functions(script("check", {})).replace("/etc/environment", str(file))
    found = printed(f"{text}\nwith_proxies env")
    assert dict(each.partition("=")[::2] for each in found if each.startswith(("http_proxy", "LD_"))) == (
        {"http_proxy": expected} if expected else {}
    )


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY"])
def test_uv_uses_the_proxies_of_the_settings_before_those_of_the_machine(tmp_path: Path, variable: str) -> None:
    file = tmp_path / "environment"
    file.write_text("https_proxy=http://machine\nHTTPS_PROXY=http://machine\n")
    text = functions(script("environment", {"SOURCE": "index", "UV": "x"})).replace("/etc/environment", str(file))

    def proxies(uv_env: str) -> list[str]:
        said = printed(f"{text}\nUV_BIN=env UV_ENV={shlex.quote(uv_env)} uv")
        return sorted(each for each in said if each.lower().startswith("https_proxy="))

    assert proxies("export A=1") == ["HTTPS_PROXY=http://machine", "https_proxy=http://machine"]
    assert proxies(f"export {variable}=http://settings") == [f"{variable}=http://settings"]


def printed(text: str) -> list[str]:
    environ = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", "-s"], input=text, stdout=subprocess.PIPE, text=True, env=environ, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(("each", "devices"), [("yes", ["0", "1"]), ("no", [])])
def test_each_worker_process_sees_only_its_own_gpu_if_there_is_one_for_each(each: str, devices: list[str]) -> None:
    variables = {"GPU_EACH": each, "WORKERS": "2", "WORKERS_PORT": "9000", "ADDRESS": "10.0.0.1"}
    text = functions(script("service", {**variables, "THREADS": "", "MEMORY": "", "ELASTIC": ""}))
    found = printed(f"{text}\nworker_environment 1; worker_environment 2")
    assert [line.partition("=")[2] for line in found if line.startswith("CUDA_VISIBLE_DEVICES=")] == devices


@pytest.mark.parametrize(
    ("repository", "dnf", "expected"),
    [
        ("[epel]", "exit 1", ""),
        ("[baseos]", "echo fuse-sshfs-0:3.7.3-2.el9.x86_64", ""),
        (
            "[baseos]",
            ":",
            "- no package source has fuse-sshfs, which mounts the shared directory; add EPEL: dnf install",
        ),
        ("[baseos]", "echo No route; exit 1", "- dnf cannot read the package sources: No route; correct"),
    ],
)
def test_preflight_asks_for_epel_if_no_package_source_has_sshfs(
    tmp_path: Path, repository: str, dnf: str, expected: str
) -> None:
    (tmp_path / "x.repo").write_text(f"{repository}\n")
    program = tmp_path / "dnf"
    program.write_text(f"#!/bin/sh\n{dnf}\n")
    program.chmod(0o755)
    variables = dict.fromkeys(("SSH_PORT", "PORTS", "LIBRARY_PORTS", "NETWORK", "SSH_SOURCES", "OPEN"), "")
    text = functions(preflight.script(variables)).replace("/etc/yum.repos.d", str(tmp_path))
    stubs = 'command() { [ "$2" = dnf ]; }'
    found = printed(f"{text}\nPATH={tmp_path}:$PATH\n{stubs}\nrefuse_missing_epel >/dev/null || true")
    assert "\n".join(found).startswith(expected) and bool(found) == bool(expected)
