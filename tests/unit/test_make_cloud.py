"""`make up` and `make destroy` of a stack in Google Cloud: what they ask, and what they have Pulumi do."""

import json
import os
import pty
import re
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from daskstack import engine
from tests.checkout import Checkout
from tests.client_outputs import machines_client

PULUMI = """#!/bin/sh
case "$*" in
version) echo v3.300.0 ;;
*stack\\ output*) echo '{{"client": {client}, "check": "all is well", "scheduler": "of vms"}}' ;;
*stack\\ export*) echo '{{"deployment": {{}}}}' ;;
*) echo "$@" >>{log} ;;
esac
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
    """A user with the official Pulumi and gcloud, whose calls of `pulumi` are written down."""

    def __init__(self, folder: Path) -> None:
        self.checkout = Checkout(folder)
        self.log = folder / "log"
        client = json.dumps(asdict(machines_client()))
        for name, text in {
            "pulumi": PULUMI.format(log=self.log, client=client),
            "pulumi-language-python": "#!/bin/sh\n",
            "gcloud": GCLOUD,
        }.items():
            file = folder / "bin" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
            file.chmod(0o755)
        (folder / f"home/.pulumi/plugins/resource-command-v{engine.COMMAND}").mkdir(parents=True)
        self.environ = {name: value for name, value in os.environ.items() if not re.match("PULUMI_|MAKE|YES", name)} | {
            "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(engine.cache_folder().parent),
            "XDG_DATA_HOME": str(folder / "data"),
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "PULUMI_CONFIG_PASSPHRASE": "of the tests",
            "https_proxy": "http://127.0.0.1:1",  # nobody tells us our address
        }

    def make(self, *words: str, stdin: int = subprocess.DEVNULL) -> str:
        """What is printed."""
        self.log.unlink(missing_ok=True)
        done = subprocess.run(
            ["make", *words], cwd=self.checkout.folder, env=self.environ, stdin=stdin, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def options(self, word: str) -> set[str]:
        """With which options Pulumi did this, the last time."""
        [call] = [line.split() for line in self.log.read_text().splitlines() if f" {word} " in f" {line} "]
        return {each for each in call if each.startswith("--")} - {"--stack", "--cwd"}


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    return User(tmp_path_factory.mktemp("user"))


def dry(word: str, *variables: str) -> list[str]:
    """The arguments that Pulumi would get."""
    environ = {name: value for name, value in os.environ.items() if not re.match("MAKE|YES|STACK", name)}
    command = ["make", "-n", "-f", engine.PROJECT / "Makefile", word, *variables]
    said = subprocess.run(command, cwd=engine.PROJECT, env=environ, capture_output=True, text=True, check=True).stdout
    [call] = re.findall(rf"pulumi ({word} --stack [^|\n]*)", said)
    return call.split()


@pytest.mark.parametrize("word", ["up", "destroy"])
@pytest.mark.parametrize("stack", ["vms", "gke", "kubernetes"])
def test_before_a_stack_changes_or_goes_pulumi_asks_unless_told_not_to(stack: str, word: str) -> None:
    call, refresh = [word, "--stack", stack], ["--refresh"] if (stack, word) == ("vms", "up") else []
    assert dry(word, f"STACK={stack}") == call + refresh
    assert dry(word, f"STACK={stack}", "YES=1") == [*call, "--yes", *refresh]


def test_an_up_looks_for_machines_that_google_took_away_and_says_first_that_nobody_is_let_in(user: User) -> None:
    file = user.checkout.folder / "Pulumi.vms.yaml"
    sentence = "Your own address cannot be looked up from here: write who may reach SSH into Pulumi.vms.yaml"
    controller, terminal = pty.openpty()
    try:
        assert sentence not in user.make("up", "STACK=vms", stdin=terminal)
        assert user.options("up") == {"--refresh"}
        closed = file.read_text().replace("    firewall:\n      ssh: [203.0.113.7/32]\n", "")
        file.write_text(closed)
        assert sentence not in user.make("up", "STACK=vms"), "there is nobody to hear it"
        printed = user.make("up", "STACK=vms", stdin=terminal)
        assert printed.index(sentence) < printed.index("all is well")
        assert file.read_text() == closed
    finally:
        os.close(controller)
        os.close(terminal)


def test_after_a_destroy_what_is_left_in_google_cloud_is_named_with_what_deletes_it(user: User) -> None:
    deletes = "gcloud compute disks delete dask-vms-data --zone us-central1-a --project my-project"
    assert deletes in user.make("destroy", "STACK=vms")
    assert user.options("destroy") == set()
    assert deletes in user.make("left", "STACK=vms")
