"""`make up` and `make destroy` of a stack in Google Cloud: their questions, and the options that Pulumi gets."""

import json
import os
import pty
import re
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from daskstack import engine
from tests.checkout import Checkout
from tests.client_outputs import machines_client

# A fake engine that reads stack files as YAML, as the real one does, and logs its command lines.
PULUMI = """#!/bin/bash
case "$*" in
version) echo v3.300.0 ;;
*stack\\ output*) echo '{{"client": {client}, "check": "all is well", "scheduler": "of vms"}}' ;;
*stack\\ export*) echo '{{"deployment": {{}}}}' ;;
*config\\ --json*) exec {python} {config} "$2" "${{@: -1}}" ;;
*)
  echo "$@" >>{log}
  case " $* " in *" {fails} "*) echo '{event}' >"${{PULUMI_OPTION_EVENT_LOG:-/dev/null}}"; exit 1 ;; esac
  ;;
esac
"""
CONFIG = """
import json, sys, yaml
config = yaml.safe_load(open(f"{sys.argv[1]}/Pulumi.{sys.argv[2]}.yaml")).get("config") or {}
print(json.dumps({key: {"objectValue": value, "secret": False} for key, value in config.items()}))
"""
DISK = {
    "name": "dask-vms-data", "sizeGb": "100", "labels": {"dask-stack": "vms"}, "zone": "zones/us-central1-a",
    "type": "pd-balanced",
}  # fmt: skip
GCLOUD = f"""#!/bin/sh
case "$*" in
compute\\ disks\\ list*) echo '{json.dumps([DISK])}' ;;
*list*) echo '[]' ;;
esac
"""


class User:
    """A user with fakes of the official Pulumi and of gcloud. The fake Pulumi logs its command lines."""

    def __init__(self, folder: Path) -> None:
        self.checkout = Checkout(folder)
        self.log, self.pulumi = folder / "log", folder / "bin" / "pulumi"
        self.pulumi.parent.mkdir()
        self.config = folder / "config.py"
        self.config.write_text(CONFIG)
        self.fails_at("nothing")
        for name, text in {"pulumi-language-python": "#!/bin/sh\n", "gcloud": GCLOUD}.items():
            file = folder / "bin" / name
            file.write_text(text)
            file.chmod(0o755)
        (folder / f"home/.pulumi/plugins/resource-command-v{engine.COMMAND}").mkdir(parents=True)
        self.environ = {name: value for name, value in os.environ.items() if not re.match("PULUMI_|MAKE|YES", name)} | {
            "HOME": str(folder / "home"),
            "PULUMI_HOME": str(folder / "home/.pulumi"),
            "XDG_CACHE_HOME": str(engine.cache_folder().parent),
            "XDG_DATA_HOME": str(folder / "data"),
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "PULUMI_CONFIG_PASSPHRASE": "of the tests",
            "https_proxy": "http://127.0.0.1:1",  # makes the service for our own address unreachable
        }

    def fails_at(self, word: str) -> None:
        """Makes Pulumi's command `word` fail from now on, and no other."""
        client = json.dumps(asdict(machines_client()))
        event = json.dumps(
            {"diagnosticEvent": {"severity": "error", "message": "(constraints/compute.requireOsLogin)"}}
        )
        words = {"config": self.config, "log": self.log, "fails": word, "client": client, "event": event}
        text = PULUMI.format(python=sys.executable, **words)
        self.pulumi.write_text(text)
        self.pulumi.chmod(0o755)

    def make(self, *words: str, stdin: int = subprocess.DEVNULL, succeeds: bool = True) -> str:
        """Runs make and returns its output."""
        self.log.unlink(missing_ok=True)
        done = subprocess.run(
            ["make", *words], cwd=self.checkout.folder, env=self.environ, stdin=stdin, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=300,
        )  # fmt: skip
        assert (done.returncode == 0) == succeeds, done.stdout
        return done.stdout

    def write(self, stack: str, text: str) -> Path:
        file = self.checkout.folder / f"Pulumi.{stack}.yaml"
        file.write_text(text)
        return file

    def options(self, word: str) -> set[str]:
        """Pulumi's options for this command in the last run."""
        [call] = [line.split() for line in self.log.read_text().splitlines() if f" {word} " in f" {line} "]
        return {each for each in call if each.startswith("--")} - {"--stack", "--cwd"}


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    return User(tmp_path_factory.mktemp("user"))


