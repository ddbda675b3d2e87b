"""Modules that `connect(code=...)` sends to the scheduler and the workers of a real cluster."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from daskstack import user_code
from daskstack.user_code import Code


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Its workers are processes of their own, so that they do not share this process's modules."""
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(user_code, "PAUSE", 0)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/__init__.py").write_text("")
    (tmp_path / "my_package/table.txt").write_text("one")
    (tmp_path / "my_package/part.py").write_text(
        "from pathlib import Path\nANSWER = 1\ndef text(): return Path(__file__).with_name('table.txt').read_text()\n"
    )
    (tmp_path / "my_module.py").write_text("from my_package.part import ANSWER, text\n")
    (tmp_path / "venv/lib").mkdir(parents=True)
    (tmp_path / "venv/pyvenv.cfg").write_text("")
    (tmp_path / "venv/lib/large.py").write_text("#" * 100)
    (tmp_path / "data.csv").write_text("1,2")
    return tmp_path


def answer() -> tuple[int, str]:
    import my_module  # ty: ignore[unresolved-import]

    return my_module.ANSWER, my_module.text()


def test_tasks_import_the_modules_of_a_folder_and_their_changes(client: Client, folder: Path) -> None:
    code = Code(folder)
    code.ship(client)
    assert client.submit(answer, pure=False).result(timeout=60) == (1, "one")
    assert client.run_on_scheduler(answer) == (1, "one")

    part = folder / "my_package/part.py"
    part.write_text(part.read_text().replace("ANSWER = 1", "ANSWER = 22"))
    code.ship(client)
    assert client.submit(answer, pure=False).result(timeout=60) == (22, "one")
    assert client.run_on_scheduler(answer) == (22, "one")
    for path in (folder, *folder.iterdir()):
        assert str(path) not in sys.path


def test_a_worker_that_starts_later_gets_the_modules_too(cluster: LocalCluster, client: Client, folder: Path) -> None:
    Code(folder).ship(client)
    cluster.scale(2)
    client.wait_for_workers(2, timeout=60)
    assert list(client.run(answer).values()) == 2 * [(1, "one")]


def test_modules_that_have_not_changed_are_not_sent_again(
    client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = Code(folder)
    code.ship(client)
    monkeypatch.setattr(client, "register_plugin", None)
    code.ship(client)


def test_only_modules_and_files_of_packages_are_sent(folder: Path) -> None:
    found = {str(path.relative_to(folder)) for path, _ in Code(folder)._files()}
    assert found == {"my_module.py", "my_package/__init__.py", "my_package/part.py", "my_package/table.txt"}


def test_a_folder_that_cannot_be_sent_is_refused(client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is not a folder; name the folder that contains your modules"):
        Code(folder / "my_module.py")
    os.truncate(folder / "my_package/table.txt", user_code.LIMIT + 1)
    with pytest.raises(ValueError, match="the limit is 20 MB; put data into the shared directory"):
        Code(folder).ship(client)
