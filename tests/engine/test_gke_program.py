"""The program with `target: kubernetes` in the real engine, without a cluster."""

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.rehearse import KEY, Rehearsal

UNREACHABLE = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "u", "user": {"token": "t"}}],
    "contexts": [{"name": "none", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "none",
}
SETTINGS = {"target": "kubernetes", "cluster": {"source": "existing"}}


class Stack(Rehearsal):
    def __init__(self, folder: Path) -> None:
        super().__init__("kubernetes", folder)
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(UNREACHABLE))
        self.pulumi("stack", "select", "--create", capture_output=True)

    def preview(self, **changed: Any) -> subprocess.CompletedProcess[str]:
        settings = copy.deepcopy(SETTINGS) | changed
        self.set({"config": {KEY: settings}}, str(self.kubeconfig), "none")
        try:
            return self.pulumi("preview", "--json", capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            return subprocess.CompletedProcess(error.cmd, error.returncode, error.stdout, error.stderr)

    def resources(self, **changed: Any) -> dict[str, dict[str, Any]]:
        """What a preview would make, by name."""
        done = self.preview(**changed)
        assert done.returncode == 0, done.stdout + done.stderr
        steps = json.loads(done.stdout)["steps"]
        return {step["urn"].split("::")[-1]: step["newState"] for step in steps}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return Stack(tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="module")
def shipped(stack: Stack) -> dict[str, dict[str, Any]]:
    return stack.resources()


@pytest.fixture(scope="module")
def changed(stack: Stack) -> dict[str, dict[str, Any]]:
    """Without all that a stack can do without."""
    return stack.resources(
        dask={"tls": False}, jupyter={"enabled": False}, namespace={"name": "theirs", "create": False}
    )


def test_a_preview_needs_no_cluster_and_shows_everything(shipped: dict) -> None:
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


def test_nobodys_private_key_or_password_is_outside_encrypted_state(shipped: dict) -> None:
    assert "PRIVATE KEY" not in json.dumps(shipped)
    for name in ("dask-tls-1", "dask-jupyter"):
        assert shipped[name]["inputs"]["input"] == "[secret]"


def test_without_tls_and_jupyter_there_is_nothing_of_theirs(changed: dict) -> None:
    assert not {"dask-tls-scheduler", "dask-tls-worker", "dask-tls-client", "dask-jupyter-password"} & set(changed)


def test_a_namespace_that_is_there_is_not_made(changed: dict) -> None:
    assert "dask-namespace" not in changed
    assert changed["dask-release"]["inputs"]["namespace"] == "theirs"


def test_a_stack_stays_on_the_context_that_was_current_at_its_first_up(tmp_path: Path) -> None:
    """Else an `up` or a destroy would act on whatever cluster somebody has switched to since."""
    stack = Stack(tmp_path)  # of its own: the others preview one that was never up

    def say(current: str) -> None:
        contexts = [{"name": name, "context": {"cluster": "c", "user": "u"}} for name in ("none", "other")]
        stack.kubeconfig.write_text(yaml.safe_dump(UNREACHABLE | {"contexts": contexts, "current-context": current}))
        stack.set({"config": {KEY: copy.deepcopy(SETTINGS)}}, str(stack.kubeconfig), "")

    say("none")
    with pytest.raises(subprocess.CalledProcessError):  # nothing answers, but it is known where to ask
        stack.pulumi("up", "--yes", "--skip-preview", capture_output=True)
    say("other")
    done = stack.pulumi("preview", "--json", capture_output=True, text=True)
    steps = {step["urn"].split("::")[-1]: step["newState"] for step in json.loads(done.stdout)["steps"]}
    assert "kubernetes" not in steps, "its provider is unchanged"
    assert json.loads(steps["dask-check-namespace"]["inputs"]["environment"]["CLUSTER"])["context"] == "none"
    assert "current context is other, but this stack stays on none" in done.stdout + done.stderr


def test_every_mistake_is_told_at_once_before_anything_is_registered(stack: Stack) -> None:
    done = stack.preview(workers={"replica": 3}, wait=1)
    assert done.returncode
    printed = done.stdout + done.stderr
    assert "workers.replica: unknown key; did you mean replicas?" in printed
    assert "wait: 1 is too small; write 30 or more" in printed
    assert "Traceback" not in printed