@pytest.mark.parametrize("word", ["up", "destroy"])
@pytest.mark.parametrize("stack", ["vms", "kubernetes"])
def test_pulumi_asks_before_up_and_destroy_unless_yes_is_set(user: User, stack: str, word: str) -> None:
    refresh = {"--refresh"} if (stack, word) == ("vms", "up") else set()
    user.make(word, f"STACK={stack}")
    assert user.options(word) == refresh
    user.make(word, f"STACK={stack}", "YES=1")
    assert user.options(word) == refresh | {"--yes"}


def test_up_refreshes_the_state_and_warns_first_if_no_network_can_reach_ssh(user: User) -> None:
    shipped = (engine.PROJECT / "Pulumi.vms.yaml").read_text()
    warning = "Could not determine your address: in Pulumi.vms.yaml, list the networks that may reach SSH"
    controller, terminal = pty.openpty()
    try:
        assert warning not in user.make("up", "STACK=vms", stdin=terminal)
        assert user.options("up") == {"--refresh"}
        closed = shipped.replace("    firewall:\n      ssh: [203.0.113.7/32]\n", "")
        file = user.write("vms", closed)
        assert warning not in user.make("up", "STACK=vms"), "there is no terminal"
        printed = user.make("up", "STACK=vms", stdin=terminal)
        assert printed.index(warning) < printed.index("all is well")
        assert file.read_text() == closed
    finally:
        user.write("vms", shipped)
        os.close(controller)
        os.close(terminal)


def test_after_an_error_of_googles_up_says_what_to_do(user: User) -> None:
    sentence = "Google Cloud: the organization's policy compute.requireOsLogin forbids machines with SSH keys"
    user.fails_at("up")
    try:
        assert sentence in user.make("up", "STACK=vms", succeeds=False)
        assert sentence not in user.make("up", "STACK=kubernetes", succeeds=False)
    finally:
        user.fails_at("nothing")
    assert sentence not in user.make("up", "STACK=vms")


def test_destroy_and_leftovers_print_commands_that_delete_remaining_resources(user: User) -> None:
    deletes = "gcloud compute disks delete dask-vms-data --zone us-central1-a --project my-project"
    assert deletes in user.make("destroy", "STACK=vms")
    assert user.options("destroy") == set()
    assert deletes in user.make("leftovers", "STACK=vms")


def test_the_yaml_style_of_a_stack_file_makes_no_difference(user: User) -> None:
    shipped = yaml.safe_load((engine.PROJECT / "Pulumi.vms.yaml").read_text())
    user.write("flow", json.dumps(shipped))
    user.make("up", "STACK=flow")
    assert user.options("up") == {"--refresh"}
    assert "nothing of stack flow is left in project my-project" in user.make("destroy", "STACK=flow")


@pytest.mark.parametrize("word", ["up", "destroy"])
@pytest.mark.parametrize("answers", [True, False])
def test_a_failure_explains_how_to_remove_a_machine_only_if_it_accepts_no_connection(
    user: User, word: str, answers: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"{{name: head, address: 127.0.0.1, port: {server.getsockname()[1]}}}"
        if not answers:
            server.close()
        machines = f"{{source: 'existing', hosts: [{host}]}}"
        user.write("mine", f"config: {{'dask:cluster': {{'target': \"machines\", machines: {machines}}}}}")
        user.fails_at(word)
        try:
            printed = user.make(word, "STACK=mine", succeeds=False)
        finally:
            user.fails_at("nothing")
    advice = "No connection to head. If a machine will never answer again, set `gone: true` for it in Pulumi.mine.yaml"
    assert (advice in printed) is not answers
    assert "all is well" not in printed
