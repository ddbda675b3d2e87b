"""The program on existing machines, as far as it runs without one. No test connects to a machine."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from components.machines.machine import STATES
from daskstack.client_keys import ssh_identity
from rehearsal.machines import CommandError
from settings import HOST_KEY
from tests.checkout import Checkout
from tests.engine.previews import inputs, planned

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
    """A clone whose stack has these machines, with the socket of an SSH agent that does not answer."""
    clone.reset()
    monkeypatch.setitem(clone.environ, "SSH_AUTH_SOCK", str(clone.folder.parent / "agent"))
    return clone


def preview(checkout: Checkout) -> dict[str, dict]:
    return planned(checkout.pulumi("preview", "--json"))


def test_a_preview_shows_every_machine_without_connecting(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("ssh", "ssh-keyscan"):
        tmp_path.joinpath(program).write_text(f"#!/bin/sh\ntouch {tmp_path}/connected\nexit 1\n")
        tmp_path.joinpath(program).chmod(0o755)
    monkeypatch.setitem(checkout.environ, "PATH", f"{tmp_path}:{checkout.environ['PATH']}")
    found = preview(checkout)
    assert not tmp_path.joinpath("connected").exists()
    steps = {name for name, state in found.items() if state["type"] == "command:remote:Command"}
    for machine in ("head", "worker-1", "worker-2"):
        prefix = f"dask-{machine}-"
        states = {name.removeprefix(prefix) for name in steps if name.startswith(prefix)}
        # STATES omits certificates: the authority's machine signs and revokes them.
        assert states - {"certificates"} | {"authority", "jupyter", "jobs"} == set(STATES)
    assert "machines-gate-host-key" in found
    assert "\nSSH_PORT=2222\n" in found["dask-head-firewall"]["inputs"]["stdin"]


def test_a_machine_that_joins_a_group_gets_its_workers_and_ports_and_no_other_machine_changes(
    checkout: Checkout,
) -> None:
    def steps(**workers: list[dict]) -> dict[str, str]:
        hosts = [{**host, "hostKey": HOST_KEY} for host in HOSTS]
        settings = {"target": "machines", "machines": {**MACHINES, "hosts": hosts}, "workers": workers}
        stack = yaml.safe_load(checkout.file.read_text())
        stack["config"]["dask:cluster"] = settings
        checkout.file.write_text(yaml.safe_dump(stack))
        return {name: each["stdin"] for name, each in inputs(preview(checkout)).items() if "stdin" in each}

    group = {"name": "big", "hosts": ["worker-2"], "perMachine": 2, "resources": {"BIG": 1}}
    before, found = steps(), steps(groups=[group])
    changed = {name for name in before if before[name] != found[name]} - {"dask-client-certificates"}  # new keys
    own = {f"dask-worker-2-{step}" for step in ("firewall", "reachable", "service")}
    assert changed == {*own, "dask-members"}
    assert 'WORKER_ARGS=\'"--resources" "BIG=1"\'\n' in found["dask-worker-2-service"]


def test_without_agent_and_key_nothing_is_registered_and_both_remedies_are_printed(checkout: Checkout) -> None:
    del checkout.environ["SSH_AUTH_SOCK"]
    with pytest.raises(CommandError) as failure:
        preview(checkout)
    printed = str(failure.value)
    assert "ssh-add" in printed and "pulumi config set --secret dask:sshKey" in printed
    assert "ExistingMachines" not in printed and "Traceback" not in printed


def test_the_stacks_key_logs_in_without_an_agent(checkout: Checkout) -> None:
    del checkout.environ["SSH_AUTH_SOCK"]
    key = ssh_identity()["private"]
    checkout.pulumi("config", "set-all", "--secret", f"dask:sshKey={key}")
    printed = checkout.pulumi("preview", "--diff", "--show-secrets")
    step = printed.partition("::dask-head-keys]")[2].partition("[urn=")[0]
    assert "privateKey" in step and key.splitlines()[1] in step
