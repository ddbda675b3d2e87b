"""Commands on a cluster in Kubernetes; tests/machines/test_stack.py has those on machines."""

import json
import queue
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from daskstack import cluster_commands, engine, status_and_logs
from daskstack.client_output import KubernetesClient, Tls
from daskstack.status_and_logs import RemoteError, Scaling

CLIENT = KubernetesClient(
    scheduler="tls://dask-scheduler:8786", dashboard="http://dask-webui:80/status", python="3.11", packages={},
    tls=Tls(authority="", certificate="", key=""), lock="environment.lock", sleeps=False,
    kubernetes={"kubeconfig": "/k", "context": "c"}, namespace="dask-mine",
)  # fmt: skip


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The inputs of the check in the stack's state; a test can change them."""
    inputs: dict[str, Any] = {}
    resources = [
        {"type": "command:local:Command", "urn": "a::dask-check-namespace", "inputs": {"create": "exit 9"}},
        {"type": "command:local:Command", "urn": "a::dask-check", "inputs": inputs},
    ]
    exported = CompletedProcess([], 0, json.dumps({"deployment": {"resources": resources}}), "")
    monkeypatch.setattr(engine, "cluster", lambda stack: {"client": CLIENT})

    def pulumi(*words: str, **_: object) -> CompletedProcess:
        assert words == ("mine", "stack", "export", "--show-secrets")
        exported.stdout = json.dumps({"deployment": {"resources": resources}})
        return exported

    monkeypatch.setattr(engine, "pulumi", pulumi)
    return inputs


def test_the_status_is_also_available_as_json(
    state: dict[str, Any], monkeypatch, capsys: pytest.CaptureFixture
) -> None:
    worker = {"name": "w", "status": "running", "threads": 2, "used": 1.0, "limit": 2.0, "cpu": 3.0}
    person = {"name": "alice", "connections": 1, "running": 0, "waiting": 5}
    report = status_and_logs.Status.model_validate({"workers": [worker], "people": [person]})
    monkeypatch.setattr(status_and_logs, "status", lambda outputs: report)
    cluster_commands.status("mine", as_json=True)
    known = {"stack": "mine", "scheduler": CLIENT.scheduler, "bounds": None}
    assert json.loads(capsys.readouterr().out) == known | {"workers": [worker], "people": [person]}


def test_jupyter_fails_if_there_is_no_notebook_server(state: dict[str, Any]) -> None:
    with pytest.raises(engine.EngineError, match="stack mine has no notebook server"):
        cluster_commands.jupyter("mine")


@pytest.mark.parametrize("display", ["", ":0"])
def test_a_page_opens_in_the_browser_if_there_is_a_display(display: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr(sys, "platform", "linux")
    opened = queue.Queue[str]()
    monkeypatch.setattr("webbrowser.open", opened.put)
    cluster_commands.open_browser("http://127.0.0.1:1/lab")
    if display:
        assert opened.get(timeout=10) == "http://127.0.0.1:1/lab"
    else:
        assert opened.empty()


@pytest.mark.parametrize("place", ["value", "environment"])
def test_check_runs_the_command_of_the_state_with_its_secrets(
    state: dict[str, Any], place: str, capsys: pytest.CaptureFixture
) -> None:
    def secret(value: object) -> dict[str, str]:
        return {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270", "plaintext": json.dumps(value)}

    environment = {"CLUSTER": secret("of kubectl") if place == "value" else "of kubectl"}
    state["environment"] = secret(environment) if place == "environment" else environment
    state["create"] = 'echo "workers $CLUSTER $(pwd)"'
    cluster_commands.check("mine")
    assert capsys.readouterr().out == f"workers of kubectl {engine.PROJECT}\n"


def test_a_check_that_fails_is_an_error_with_its_words(state: dict[str, Any]) -> None:
    state.update(create="echo no workers >&2; exit 1", environment={})
    with pytest.raises(RemoteError, match="no workers"):
        cluster_commands.check("mine")


@pytest.mark.parametrize(
    ("machine", "words", "pod", "run"),
    [
        (None, [], "scheduler", ["sh"]),
        ("worker", ["ls /", "|", "wc"], "worker", ["sh", "-c", "ls / | wc"]),
    ],
)
def test_ssh_runs_a_shell_in_a_pod(
    state: dict[str, Any], machine: str | None, words: list[str], pod: str, run: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\nsys.exit(5)\n")
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    assert cluster_commands.shell("mine", machine, words) == 5
    expected = ["--kubeconfig", "/k", "--context", "c", "--namespace", "dask-mine", "exec", "--stdin"]
    assert json.loads(capfd.readouterr().out) == [*expected, f"deployment/dask-{pod}", "--", *run]


def test_scaling_a_stack_without_bounds_names_the_setting(state: dict[str, Any]) -> None:
    with pytest.raises(engine.EngineError, match=r"a fixed number of workers; to scale it, set workers.min or .*mine"):
        cluster_commands.scale("mine", 3, False, None, None)


def test_scale_prints_the_number_and_the_bounds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    asked: list[tuple] = []

    def scale(_: object, handler: str, **arguments: int | None) -> Scaling:
        asked.append((handler, arguments))
        return Scaling(number=2, min=1, max=6, adaptive=[1, 4] if handler == "workers_adapt" else None)

    monkeypatch.setattr(status_and_logs, "scale", scale)
    monkeypatch.setattr(engine, "cluster", lambda stack: {"client": replace(CLIENT, bounds=[1, 6])})
    cluster_commands.scale("mine", 2, False, None, None)
    cluster_commands.scale("mine", None, True, None, 4)
    cluster_commands.scale("mine", None, False, None, None)
    assert asked == [
        ("workers_scale", {"number": 2}),
        ("workers_adapt", {"minimum": None, "maximum": 4}),
        ("workers_scaling", {}),
    ]
    fixed = "workers      2; the number stays until the next scale; the stack allows 1 to 6\n"
    assert capsys.readouterr().out == fixed + fixed.replace("stays until the next scale", "adapts from 1 to 4") + fixed
