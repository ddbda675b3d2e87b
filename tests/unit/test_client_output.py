"""The stack output `client`, as components write it and daskstack reads it."""

from dataclasses import asdict

import pytest

from daskstack import client_output, engine
from daskstack.client_output import Google, KubernetesClient, MachinesClient
from tests.client_outputs import kubernetes_client, machines_client

GOOGLE = Google(project="my-project", zone="us-central1-a", machines={"scheduler": "dask-vms-scheduler"})


@pytest.mark.parametrize("client", [machines_client(), machines_client(google=GOOGLE), kubernetes_client()])
def test_a_client_is_read_as_it_was_written(client: MachinesClient | KubernetesClient) -> None:
    assert client_output.parse(client_output.exported(asdict(client))) == client


def test_the_output_of_another_version_is_rejected_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    former = {key: value for key, value in asdict(machines_client()).items() if key != "target"}
    monkeypatch.setattr(engine, "outputs", lambda stack: {"client": former})
    with pytest.raises(
        engine.EngineError, match=r"not what this version .* writes: 'target'\. Run `make up STACK=mine`"
    ):
        engine.cluster("mine")
