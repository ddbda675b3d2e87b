"""What the check finds out about a cluster's packages and ports; the clusters are real but small."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from on_the_cluster import check


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=1, processes=False, protocol="tcp", dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def workers(client: Client) -> list[str]:
    return list(client.scheduler_info()["workers"])


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that cannot load a library of the system."""
    (tmp_path / "my_boost").mkdir()
    (tmp_path / "my_boost/__init__.py").write_text("import ctypes\nctypes.CDLL('libmissing.so.1')\n")
    record = tmp_path / "My.Boost-1.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: My.Boost\nVersion: 1\n")
    (record / "RECORD").write_text("my_boost/__init__.py,,\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return "my-boost"


def test_a_package_that_cannot_be_imported_fails_the_check_with_the_loaders_message(
    client: Client, package: str
) -> None:
    with pytest.raises(check.Failure) as failure:
        check.check_imports(client, workers(client), ["dask", package], "machines")
    assert str(failure.value).startswith("libmissing.so.1: cannot open shared object file: No such file or directory")
    assert "(import my_boost)" in str(failure.value)
    assert "environment.system" in str(failure.value)
    with pytest.raises(check.Failure, match=r"libmissing.so.1: .* on the notebook server: if a system library"):
        check.check_own_imports(["dask", package], "the notebook server")


def test_packages_that_can_be_imported_are_counted(client: Client) -> None:
    table = check.check_imports(client, workers(client), ["dask", "pyyaml", "pandas"], "machines")
    assert table == "3 packages can be imported on 2 machines"


def test_workers_listen_on_ports_of_the_range(client: Client) -> None:
    for first, last in ((1024, 65535), (20000, 20100)):
        port = check.listen(first, last)
        assert first <= port <= last
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    assert check.check_ports(client, workers(client), "1024-65535") == "workers reach each other on 1024-65535"


def test_the_check_says_which_ports_the_kernel_chooses_that_are_closed(client: Client) -> None:
    first, last = check.kernel_ports()
    found = check.check_ports(client, workers(client), f"{last - 200}-{last}")
    assert found.endswith(f"; their kernel also chooses others from {first}-{last}, which are closed")


def test_a_port_that_is_closed_fails_the_check(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(check, "listen", lambda *_: port)
    with pytest.raises(check.Failure, match=rf"cannot reach 127.0.0.1 on port {port} .*such as LightGBM, would hang"):
        check.check_ports(client, workers(client), "32768-60999")


def test_any_number_of_workers_within_the_bounds_passes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "WAIT", 0.5)
    [worker] = client.scheduler_info()["workers"].values()
    found, addresses = check.check_workers(client, [worker["name"], "worker-2-1"], 1, 2)
    assert found == f"1 running of at most 2, {worker['nthreads']} threads"
    assert addresses == workers(client)
    with pytest.raises(check.Failure, match=r"workers after 0.5 s: 1, expected 2$"):
        check.check_workers(client, [worker["name"], "worker-2-1"], 2, 2)
    with pytest.raises(check.Failure, match=r"unexpected \["):
        check.check_workers(client, ["worker-2-1"], 1, 1)
    assert check.check_workers(client, 2, 1, 2)[0] == found, "pods have no fixed names"
    with pytest.raises(check.Failure, match=r"workers after 0.5 s: 1, expected 2$"):
        check.check_workers(client, 2, 2, 2)


def test_no_idle_worker_stops_during_the_check(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    def hold(seconds: int) -> dict:  # as scale_pods.py does without bounds
        held.append(seconds)
        return {}

    def check_workers(*_: object) -> tuple[str, list[str]]:
        assert held and held[-1] > check.WAIT
        return "seen", []

    monkeypatch.setitem(client.cluster.scheduler.handlers, "workers_hold", hold)
    monkeypatch.setattr(check, "check_workers", check_workers)
    monkeypatch.setattr(check, "check_versions", lambda *_: "seen")
    address = client.scheduler.address
    check.check_cluster({"address": address, "workers": 1, "python": "", "packages": {}, "imports": [], "sleeps": True})
    assert held[-1] == 0


def test_the_check_wants_no_worker_of_groups_that_may_have_none(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "WAIT", 0)
    running = len(client.nthreads())
    assert check.check_workers(client, running + 2, 0, running + 2)[0].startswith(f"{running} running of at most")


def test_the_check_wants_all_workers_to_which_the_bounds_do_not_apply(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple] = []
    monkeypatch.setitem(client.cluster.scheduler.handlers, "workers_hold", lambda seconds: {"number": 0})
    monkeypatch.setattr(check, "check_workers", lambda *words: asked.append(words[1:]) or ("seen", []))
    monkeypatch.setattr(check, "check_versions", lambda *_: "seen")
    expect = {"address": client.scheduler.address, "python": "", "packages": {}, "imports": []}
    check.check_cluster(expect | {"workers": 8, "bounds": [0, 5], "groups": [2, 3]})
    monkeypatch.setitem(client.cluster.scheduler.handlers, "workers_hold", lambda seconds: {})
    check.check_cluster(expect | {"workers": 3, "bounds": [0, 0], "groups": [0, 3]})
    assert asked == [(8, 1 + 2, 5 + 3, 0), (3, 0, 3, 0)]
