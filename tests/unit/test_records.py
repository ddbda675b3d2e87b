"""Records of a rehearsal's Google Cloud that others delete while they are read."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from daskstack.engine import PROJECT
from rehearsal.compute.__main__ import read

DISKS = "projects/my-project/zones/us-central1-a/disks"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A disk, and a machine and a disk that are found and cannot be read any more."""
    instances = tmp_path / "gcp" / DISKS.replace("disks", "instances")
    instances.mkdir(parents=True)
    (instances / "gone.json").symlink_to("nowhere")
    disks = tmp_path / "gcp" / DISKS
    disks.mkdir()
    (disks / "gone.json").symlink_to("nowhere")
    (disks / "data.json").write_text(json.dumps({"type": "compute/disk:Disk", "outputs": {"size": 10}}))
    return tmp_path


def test_machines_are_created_from_existing_records(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASKSTACK_REHEARSAL", str(folder))
    assert list(read()) == [f"{DISKS}/data"]


@pytest.mark.parametrize(("group", "names"), [("disks", ["data"]), ("instances", [])])
def test_gcloud_lists_existing_records(folder: Path, group: str, names: list[str]) -> None:
    command = [PROJECT / "rehearsal" / "cloud" / "gcloud", "compute", group, "list", "--format", "json"]
    environ = {**os.environ, "DASKSTACK_REHEARSAL": str(folder)}
    listed = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True).stdout
    assert [each["name"] for each in json.loads(listed)] == names
