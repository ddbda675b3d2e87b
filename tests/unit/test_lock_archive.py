"""Locks of archives that contain a whole environment."""

import json
import re
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

import settings
from on_this_computer import send_environment
from settings import lock
from tools.lock_archive import lock_archive
from tools.running import InstallError


def packed(path: Path, *packages: str) -> Path:
    """An archive as conda-pack and venv-pack write it, with only the metadata of its packages."""
    with tarfile.open(path, "w:gz") as tar:
        for package in packages:
            tar.addfile(tarfile.TarInfo(f"lib/python3.12/site-packages/{package}.dist-info/METADATA"), BytesIO())
    return path


def test_the_lock_of_an_archive_has_its_hash_its_python_and_its_packages(tmp_path: Path) -> None:
    archive = packed(tmp_path / "team.tar.gz", "dask-2026.8.0", "distributed-2026.8.0", "scikit_learn-1.8.0")
    found = lock.read(lock_archive(archive), "3.12")
    assert found.path == tmp_path / "team.tar.gz.lock"
    assert found.packages == {"dask": "2026.8.0", "distributed": "2026.8.0", "scikit-learn": "1.8.0"}
    assert (found.archive, found.archive_size) == (archive, archive.stat().st_size)
    assert found.archive_sha256 == send_environment.sha256(archive)
    with pytest.raises(lock.LockError, match=r'team.tar.gz has Python 3.12; write "3.12"'):
        lock.read(found.path, "3.11")


def test_an_archive_without_dask_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match=r"team.tar.gz does not contain distributed; install them"):
        lock_archive(packed(tmp_path / "team.tar.gz", "dask-2026.8.0"))
    (tmp_path / "text.tar.gz").write_text("no archive")
    with pytest.raises(InstallError, match=r"text.tar.gz is not an archive of tar"):
        lock_archive(tmp_path / "text.tar.gz")


def test_a_lock_without_its_archive_is_rejected(tmp_path: Path) -> None:
    archive = packed(tmp_path / "team.tar.gz", "dask-2026.8.0", "distributed-2026.8.0")
    path = lock_archive(archive)
    archive.unlink()
    with pytest.raises(lock.LockError, match=r"team.tar.gz.lock needs the archive .*; put it there"):
        lock.read(path, "3.12")
    path.write_text(json.dumps({"archive": "x"}))
    with pytest.raises(lock.LockError, match="is not what `daskstack lock ARCHIVE` writes"):
        lock.read(path, "3.12")


def test_an_archive_that_has_changed_is_not_sent(tmp_path: Path) -> None:
    archive = packed(tmp_path / "team.tar.gz", "dask-2026.8.0", "distributed-2026.8.0")
    path = lock_archive(archive)
    packed(archive, "dask-2026.8.0", "distributed-2026.8.0", "other-1")
    with pytest.raises(
        SystemExit, match=re.escape(f"{archive} is not the archive of team.tar.gz.lock; run `daskstack")
    ):
        send_environment.collect(path, "3.12", "archive")


def test_settings_that_an_archive_cannot_fulfil_are_rejected(tmp_path: Path) -> None:
    lock_archive(packed(tmp_path / "team.tar.gz", "dask-2026.8.0", "distributed-2026.8.0"))
    (tmp_path / "kubeconfig").write_text("")
    environment = {"environment": {"lock": "team.tar.gz.lock", "python": "3.12"}}
    hosts = [{"name": name, "address": f"10.1.0.{number}"} for number, name in enumerate(("head", "hand"), 5)]
    firewall = {"ssh": ["10.1.0.0/24"]}
    machines = {"target": "machines", "machines": {"source": "existing", "hosts": hosts}, "firewall": firewall}
    there = {"source": "existing", "kubeconfig": str(tmp_path / "kubeconfig")}
    pods = {"target": "kubernetes", "cluster": there}
    without = {"jupyter": {"enabled": False}}
    with pytest.raises(settings.SettingsError, match=r"jupyter.enabled: the notebook server's packages cannot be"):
        settings.parse(machines | environment, tmp_path)
    with pytest.raises(settings.SettingsError, match=r"environment.lock: is an archive's, which pods cannot install"):
        settings.parse(pods | without | environment, tmp_path)
    settings.parse(machines | without | environment, tmp_path)
