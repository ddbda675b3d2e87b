"""A rehearsal cannot reach any account, even if its caller has logins for many."""

import json
import os
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest

from daskstack import engine
from rehearsal.environment import environment as rehearsal_environment
from tests.engine.support import PROGRAMS, Cloud, Project
from tools import rehearse

SECRET = "of-the-callers-own-account"
VARIABLES = [
    "CLOUDSDK_AUTH_ACCESS_TOKEN", "CLOUDSDK_CONFIG", "GCE_METADATA_HOST", "GCLOUD_PROJECT",
    "GKE_KUBECONFIG", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CREDENTIALS", "GOOGLE_OAUTH_ACCESS_TOKEN",
    "HELM_REGISTRY_CONFIG", "KUBECONFIG", "PULUMI_ACCESS_TOKEN", "PULUMI_BACKEND_URL", "PULUMI_CREDENTIALS_PATH",
    "PULUMI_HOME", "SSH_AUTH_SOCK", "XDG_CONFIG_HOME",
]  # fmt: skip
FILES = [
    ".config/gcloud/application_default_credentials.json", ".config/gcloud/credentials.db",
    ".config/gcloud/configurations/config_default", ".config/helm/registry/config.json", ".kube/config",
    ".pulumi/credentials.json",
]  # fmt: skip
LOOK = """
import json
import os
import subprocess
from pathlib import Path

LOOK = "env; find ~ -type f -exec cat {} + 2>&1"
place = os.environ.get("CLOUDSDK_CONFIG") or os.path.expanduser("~/.config/gcloud")
pulumi.export("gcloud", [str(path) for path in Path(place).rglob("*")])
pulumi.export("kube", [str(path) for path in Path.home().joinpath(".kube").rglob("*")])
pulumi.export("program", subprocess.run(["sh", "-c", LOOK], capture_output=True, text=True).stdout)
pulumi.export("command", local.Command("look", create=LOOK).stdout)
make("compute/network:Network", "network", name="net")
"""


@pytest.fixture
def caller(tmp_path: Path) -> dict[str, str]:
    """A user's environment with logins in all possible places, and an official plugin on PATH."""
    home = tmp_path / "caller"
    for name in FILES:
        file = home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(SECRET)
    plugin = tmp_path / "bin" / "pulumi-resource-gcp"
    plugin.parent.mkdir()
    plugin.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    plugin.chmod(0o755)
    return (
        dict(os.environ)
        | {"XDG_CACHE_HOME": str(engine.cache_folder().parent), "HOME": str(home)}
        | {name: f"{home}/{SECRET}" for name in VARIABLES}
        | {"PATH": f"{plugin.parent}:{os.environ['PATH']}"}
    )


def test_a_rehearsed_program_finds_neither_the_callers_logins_nor_official_plugins(
    tmp_path: Path, caller: dict[str, str]
) -> None:
    environ = rehearsal_environment(tmp_path / "state", caller)
    folder = tmp_path / "rehearsal"
    environ |= {
        "DASKSTACK_REHEARSAL": str(folder), "GOOGLE_OAUTH_ACCESS_TOKEN": "none", "PULUMI_STACK": "test",
        "PATH": f"{PROGRAMS}:{environ['PATH']}",
    }  # fmt: skip
    project = Project(tmp_path / "program", environ)
    project.folder.mkdir()
    project.write("")
    project.run("stack", "init", "test", "--no-select")
    cloud = Cloud(project, folder)
    cloud.up(LOOK)
    found = project.outputs()
    assert found["gcloud"] == found["kube"] == []
    assert "HOME=" in found["program"] and "HOME=" in found["command"]
    assert SECRET not in json.dumps(found)
    assert str(tmp_path / "caller") not in json.dumps(found)
    assert not (tmp_path / "called").exists()
    assert cloud.files == {"projects/my-project/global/networks/net"}


def test_programs_started_by_make_rehearse_find_no_logins(
    tmp_path: Path, caller: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(Exception):
        pass

    class Looks(rehearse.Rehearsal):
        seen: ClassVar[dict[str, str]] = {}

        def start(self, config: dict[str, Any]) -> None:
            pass

        def up(self, *options: str) -> None:
            self.seen.update(os.environ)
            raise Ended

        def stop(self) -> None:
            pass

    monkeypatch.setattr(rehearse, "Rehearsal", Looks)
    with mock.patch.dict(os.environ, caller | {"XDG_DATA_HOME": str(tmp_path)}), pytest.raises(Ended):
        rehearse.main("vms")
    assert Looks.seen["HOME"].startswith(f"{tmp_path}/daskstack/rehearsal/vms/")
    assert SECRET not in str(Looks.seen)


def test_a_rehearsal_keeps_the_settings_of_the_package_index(tmp_path: Path, caller: dict[str, str]) -> None:
    settings = Path(caller["HOME"], ".config/pip/pip.conf")
    caller.pop("PIP_CONFIG_FILE", None)
    assert "PIP_CONFIG_FILE" not in rehearsal_environment(tmp_path / "state", caller)
    settings.parent.mkdir(parents=True)
    settings.touch()
    assert rehearsal_environment(tmp_path / "state", caller)["PIP_CONFIG_FILE"] == str(settings)
