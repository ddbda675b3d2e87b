"""A stack with `target: kubernetes` on the session's Kubernetes, for several files of tests."""

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

from daskstack import client_output, connection
from rehearsal.kubernetes import images, network, objects
from tests.kubernetes.support import Cluster, until
from tools.rehearse import KEY, Rehearsal

SMALL = {"cpu": 0.2, "memory": "1 GiB"}
SETTINGS = {
    "target": "kubernetes",
    "cluster": {"source": "existing"},
    "workers": {"replicas": 2, **SMALL},
    "scheduler": SMALL,
    "jupyter": {**SMALL, "storage": "1Gi"},
    "data": {"size": "1Gi", "className": objects.SHARED, "delete": True},
    "wait": 500,
    # Pods install nothing when they start, unless a test needs it.
    "image": images.INSTALLED,
}
STACK = "kubernetes"  # one that has a stack file, which is not changed
SPACE = f"dask-{STACK}"
TOKEN = "swordfish's $HOME"


class Stack(Rehearsal):
    """A stack on the session's Kubernetes."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        super().__init__(STACK, folder)
        self.cluster = cluster
        self.printed = ""
        self.applied: object = None
        self.change({})

    def change(self, settings: dict[str, Any], **config: str) -> None:
        """Writes the settings for the next command; these values replace those of SETTINGS."""
        whole = copy.deepcopy(SETTINGS) | copy.deepcopy(settings)
        self.set({"config": {KEY: whole, **config}}, str(self.cluster.kubeconfig), "rehearsal")

    def run(self, *words: str, succeeds: bool = True) -> str:
        """Runs `pulumi` and returns its output."""
        if words[0] in ("up", "destroy"):
            self.applied = None
        with (self.folder / "printed.log").open("w+") as log:  # also if the run is killed at the time limit
            try:
                self.pulumi(*words, stdout=log, stderr=subprocess.STDOUT, text=True, timeout=900)
                ended = True
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                ended = False
                assert isinstance(error, subprocess.CalledProcessError), printed(log, error)
            assert ended == succeeds, printed(log)
            return printed(log)

    def up(self, succeeds: bool = True) -> str:
        self.run("stack", "select", "--create")
        return self.run("up", "--yes", "--skip-preview", succeeds=succeeds)

    def has(self, settings: dict[str, Any], token: str = "", **config: str) -> str:
        """Brings the stack to these settings, unless it has them; returns the output of the `up` that applied them.

        `token` is a secret variable TOKEN.
        """
        wanted = (copy.deepcopy(settings), token, config, self.project)
        if self.applied != wanted:
            self.change(settings, **config)
            if token:
                self.run("stack", "select", "--create")
                self.run("config", "set", "--secret", "--path", "dask:secretEnv.TOKEN", token)
            self.printed = self.up()
            # Tests expect as many pods as there are replicas, but replaced workers can still be retiring.
            leaving = ("get", "pods", "--output=jsonpath={.items[*].metadata.deletionTimestamp}")
            until(lambda: not self.kubectl(*leaving), 300)
            self.applied = wanted
        return self.printed

    def destroyed(self) -> str:
        self.run("stack", "select", "--create")
        return self.run("destroy", "--yes", "--skip-preview")

    def outputs(self) -> dict[str, Any]:
        known = json.loads(self.run("stack", "output", "--json", "--show-secrets"))
        return known | {"client": client_output.parse(known["client"])}

    def connect(self) -> connection.Client:
        return connection.Client(self.outputs()["client"])

    def kubectl(self, *words: str) -> str:
        return self.cluster.kubectl("--namespace", SPACE, *words)


def printed(log: Any, error: Exception | None = None) -> str:
    log.seek(0)
    return log.read() + (str(error) if error else "")


def exposed(stack: Stack) -> dict[str, Any]:
    """A load balancer that admits only this computer."""
    here, *_ = network.addresses(stack.cluster.directory)
    return {"expose": {"scheduler": {"sources": [f"{here}/32"]}}}
