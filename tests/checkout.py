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

from daskstack import engine
from rehearsal.machines import Machine, as_root, run, write_whole
from settings import lock

PROJECT = Path(__file__).parents[1]
LIMIT = 500  # seconds for a command, less than pytest's own limit, so that its output is shown
# Files that each step creates once, by their place in the machine's folder. A changed file means that the machine or
# the cluster was created again.
MADE_ONCE = {
    "machines-{}": ["id", "upper/etc/machine-id", "upper/etc/ssh/ssh_host_ed25519_key.pub"],
    "dask-{}-keys": ["upper/etc/daskstack/ssh/id_ed25519.pub"],
    "dask-{}-authority": [f"upper/etc/daskstack/authority/{name}" for name in ("host.pub", "user.pub", "tls.pem")],
}


class Checkout:
    """A clone of the project with its own stack: `dev`, or another with the settings of `dev` and a passphrase."""

    def __init__(self, folder: Path, stack: str = "dev") -> None:
        self.folder = folder / "checkout"
        self.stack = stack
        self.file = self.folder / f"Pulumi.{stack}.yaml"
        ignored = shutil.ignore_patterns(".git", ".venv", "*cache*", ".hypothesis", "tests")
        shutil.copytree(PROJECT, self.folder, ignore=ignored)
        self.folder.joinpath(".venv").symlink_to(sys.prefix)
        # A private folder for temporary keys, so that other runs on this computer do not share it.
        private = folder / "private"
        private.mkdir(mode=0o700)
        self.own = {"XDG_DATA_HOME": str(folder / "data"), "XDG_RUNTIME_DIR": str(private)}
        # .venv/bin/daskstack would run the folder that .venv belongs to.
        self.own["PYTHONPATH"] = str(self.folder)
        self.environ = {**os.environ, **self.own}
        if stack != "dev":
            state = folder / "state"
            state.mkdir()
            self.environ |= {"STACK": stack, "YES": "1"}
            self.environ |= {"PULUMI_BACKEND_URL": state.as_uri(), "PULUMI_CONFIG_PASSPHRASE": "of the tests"}
            shipped = self.folder.joinpath("Pulumi.dev.yaml").read_text()
            self.file.write_text(re.sub("^encryptionsalt.*", "", shipped, flags=re.MULTILINE))
        self._machines: dict[str, Machine] = {}
        # The diff of the files with which the last `up` ran; None if the state of the cluster is unknown.
        self._is_up_with: str | None = "none at all"

    def make(self, *words: str, succeeds: bool = True) -> str:
        with self._changes_the_cluster("make", *words):
            done = run(["make", *words], cwd=self.folder, env=self.environ, seconds=LIMIT, together=True, check=False)
            assert (done.returncode == 0) == succeeds, done.stdout
        if not succeeds:
            self._is_up_with = "part of it"
        return done.stdout

    def pulumi(self, *words: str, stdin: str = "") -> str:
        environ = self.environ | engine.variables(self.stack, self.environ)
        command = ["pulumi", *words, "--stack", self.stack]
        with self._changes_the_cluster(*words):
            return run(command, cwd=self.folder, env=environ, seconds=LIMIT, stdin=stdin).stdout

    def status(self) -> str:
        """The output of `git status`, with ignored files."""
        return self._git("status", "--porcelain", "--untracked-files=all", "--ignored")

    def change(self, file: str, old: str, new: str) -> None:
        """Replaces the only match of the pattern `old` in a file."""
        path = self.folder / file
        text, count = re.subn(old, new, path.read_text(), flags=re.MULTILINE)
        assert count == 1, f"{old} is {count} times in {file}"
        path.write_text(text)

    def keep(self) -> None:
        """Makes the current files and cluster the starting point of later tests."""
        change = self._change()
        if not self.folder.joinpath(".git").exists():
            self._git("init", "--quiet")
            self.folder.joinpath(".git/info/exclude").write_text("/.venv\n")  # a link here
        self._git("add", "--all")
        author = ("-c", "user.name=tests", "-c", "user.email=tests@example.com", "-c", "commit.gpgsign=false")
        self._git(*author, "commit", "--quiet", "--allow-empty", "--message=kept")
        if self._is_up_with == change:
            self._is_up_with = ""

    def reset(self) -> None:
        """Restores the files, but not the cluster."""
        self._git("reset", "--quiet", "--hard")
        self._git("clean", "--quiet", "-d", "--force")

    def restore(self) -> None:
        """Restores files and cluster after a test changed them."""
        self.reset()
        if self._is_up_with is None:
            self.make("destroy")
        if self._is_up_with != "":
            self.make("up")

    def distrust(self) -> None:
        """After a failed test the state is unknown, so the next test gets a new cluster."""
        self._is_up_with = None

    @contextmanager
    def home(self) -> Iterator[None]:
        """Makes `daskstack` use the stacks of this checkout."""
        with mock.patch.dict(os.environ, self.own), mock.patch.object(engine, "PROJECT", self.folder):
            yield

    def resources(self) -> dict[str, dict]:
        """The resources in the stack's state by name, with decrypted secrets."""
        deployment = json.loads(self.pulumi("stack", "export", "--show-secrets"))["deployment"]
        return {each["urn"].rpartition("::")[2]: each for each in deployment.get("resources", [])}

    def printed(self, name: str) -> str:
        """The output of a Command of the stack."""
        return self.resources()[name]["outputs"]["stdout"]

    def locked(self) -> str:
        """The check's line for an environment that matches the lock."""
        return f"{len(lock.read(self.folder / 'environment.lock', '3.11').packages)} packages as locked"

    def machines(self) -> dict[str, Machine]:
        """The stack's machines by name, with the login that `up` uses."""
        if not self._machines:
            resources = self.resources()
            bridge = json.loads(resources["machines-network"]["outputs"]["stdout"])["bridge"]
            [stack] = (each for each in resources.values() if each["type"] == "pulumi:pulumi:Stack")
            for name, facts in json.loads(stack["outputs"]["admin"]["plaintext"])["machines"].items():
                key = write_whole(self.folder.parent / "login", facts["private_key"])
                state = Path(self.environ["XDG_DATA_HOME"], "daskstack/machines", self.stack, name)
                self._machines[name] = Machine(name, facts["host"], name, facts["host_key"], bridge, state, key)
        return dict(self._machines)

    def private_keys(self) -> dict[str, str]:
        """Every private key on the stack's machines, by machine and path."""
        # Skip packages, because one of them contains a key for its own tests.
        skip = "--exclude-dir=environment --exclude-dir=cache"
        folders = "/etc /root /home /run /srv /var /opt"
        find = f"grep -rlsE {skip} -e '-----BEGIN [A-Z ]*PRIVATE KEY' {folders} | xargs -r grep -H ''"
        keys: dict[str, str] = {}
        for name, machine in self.machines().items():
            for line in machine.run(find).stdout.splitlines():
                path, _, text = line.partition(":")
                keys[f"{name}:{path}"] = keys.get(f"{name}:{path}", "") + text + "\n"
        return keys

    @contextmanager
    def _changes_the_cluster(self, *words: str) -> Iterator[None]:
        """Records the files that the cluster was built from, so that the next test knows whether it needs an `up`."""
        if words[0] != "up" and words[:2] not in (("make", "up"), ("make", "destroy")):
            yield
            return
        self._is_up_with = None
        self._machines = {}
        yield
        self._is_up_with = self._change() if "up" in words else "none at all"

    def _change(self) -> str:
        return self._git("diff", "HEAD") if self.folder.joinpath(".git").exists() else ""

    def _git(self, *words: str) -> str:
        return run(["git", *words], cwd=self.folder, env=self.environ, seconds=60).stdout


@contextmanager
def stack_dev(folder: Path) -> Iterator[Checkout]:
    """A user's checkout, which `daskstack` uses too; its stack is destroyed at the end."""
    checkout = Checkout(folder)
    with checkout.home():
        try:
            yield checkout
        finally:
            checkout.make("destroy")


def made_once(checkout: Checkout) -> dict[tuple[str, str], str]:
    """The files of MADE_ONCE that completed commands created on the machines of stack dev."""
    known, found = checkout.resources(), {}
    for name in ("scheduler", "worker-1", "worker-2"):
        folder = Path(checkout.environ["XDG_DATA_HOME"], "daskstack/machines/dev", name)
        for step, paths in MADE_ONCE.items():
            if step.format(name) in known:
                found |= {(name, path): as_root("cat", str(folder / path)).stdout for path in paths}
    return found
