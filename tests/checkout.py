"""A user's clone of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from fleet import Machine

from daskstack import engine

PROJECT = Path(__file__).parents[1]


class Checkout:
    """A copy of the project with a stack of its own: `dev`, or another with the settings of `dev` and a passphrase."""

    def __init__(self, folder: Path, stack: str = "dev") -> None:
        self.folder = folder / "checkout"
        self.stack = stack
        self.file = self.folder / f"Pulumi.{stack}.yaml"
        ignored = shutil.ignore_patterns(".git", ".venv", "*cache*", "tests")
        shutil.copytree(PROJECT, self.folder, ignore=ignored)
        self.folder.joinpath(".venv").symlink_to(sys.prefix)
        self.environ = {**os.environ, "XDG_DATA_HOME": str(folder / "data")}
        if stack != "dev":
            state = folder / "state"
            state.mkdir()
            self.environ |= {"STACK": stack, "YES": "1"}
            self.environ |= {"PULUMI_BACKEND_URL": state.as_uri(), "PULUMI_CONFIG_PASSPHRASE": "of the tests"}
            shipped = self.folder.joinpath("Pulumi.dev.yaml").read_text()
            self.file.write_text(re.sub("^encryptionsalt.*", "", shipped, flags=re.MULTILINE))

    def make(self, *words: str, succeeds: bool = True) -> str:
        done = subprocess.run(
            ["make", *words], cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
        )  # fmt: skip
        assert (done.returncode == 0) == succeeds, done.stdout
        return done.stdout

    def pulumi(self, *words: str) -> str:
        environ = self.environ | engine.variables(self.stack, self.environ)
        command = ["pulumi", *words, "--stack", self.stack]
        done = subprocess.run(command, cwd=self.folder, env=environ, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def printed(self, name: str) -> str:
        """What a Command of the stack printed."""
        resources = json.loads(self.pulumi("stack", "export"))["deployment"]["resources"]
        return next(each["outputs"]["stdout"] for each in resources if each["urn"].endswith(f"::{name}"))

    def machines(self) -> dict[str, Machine]:
        """The stack's machines by name, as the user that `up` logs in as reaches them."""
        bridge = json.loads(self.printed("machines-network"))["bridge"]
        key = self.folder.parent / "login"
        key.touch(mode=0o600)
        found = {}
        admin = json.loads(self.pulumi("stack", "output", "admin", "--show-secrets"))
        for name, facts in admin["machines"].items():
            key.write_text(facts["private_key"])
            state = Path(self.environ["XDG_DATA_HOME"], "daskstack/machines", self.stack, name)
            found[name] = Machine(name, facts["host"], name, facts["host_key"], bridge, state, key)
        return found


@contextmanager
def stack_dev(folder: Path) -> Iterator[Checkout]:
    """A user's checkout, where `daskstack` looks for stacks, too; its stack is destroyed at the end."""
    checkout = Checkout(folder)
    data = {"XDG_DATA_HOME": checkout.environ["XDG_DATA_HOME"]}
    with mock.patch.dict(os.environ, data), mock.patch.object(engine, "PROJECT", checkout.folder):
        try:
            yield checkout
        finally:
            checkout.make("destroy")
