"""The context of several kubeconfigs, and the cluster to which it leads."""

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

import settings
from daskstack import kubeconfig, kubectl
from daskstack.tunnel import TunnelError

PROJECT = Path(__file__).parents[2]


def write(file: Path, name: str, *, current: str = "", context: dict[str, str] | None = None, **cluster: Any) -> Path:
    """A kubeconfig whose context, cluster and user have the same name."""
    content = {
        "clusters": [{"name": name, "cluster": {"server": f"https://{name}:6443"} | cluster}],
        "users": [{"name": name, "user": {"token": "t"}}],
        "contexts": [{"name": name, "context": context or {"cluster": name, "user": name}}],
        **({"current-context": current} if current else {}),
    }
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two files in $KUBECONFIG, after one that is missing."""
    files = [write(tmp_path / "a", "a", current="b"), write(tmp_path / "b", "b", current="a")]
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/missing::{files[0]}:{files[1]}")
    return files


def parse(**cluster: str) -> settings.KubernetesTarget:
    return settings.parse({"target": "kubernetes", "cluster": {"source": "existing"} | cluster}, PROJECT)


def test_the_first_file_that_names_a_context_decides(both: list[Path]) -> None:
    found = kubeconfig.files(None)
    assert kubeconfig.locate(found) == (both[1], "b"), "the current context of the first file is in the second"
    assert kubeconfig.locate(found, "a") == (both[0], "a")
    assert parse() and parse(context="a")
    write(both[1], "a")
    assert kubeconfig.locate(found, "a") == (both[0], "a")
    assert kubeconfig.files("/x") == [Path("/x")], "the setting wins"


def test_a_context_that_no_file_has_is_rejected_with_the_files(both: list[Path]) -> None:
    with pytest.raises(settings.SettingsError) as caught:
        parse(context="c")
    [problem] = caught.value.problems
    assert "cluster.kubeconfig: no file in $KUBECONFIG has context c: " in problem
    assert (
        f"{both[0].parent}/missing (missing), {both[0]}, {both[1]}; `kubectl config get-contexts` lists them" in problem
    )


@pytest.mark.parametrize("key", ["cluster", "user"])
def test_a_context_whose_parts_are_in_several_files_is_rejected(both: list[Path], key: str) -> None:
    """kubectl would take the cluster of the first file, perhaps another one than that of the context's own file."""
    write(both[1], "b", context={"cluster": "b", "user": "b"} | {key: "a"})
    with pytest.raises(settings.SettingsError, match=f"context b of {both[1]} uses {key} a of {both[0]}; write all"):
        parse()


def test_missing_files_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/none/a:/none/b")
    with pytest.raises(settings.SettingsError, match=r"cluster\.kubeconfig: /none/a, /none/b is not a file; write"):
        parse()


def authority(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("now", "same"),
    [
        ({}, True),
        ({"certificate-authority-data": authority("other")}, True),  # a renewed authority at the same address
        ({"server": "https://127.0.0.1:1"}, True),  # another address, the same authority
        ({"server": "https://127.0.0.1:1", "certificate-authority-data": authority("other")}, False),
        ({"server": "https://a:6443/k8s/clusters/2"}, False),  # another cluster behind the same proxy
    ],
)
def test_a_context_that_leads_to_another_cluster_is_not_used(tmp_path: Path, now: dict[str, str], same: bool) -> None:
    mine = {"certificate-authority-data": authority("mine")}
    file = write(tmp_path / "kubeconfig", "a", **mine)
    first = kubeconfig.cluster(str(file), "a")
    assert first.server == "https://a:6443"
    write(file, "a", **mine | now)
    access: Any = {"kubeconfig": str(file), "context": "a", **first._asdict()}
    if same:
        with kubectl.kubectl(access) as command:
            assert command == ["kubectl", "--kubeconfig", str(file), "--context", "a"]
        return
    sentence = rf"context a of {file} leads to {now['server']} now, but this stack is on https://a:6443: restore"
    with pytest.raises(TunnelError, match=sentence), kubectl.kubectl(access):
        pass


def test_a_stack_whose_context_is_gone_says_so(tmp_path: Path) -> None:
    access: Any = {"kubeconfig": str(tmp_path / "none"), "context": "a", "server": "https://a", "authority": ""}
    sentence = f"context a of {tmp_path}/none is missing now, but this stack is on https://a: restore"
    with pytest.raises(TunnelError, match=sentence), kubectl.kubectl(access):
        pass
