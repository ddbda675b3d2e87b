"""The whole program on machines that exist, as far as it goes without one: nothing of this connects to anything."""

import json
import socket
from collections.abc import Callable, Iterator

import pytest
import yaml

from components.machines.client_keys import ssh_identity
from components.machines.machine import STATES
from rehearsal.machines import CommandError
from settings import HOST_KEY
from tests.checkout import Checkout

HOSTS = [
    {"name": "head", "address": "203.0.113.5", "port": 2222, "hostKey": HOST_KEY},
    {"name": "worker-1", "address": "203.0.113.6", "port": 2222, "bastion": "gate", "privateAddress": "10.1.0.6"},
    {"name": "worker-2", "address": "203.0.113.7", "port": 2222},
]
MACHINES = {"source": "existing", "hosts": HOSTS, "bastions": [{"name": "gate", "address": "203.0.113.4"}]}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    folder = tmp_path_factory.mktemp("user")
    clone = Checkout(folder, "mine")
    stack = yaml.safe_load(clone.file.read_text())
    stack["config"]["dask:cluster"] = {"target": "machines", "machines": MACHINES}
    clone.file.write_text(yaml.safe_dump(stack))
    clone.pulumi("stack", "init")
    clone.keep()
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(folder / "agent"))
        yield clone


@pytest.fixture
def checkout(clone: Checkout, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """A clone whose stack is on such machines; an agent seems to be there."""
    clone.reset()
    monkeypatch.setitem(clone.environ, "SSH_AUTH_SOCK", str(clone.folder.parent / "agent"))
    return clone


@pytest.fixture
def preview(checkout: Checkout) -> Callable[[], dict[str, dict]]:
    """What a preview would create, by the name of the resource."""

    def run() -> dict[str, dict]:
        steps = json.loads(checkout.pulumi("preview", "--json"))["steps"]
        return {step["urn"].rsplit("::", 1)[1]: step["newState"] for step in steps}

    return run


def test_a_preview_shows_every_machine_and_takes_no_connection(preview: Callable[[], dict[str, dict]]) -> None:
    planned = preview()
    steps = {name for name, state in planned.items() if state["type"] == "command:remote:Command"}
    for machine in ("head", "worker-1", "worker-2"):
        prefix = f"dask-{machine}-"
        states = {name.removeprefix(prefix) for name in steps if name.startswith(prefix)}
        # Certificates are revoked on the authority's machine, whatever becomes of this one.
        kept = states - {"certificates"}
        assert kept | {"authority"} == set(STATES), "those that are kept of a machine that is gone"
    assert "machines-gate-host-key" in planned
    assert "\nSSH_PORT=2222\n" in planned["dask-head-firewall"]["inputs"]["stdin"]


def test_a_failure_tells_what_to_do_about_a_machine_that_is_dead(checkout: Checkout) -> None:
    """Here it is the key that is missing: a failure tells it whatever the reason, which the engine alone knows."""
    del checkout.environ["SSH_AUTH_SOCK"]
    assert "set `gone: true` for it in Pulumi.mine.yaml" in checkout.make("up", succeeds=False)


def test_without_agent_and_key_nothing_is_registered_and_both_remedies_are_told(
    checkout: Checkout, preview: Callable[[], dict[str, dict]]
) -> None:
    del checkout.environ["SSH_AUTH_SOCK"]
    with pytest.raises(CommandError) as failure:
        preview()
    said = str(failure.value)
    assert "ssh-add" in said and "pulumi config set --secret dask:sshKey" in said
    assert "ExistingMachines" not in said and "Traceback" not in said


def test_a_key_of_the_stack_is_used(checkout: Checkout, preview: Callable[[], dict[str, dict]]) -> None:
    del checkout.environ["SSH_AUTH_SOCK"]
    checkout.pulumi("config", "set-all", "--secret", f"dask:sshKey={ssh_identity()['private']}")
    assert preview()["dask-head-keys"]["inputs"]["connection"]
