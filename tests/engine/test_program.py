"""The whole program under the real engine."""

import functools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rehearsal.machines import CommandError
from tests.checkout import Checkout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    clone = Checkout(tmp_path_factory.mktemp("user"))
    clone.pulumi("stack", "init")
    clone.keep()
    return clone


@pytest.fixture
def checkout(clone: Checkout) -> Checkout:
    """A clone whose files are as they were shipped. Its stack was never up."""
    clone.reset()
    return clone


def write(checkout: Checkout, cluster: dict) -> None:
    """What stack `dev` says about its cluster."""
    stack = yaml.safe_load(checkout.file.read_text())
    stack["config"]["dask:cluster"] = cluster
    checkout.file.write_text(yaml.safe_dump(stack))


@pytest.fixture
def say(checkout: Checkout) -> Callable[[dict], None]:
    return functools.partial(write, checkout)


def preview(checkout: Checkout) -> dict[str, dict]:
    """What a preview would create, by the name of the resource."""
    steps = json.loads(checkout.pulumi("preview", "--json"))["steps"]
    return {step["urn"].rsplit("::", 1)[1]: step["newState"] for step in steps}


LOCAL = {"target": "machines", "machines": {"source": "local", "workers": 3}}


@pytest.fixture(scope="module")
def planned(clone: Checkout) -> dict[str, dict]:
    """What a preview of LOCAL would create."""
    clone.reset()
    write(clone, LOCAL)
    return preview(clone)


def test_a_newcomer_reads_machine_by_machine_and_step_by_step_what_is_made(planned: dict[str, dict]) -> None:
    states = ["firewall", "keys", "certificates", "credentials", "data", "environment", "service"]
    for machine in ("scheduler", "worker-1", "worker-2", "worker-3"):
        for state in states:
            assert planned[f"dask-{machine}-{state}"]["parent"].endswith(f"::dask-{machine}")
    assert planned["dask-check"]["parent"].endswith("DaskOnMachines::dask")


def test_a_preview_changes_nothing_on_this_computer(clone: Checkout, planned: dict[str, dict]) -> None:
    assert not Path(clone.environ["XDG_DATA_HOME"], "daskstack", "machines").exists()


def test_all_mistakes_are_told_at_once_before_anything_is_registered(checkout: Checkout, say) -> None:
    say(
        {
            "target": "machines",
            "machines": {"source": "local"},
            "data": {"path": "/etc"},
            "firewall": {"ssh": ["0.0.0.0/0"]},
        }
    )
    with pytest.raises(CommandError) as failure:
        preview(checkout)
    said = str(failure.value)
    assert "dask:cluster.data.path" in said
    assert "dask:cluster.firewall.ssh[0]" in said
    assert "Traceback" not in said
    assert "LocalMachines" not in said


def refused(checkout: Checkout) -> str:
    """What a preview that cannot succeed prints."""
    with pytest.raises(CommandError) as failure:
        preview(checkout)
    said = str(failure.value)
    assert "Traceback" not in said
    assert "LocalMachines" not in said and "ExistingMachines" not in said, "nothing is registered"
    return said


def test_a_secret_within_the_settings_is_refused_and_its_text_is_nowhere(checkout: Checkout, say) -> None:
    say(LOCAL)
    text = "correct-horse-battery-staple"
    checkout.pulumi("config", "set", "--secret", "--path", "dask:cluster.dask.config.my.password", text)
    said = refused(checkout)
    assert "dask:cluster.dask.config.my.password: is a secret" in said
    assert "pulumi config set --secret --path 'dask:secretEnv.NAME'" in said
    told = checkout.make("up", succeeds=False)
    assert "is a secret" in told
    assert text not in said + told + checkout.pulumi("stack", "export")


def test_stack_dev_is_for_machines_on_this_computer_alone(checkout: Checkout, say) -> None:
    """Its passphrase is empty: an SSH key among its secrets would be everybody's who reads the file."""
    hosts = [{"name": name, "address": f"10.1.0.{number}"} for number, name in enumerate(("a", "b"), 5)]
    say({"target": "machines", "machines": {"source": "existing", "hosts": hosts}})
    said = refused(checkout)
    assert "dask:cluster.machines.source: stack dev supports only machines on this computer" in said
    assert "make up STACK=NAME" in said
    (checkout.folder / "kubeconfig").touch()
    say({"target": "kubernetes", "cluster": {"source": "existing", "kubeconfig": str(checkout.folder / "kubeconfig")}})
    assert "dask:cluster.target: stack dev supports only machines on this computer" in refused(checkout)


def test_a_password_in_plain_text_is_told_with_the_command_that_encrypts_it(checkout: Checkout, say) -> None:
    say(LOCAL)
    checkout.pulumi("config", "set", "--plaintext", "dask:jupyterPassword", "swordfish")
    said = checkout.pulumi("preview")
    assert "dask:jupyterPassword is plain text" in said
    assert "pulumi config set --secret dask:jupyterPassword" in said
    assert "swordfish" not in said
    checkout.pulumi("config", "set", "--secret", "dask:jupyterPassword", "swordfish")
    assert "plain text" not in checkout.pulumi("preview")


def test_every_command_runs_what_a_plain_checkout_has(clone: Checkout, planned: dict[str, dict]) -> None:
    """No path of one computer and no key is in what a Command is told to run."""
    for name, state in planned.items():
        if state["type"].startswith("command:"):
            text = json.dumps([state["inputs"].get(key) for key in ("create", "update", "delete", "dir")])
            assert str(clone.folder) not in text, name


def test_only_a_step_that_no_destroy_would_undo_undoes_itself(planned: dict[str, dict]) -> None:
    """Its first run, which Pulumi forgets when it fails; later ones leave what is there."""
    runs = {
        tuple(state["inputs"][key].removeprefix("sudo -n ") for key in ("create", "update", "delete"))
        for state in planned.values()
        if state["type"] == "command:remote:Command"
    }
    assert runs == {("bash -s first", "bash -s", "bash -s undo")}


def test_a_changed_step_runs_again_in_place(planned: dict[str, dict]) -> None:
    """A replacement would run the old script's undo after the new script."""
    steps = [state for state in planned.values() if state["type"] == "command:remote:Command"]
    assert steps and not [step["urn"] for step in steps if step["inputs"].get("triggers")]


def test_make_env_gives_plain_pulumi_the_same_stack(checkout: Checkout) -> None:
    exports = checkout.make("-s", "env")
    command = f"{exports}\npulumi stack ls --json"
    done = subprocess.run(
        ["bash", "-c", command], cwd=checkout.folder, env=checkout.environ, capture_output=True, text=True
    )
    assert [stack["name"] for stack in json.loads(done.stdout)] == ["dev"]
