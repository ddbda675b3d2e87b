"""New pods get packages from the scheduler's pod only, and only those that they want."""

import importlib.util
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from components.kubernetes.tls import tls_identities
from daskstack.engine import PROJECT


def load(folder: Path, credentials: dict[str, str], port: int = 0) -> ModuleType:
    """share.py, which knows the packages in `folder`."""
    spec = importlib.util.spec_from_file_location("share", PROJECT / "charts/dask/files/share.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder.mkdir(parents=True)
    tls = folder.parent / f"{folder.name}-tls"
    tls.mkdir()
    for name, text in credentials.items():
        (tls / name).write_text(text)
    module.FOLDER, module.TLS, module.PORT = str(folder), str(tls), port
    module.TAR = ["tar", "--directory", str(folder)]
    return module


@contextmanager
def serving(folder: Path, credentials: dict[str, str]) -> Iterator[int]:
    """A server with one package; its port."""
    share = load(folder, credentials)
    (folder / "environment").mkdir()
    (folder / "environment" / "package.py").write_text("x = 1")
    (folder / "complete").touch()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), share.Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "1")
    monkeypatch.setenv("SERVER", "127.0.0.1")


def test_a_new_pod_gets_the_packages_of_the_schedulers_pod(tmp_path: Path, key: None) -> None:
    known = tls_identities("a", ["scheduler", "worker"])
    with serving(tmp_path / "scheduler", known["scheduler"]) as port:
        load(tmp_path / "worker", known["worker"], port).fetch()
    found = [str(path.relative_to(tmp_path / "worker")) for path in (tmp_path / "worker").rglob("*")]
    assert sorted(found) == ["environment", "environment/package.py"], "the pod itself says when it is complete"


@pytest.mark.parametrize(("server", "client"), [("worker", "worker"), ("other", "worker"), ("scheduler", "other")])
def test_nobody_but_the_scheduler_of_the_same_release_can_send_packages(
    tmp_path: Path, key: None, server: str, client: str
) -> None:
    known = tls_identities("a", ["scheduler", "worker"]) | {"other": tls_identities("b", ["scheduler"])["scheduler"]}
    with serving(tmp_path / "server", known[server]) as port, pytest.raises(OSError):
        load(tmp_path / "client", known[client], port).fetch()
    assert not list((tmp_path / "client").iterdir())


def test_a_pod_that_wants_other_packages_gets_none(tmp_path: Path, key: None) -> None:
    known = tls_identities("a", ["scheduler", "worker"])
    with serving(tmp_path / "scheduler", known["scheduler"]) as port:
        share = load(tmp_path / "worker", known["worker"], port)
        share.os = SimpleNamespace(environ={"SERVER": "127.0.0.1", "KEY": "2"})
        with pytest.raises(OSError, match="has other packages"):
            share.fetch()
    assert not list((tmp_path / "worker").iterdir())
