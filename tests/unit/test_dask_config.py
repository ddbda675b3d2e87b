"""The configuration of Dask on both targets, with a scheduler that uses it."""

import json
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster
from distributed.scheduler import NoValidWorkerError

from components import dask_config
from components.kubernetes.chart_values import leaves
from components.machines import dask_options
from tests.unit.test_dask_options import settings
from tests.unit.test_kubernetes_settings import own, parse


@pytest.fixture(params=["machines", "kubernetes"])
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(dask_config, "NO_WORKERS", "1 second")
    if request.param == "machines":
        return json.loads(dask_options.config(settings(dask={"tls": False})))
    (tmp_path / "config").write_text('{"contexts": [{"name": "c"}], "current-context": "c"}')
    return own(parse(tmp_path / "config"))["config"]


def test_a_task_that_no_worker_can_run_fails_with_the_reason(config: dict[str, Any]) -> None:
    with (
        dask.config.set(
            {f"distributed.scheduler.{key}": value for key, value in config["distributed"]["scheduler"].items()}
        ),
        LocalCluster(n_workers=1, processes=False, protocol="tcp", dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        with pytest.raises(NoValidWorkerError, match="'GPU': 1"):
            client.submit(sum, [1], resources={"GPU": 1}).result(timeout=60)
        assert client.submit(sum, [2]).result(timeout=60) == 2


def test_the_settings_change_how_long_such_a_task_waits() -> None:
    never = {"distributed": {"scheduler": {"no-workers-timeout": None}}}
    assert dask_config.with_defaults(never) == never
    assert list(leaves(dask_config.with_defaults({}))) == [
        (("distributed", "scheduler", "no-workers-timeout"), "30 minutes")
    ]
