"""Programs that read a stack's file by themselves."""

import subprocess
from pathlib import Path

import pytest

from daskstack.engine import PROJECT
from tools import allow_my_address, cloud_leftovers, rehearse, told


@pytest.mark.parametrize(
    "text",
    ["\tconfig: x", "config: [", "- a", "words", "config: words", "config: {dask:cluster: words}",
     "config: {dask:cluster: [a]}", "config: {dask:cluster: {machines: words}}"],
)  # fmt: skip
def test_a_file_that_is_no_stack_file_gets_a_sentence(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "Pulumi.mine.yaml"
    file.write_text(text)
    monkeypatch.setattr(told, "PROJECT", tmp_path)
    for program in (cloud_leftovers.project_of, rehearse.main):
        with pytest.raises(RuntimeError, match=r"^Pulumi\.mine\.yaml"):
            program("mine")
    assert not allow_my_address.is_closed(text)


def test_a_rehearsal_starts_nothing_where_the_settings_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = "{target: kubernetes, cluster: {source: existing, kubeconfig: /none}, workers: {replica: 3}}"
    (tmp_path / "Pulumi.mine.yaml").write_text(f"config: {{dask:cluster: {cluster}}}")
    monkeypatch.setattr(told, "PROJECT", tmp_path)
    monkeypatch.setattr(rehearse, "Rehearsal", lambda *_: pytest.fail("something was started"))
    with pytest.raises(RuntimeError, match=r"workers\.replica: .* did you mean replicas\?$"):
        rehearse.main("mine")


@pytest.mark.parametrize("text", ["", "null", "config:", "config: {dask:cluster: null}", None])
def test_a_file_without_settings_has_none(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "Pulumi.mine.yaml"
    if text is not None:
        file.write_text(text)
    assert told.told(file) == {}


def test_what_a_stack_named_with_its_organization_left_is_looked_for_in_its_own_project() -> None:
    assert cloud_leftovers.project_of("me/dask/vms") == cloud_leftovers.project_of("vms")


@pytest.mark.parametrize(("source", "advice"), [("existing", 1), ("'existing'", 1), ("local", 0)])
@pytest.mark.parametrize("target", ["machines", '"machines"', "kubernetes"])
def test_only_machines_that_the_user_has_are_called_gone(source: str, advice: int, target: str, tmp_path: Path) -> None:
    (tmp_path / "Pulumi.mine.yaml").write_text(f"target: {target}\nsource: {source}\n")
    command = ["make", "-n", "-f", PROJECT / "Makefile", "destroy", "STACK=mine"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.count("gone: true") == (advice if target != "kubernetes" else 0)


@pytest.mark.parametrize("source", ["compute", '"compute"', "'compute'"])
def test_a_value_in_quotes_is_seen(source: str, tmp_path: Path) -> None:
    (tmp_path / "Pulumi.mine.yaml").write_text(f"target: 'machines'\nsource: {source}\n")
    command = ["make", "-n", "-f", PROJECT / "Makefile", "up", "STACK=mine"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "--refresh" in said and "tools.allow_my_address" in said
