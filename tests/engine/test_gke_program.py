"""The program with `target: kubernetes`, run by the real engine without a cluster."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.engine.previews import Previews, planned
from tools.rehearse import KEY

UNREACHABLE = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "u", "user": {"token": "t"}}],
    "contexts": [{"name": "none", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "none",
}
SETTINGS = {"target": "kubernetes", "cluster": {"source": "existing"}}


class Stack(Previews):
    def __init__(self, folder: Path) -> None:
        super().__init__("kubernetes", folder)
        self.shipped = SETTINGS
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(UNREACHABLE))

    def start(self, config: dict[str, Any]) -> None:
        """Writes the settings of a cluster that does not answer; no Kubernetes starts."""
        self.set(config, str(self.kubeconfig), "none")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return Stack(tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="module")
def shipped(stack: Stack) -> dict[str, dict[str, Any]]:
    return stack.resources()


@pytest.fixture(scope="module")
def changed(stack: Stack) -> dict[str, dict[str, Any]]:
    """A stack without TLS and Jupyter, in an existing namespace, with three groups of workers."""
    groups = [{"name": "large", "replicas": 3}, {"name": "gpu"}]
    return stack.resources(
        dask={"tls": False},
        jupyter={"enabled": False},
        namespace={"name": "theirs", "create": False},
        workers={"replicas": 2},
        values={"additional_worker_groups": groups},
    )


def test_a_preview_without_a_cluster_shows_every_resource(shipped: dict) -> None:
    assert {
        "dask-check-namespace",
        "dask-namespace",
        "dask-tls-scheduler",
        "dask-tls-worker",
        "dask-tls-client",
        "dask-jupyter-password",
        "dask-release",
        "dask-check",
    } <= set(shipped)
    labels = shipped["dask-namespace"]["inputs"]["metadata"]["labels"]
    for mode in ("enforce", "audit", "warn"):
        assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"
        assert labels[f"pod-security.kubernetes.io/{mode}-version"] == "latest"
    assert shipped["dask-release"]["inputs"]["chart"] == "./charts/dask"
    # `destroy` deletes the check first, and stops if the kubeconfig leads to another cluster.
    assert shipped["dask-check"]["inputs"]["delete"].endswith("on_this_computer.check_cluster")


def test_private_keys_and_passwords_are_encrypted(shipped: dict) -> None:
    assert "PRIVATE KEY" not in json.dumps(shipped)
    for name in ("dask-tls-1", "dask-people-dask-kubernetes-1", "dask-jupyter"):
        assert shipped[name]["inputs"]["input"] == "[secret]"


def test_without_tls_and_jupyter_the_cluster_gets_no_secrets_for_them(changed: dict) -> None:
    assert [name for name, state in changed.items() if state["type"] == "kubernetes:core/v1:Secret"] == []


def test_an_existing_namespace_is_not_created(changed: dict) -> None:
    assert "dask-namespace" not in changed
    assert changed["dask-release"]["inputs"]["namespace"] == "theirs"


def test_the_check_expects_the_workers_of_all_groups(changed: dict) -> None:
    assert json.loads(changed["dask-check"]["inputs"]["environment"]["EXPECT"])["workers"] == 2 + 3 + 2


def test_a_stack_keeps_the_context_of_its_first_up(tmp_path: Path) -> None:
    """Otherwise `up` or `destroy` would act on another cluster after the user switches the context."""
    stack = Stack(tmp_path)  # not the shared one, which must never be up

    def switch(current: str) -> None:
        contexts = [{"name": name, "context": {"cluster": "c", "user": "u"}} for name in ("none", "other")]
        stack.kubeconfig.write_text(yaml.safe_dump(UNREACHABLE | {"contexts": contexts, "current-context": current}))
        stack.set({"config": {KEY: copy.deepcopy(SETTINGS)}}, str(stack.kubeconfig), "")

    def fails(*words: str) -> str:
        done = stack.pulumi(*words, "--yes", "--skip-preview", check=False, capture_output=True, text=True)
        assert done.returncode
        return done.stdout + done.stderr

    switch("none")
    fails("up")  # the cluster does not answer, but its context is recorded
    switch("other")
    done = stack.pulumi("preview", "--json", capture_output=True, text=True)
    found = planned(done.stdout)
    assert "kubernetes" not in found, "the provider would change"
    assert json.loads(found["dask-check-namespace"]["inputs"]["environment"]["CLUSTER"])["context"] == "none"
    assert "current context is other, but this stack stays on none" in done.stdout + done.stderr

    other = {"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:2"}}]}
    stack.kubeconfig.write_text(yaml.safe_dump(UNREACHABLE | other))
    sentence = "context none of {} leads to https://127.0.0.1:2 now, but this stack is on https://127.0.0.1:1: restore"
    assert sentence.format(stack.kubeconfig) in fails("up")


def test_all_mistakes_are_reported_at_once_before_anything_is_registered(stack: Stack) -> None:
    done = stack.preview(workers={"replica": 3}, wait=1)
    assert done.returncode
    printed = done.stdout + done.stderr
    assert "workers.replica: unknown key; did you mean replicas?" in printed
    assert "wait: 1 is too small; write 30 or more" in printed
    assert "Traceback" not in printed
    assert "DaskOnKubernetes" not in printed, "nothing is registered"
