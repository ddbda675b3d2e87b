"""A user's clone of the project."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from fleet import Machine, run, write_whole

from daskstack import engine

PROJECT = Path(__file__).parents[1]
LIMIT = 500  # seconds for a command, which shows what it said; pytest's own limit is longer


class Checkout:
    """A copy of the project with a stack of its own: `dev`, or another with the settings of `dev` and a passphrase."""

    def __init__(self, folder: Path, stack: str = "dev") -> None:
        self.folder = folder / "checkout"
        self.stack = stack
        self.file = self.folder / f"Pulumi.{stack}.yaml"
        ignored = shutil.ignore_patterns(".git", ".venv", "*cache*", "tests")
        shutil.copytree(PROJECT, self.folder, ignore=ignored)
        self.folder.joinpath(".venv").symlink_to(sys.prefix)
        # Where keys are put for a moment: other runs on this computer have a place of their own.
        private = folder / "private"
        private.mkdir(mode=0o700)
        self.own = {"XDG_DATA_HOME": str(folder / "data"), "XDG_RUNTIME_DIR": str(private)}
        self.environ = {**os.environ, **self.own}
        if stack != "dev":
            state = folder / "state"
            state.mkdir()
            self.environ |= {"STACK": stack, "YES": "1"}
            self.environ |= {"PULUMI_BACKEND_URL": state.as_uri(), "PULUMI_CONFIG_PASSPHRASE": "of the tests"}
            shipped = self.folder.joinpath("Pulumi.dev.yaml").read_text()
            self.file.write_text(re.sub("^encryptionsalt.*", "", shipped, flags=re.MULTILINE))

    def make(self, *words: str, succeeds: bool = True) -> str:
        done = run(["make", *words], cwd=self.folder, env=self.environ, seconds=LIMIT, together=True, check=False)
        assert (done.returncode == 0) == succeeds, done.stdout
        return done.stdout

    def pulumi(self, *words: str) -> str:
        environ = self.environ | engine.variables(self.stack, self.environ)
        command = ["pulumi", *words, "--stack", self.stack]
        return run(command, cwd=self.folder, env=environ, seconds=LIMIT).stdout

    def resources(self) -> dict[str, dict]:
        """The resources in the stack's state by their names, with their secrets in the clear."""
        deployment = json.loads(self.pulumi("stack", "export", "--show-secrets"))["deployment"]
        return {each["urn"].rpartition("::")[2]: each for each in deployment.get("resources", [])}

    def printed(self, name: str) -> str:
        """What a Command of the stack printed."""
        return self.resources()[name]["outputs"]["stdout"]

    def machines(self) -> dict[str, Machine]:
        """The stack's machines by name, as the user that `up` logs in as reaches them."""
        resources = self.resources()
        bridge = json.loads(resources["machines-network"]["outputs"]["stdout"])["bridge"]
        found = {}
        admin = json.loads(self.pulumi("stack", "output", "admin", "--show-secrets"))
        for name, facts in admin["machines"].items():
            key = write_whole(self.folder.parent / "login", facts["private_key"])
            state = Path(self.environ["XDG_DATA_HOME"], "daskstack/machines", self.stack, name)
            found[name] = Machine(name, facts["host"], name, facts["host_key"], bridge, state, key)
        return found


@contextmanager
def stack_dev(folder: Path) -> Iterator[Checkout]:
    """A user's checkout, where `daskstack` looks for stacks, too; its stack is destroyed at the end."""
    checkout = Checkout(folder)
    with mock.patch.dict(os.environ, checkout.own), mock.patch.object(engine, "PROJECT", checkout.folder):
        try:
            yield checkout
        finally:
            checkout.make("destroy")
