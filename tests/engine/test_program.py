"""The whole program on local machines, run by the real engine."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rehearsal.machines import CommandError
from tests.checkout import Checkout
from tests.engine.previews import planned


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    clone = Checkout(tmp_path_factory.mktemp("user"))
    clone.pulumi("stack", "init")
    clone.keep()
    return clone


@pytest.fixture
def checkout(clone: Checkout) -> Checkout:
    """A clone with the shipped files. Its stack was never up."""
    clone.reset()
    return clone


def write(checkout: Checkout, cluster: dict) -> None:
    """Replaces the cluster's settings of stack `dev`."""
    stack = yaml.safe_load(checkout.file.read_text())
    stack["config"]["dask:cluster"] = cluster
    checkout.file.write_text(yaml.safe_dump(stack))


@pytest.fixture
def configure(checkout: Checkout) -> Callable[[dict], None]:
    return functools.partial(write, checkout)


def preview(checkout: Checkout) -> dict[str, dict]:
    return planned(checkout.pulumi("preview", "--json"))


LOCAL = {"target": "machines", "machines": {"source": "local", "workers": 3}}


@pytest.fixture(scope="module")
def resources(clone: Checkout) -> dict[str, dict]:
    """The resources that `up` would create with LOCAL."""
    clone.reset()
    write(clone, LOCAL)
    return preview(clone)


def test_a_preview_lists_every_step_of_every_machine(resources: dict[str, dict]) -> None:
    states = ["firewall", "keys", "certificates", "credentials", "data", "environment", "service"]
    for machine in ("scheduler", "worker-1", "worker-2", "worker-3"):
        for state in states:
            assert resources[f"dask-{machine}-{state}"]["parent"].endswith(f"::dask-{machine}")
    assert resources["dask-check"]["parent"].endswith("DaskOnMachines::dask")


def test_a_preview_creates_nothing_on_this_computer(clone: Checkout, resources: dict[str, dict]) -> None:
    assert [path.name for path in Path(clone.environ["XDG_DATA_HOME"], "daskstack").iterdir()] == ["state"]
    assert list(Path(clone.environ["XDG_RUNTIME_DIR"]).iterdir()) == []


def test_all_mistakes_are_reported_at_once_before_anything_is_registered(checkout: Checkout, configure) -> None:
    configure(
        {
            "target": "machines",
            "machines": {"source": "local"},
            "data": {"path": "/etc"},
            "firewall": {"ssh": ["0.0.0.0/0"]},
        }
    )
    with pytest.raises(CommandError) as failure:
        preview(checkout)
    printed = str(failure.value)
    assert "dask:cluster.data.path" in printed
    assert "dask:cluster.firewall.ssh[0]" in printed
    assert "Traceback" not in printed
    assert "LocalMachines" not in printed


def rejected(checkout: Checkout) -> str:
    """The output of a preview that must fail before it registers anything."""
    with pytest.raises(CommandError) as failure:
        preview(checkout)
    printed = str(failure.value)
    assert "Traceback" not in printed
    assert "LocalMachines" not in printed and "ExistingMachines" not in printed, "nothing is registered"
    return printed


def test_a_secret_inside_the_settings_is_rejected_and_never_shown(checkout: Checkout, configure) -> None:
    configure(LOCAL)
    text = "correct-horse-battery-staple"
    checkout.pulumi("config", "set", "--secret", "--path", "dask:cluster.dask.config.my.password", text)
    printed = rejected(checkout)
    assert "dask:cluster.dask.config.my.password: is a secret" in printed
    assert "pulumi config set --secret --path 'dask:secretEnv.NAME'" in printed
    printed_by_up = checkout.make("up", succeeds=False)
    assert "is a secret" in printed_by_up
    assert text not in printed + printed_by_up + checkout.pulumi("stack", "export")


def test_stack_dev_accepts_only_machines_on_this_computer(checkout: Checkout, configure) -> None:
    """Its passphrase is empty, so everyone who can read its file could decrypt an SSH key in it."""
    hosts = [{"name": name, "address": f"10.1.0.{number}"} for number, name in enumerate(("a", "b"), 5)]
    configure({"target": "machines", "machines": {"source": "existing", "hosts": hosts}})
    printed = rejected(checkout)
    assert "dask:cluster.machines.source: stack dev supports only machines on this computer" in printed
    assert "make up STACK=NAME" in printed
    (checkout.folder / "kubeconfig").touch()
    configure(
        {"target": "kubernetes", "cluster": {"source": "existing", "kubeconfig": str(checkout.folder / "kubeconfig")}}
    )
    assert "dask:cluster.target: stack dev supports only machines on this computer" in rejected(checkout)


def test_a_password_in_plain_text_is_reported_with_the_command_that_encrypts_it(checkout: Checkout, configure) -> None:
    configure(LOCAL)
    checkout.pulumi("config", "set", "--plaintext", "dask:jupyterPassword", "swordfish")
    printed = checkout.pulumi("preview")
    assert "dask:jupyterPassword is plain text" in printed
    assert "pulumi config set --secret dask:jupyterPassword" in printed
    assert "swordfish" not in printed
    checkout.pulumi("config", "set", "--secret", "dask:jupyterPassword", "swordfish")
    assert "plain text" not in checkout.pulumi("preview")


def test_commands_contain_no_path_of_this_computer_and_no_key(clone: Checkout, resources: dict[str, dict]) -> None:
    """Otherwise the state would hold a key, and `up` from another checkout would run every command again."""
    commands = {name: state["inputs"] for name, state in resources.items() if state["type"].startswith("command:")}
    assert commands
    for name, inputs in commands.items():
        text = json.dumps([inputs.get(key) for key in ("create", "update", "delete", "dir")])
        for word in (str(clone.folder), str(clone.folder.resolve()), sys.prefix, str(Path.home()), "PRIVATE KEY"):
            assert word not in text, name


def test_only_the_first_run_of_a_step_undoes_itself_on_failure(resources: dict[str, dict]) -> None:
    """Pulumi forgets a failed create, so no destroy would undo it. A failed update keeps the older state."""
    runs = {
        tuple(state["inputs"][key].removeprefix("sudo -n ") for key in ("create", "update", "delete"))
        for state in resources.values()
        if state["type"] == "command:remote:Command"
    }
    assert runs == {("bash -s first", "bash -s", "bash -s undo")}


def test_a_changed_step_runs_again_in_place(resources: dict[str, dict]) -> None:
    """Pulumi would undo a replaced step after its successor has run."""
    steps = [state for state in resources.values() if state["type"] == "command:remote:Command"]
    assert steps and not [step["urn"] for step in steps if step["inputs"].get("triggers")]


def test_make_env_gives_plain_pulumi_the_same_stack(checkout: Checkout) -> None:
    exports = checkout.make("-s", "env")
    command = f"{exports}\npulumi stack ls --json"
    done = subprocess.run(
        ["bash", "-c", command], cwd=checkout.folder, env=checkout.environ, capture_output=True, text=True
    )
    assert [stack["name"] for stack in json.loads(done.stdout)] == ["dev"]
