"""The whole program under the real engine."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from checkout import Checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    checkout = Checkout(tmp_path)
    checkout.pulumi("stack", "init")
    return checkout


@pytest.fixture
def say(checkout: Checkout) -> Callable[[dict], None]:
    """Writes what stack `dev` says about its cluster."""

    def write(cluster: dict) -> None:
        path = checkout.folder / "Pulumi.dev.yaml"
        stack = yaml.safe_load(path.read_text())
        stack["config"]["dask:cluster"] = cluster
        path.write_text(yaml.safe_dump(stack))

    return write


def preview(checkout: Checkout) -> dict[str, dict]:
    """What a preview would create, by the name of the resource."""
    steps = json.loads(checkout.pulumi("preview", "--json"))["steps"]
    return {step["urn"].rsplit("::", 1)[1]: step["newState"] for step in steps}


LOCAL = {"target": "vms", "machines": {"source": "local", "workers": 3}}


def test_a_newcomer_reads_machine_by_machine_and_step_by_step_what_is_made(checkout: Checkout, say) -> None:
    say(LOCAL)
    planned = preview(checkout)
    states = ["firewall", "keys", "certificates", "credentials", "data", "environment", "service"]
    for machine in ("scheduler", "worker-1", "worker-2", "worker-3"):
        for state in states:
            assert f"::{machine}" in planned[f"{machine}-{state}"]["parent"]
    assert planned["check"]["parent"].endswith("DaskVms::dev")


def test_a_preview_changes_nothing_on_this_computer(checkout: Checkout, say) -> None:
    say(LOCAL)
    preview(checkout)
    assert not Path(checkout.environ["XDG_DATA_HOME"], "daskstack", "machines").exists()


def test_all_mistakes_are_told_at_once_before_anything_is_registered(checkout: Checkout, say) -> None:
    say(
        {"target": "vms", "machines": {"source": "local"}, "data": {"path": "/etc"}, "firewall": {"ssh": ["0.0.0.0/0"]}}
    )
    with pytest.raises(AssertionError) as failure:
        preview(checkout)
    said = str(failure.value)
    assert "dask:cluster.data.path" in said
    assert "dask:cluster.firewall.ssh[0]" in said
    assert "Traceback" not in said
    assert "LocalMachines" not in said


def test_every_command_runs_what_a_plain_checkout_has(checkout: Checkout, say) -> None:
    """No path of one computer and no key is in what a Command is told to run."""
    say(LOCAL)
    for name, state in preview(checkout).items():
        if state["type"].startswith("command:"):
            text = json.dumps([state["inputs"].get(key) for key in ("create", "update", "delete", "dir")])
            assert str(checkout.folder) not in text, name


def test_make_env_gives_plain_pulumi_the_same_stack(checkout: Checkout) -> None:
    exports = checkout.make("-s", "env")
    command = f"{exports}\npulumi stack ls --json"
    done = subprocess.run(
        ["bash", "-c", command], cwd=checkout.folder, env=checkout.environ, capture_output=True, text=True
    )
    assert [stack["name"] for stack in json.loads(done.stdout)] == ["dev"]
