"""Commands read a stack's settings through the engine, so the style of the YAML makes no difference."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from daskstack import configuration, engine
from daskstack.configuration import StackKind
from daskstack.engine import EngineError
from tools import allow_my_address, cloud_leftovers, rehearse

COMPUTE = StackKind("machines", "compute", "my-project")


@pytest.fixture
def project(pulumi_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project that has only stack files, with its own backend."""
    folder = tmp_path / "project"
    (folder / "daskstack").mkdir(parents=True)
    (folder / "daskstack" / "engine.py").touch()
    shutil.copy(engine.PROJECT / "Pulumi.yaml", folder)
    (folder / "rehearsal").symlink_to(engine.PROJECT / "rehearsal")
    monkeypatch.setattr(rehearse, "PROJECT", folder)
    with monkeypatch.context() as patch:
        for name in ("XDG_DATA_HOME", "PULUMI_BACKEND_URL"):
            patch.setenv(name, pulumi_environment[name])
        patch.setenv("PULUMI_CONFIG_PASSPHRASE", "of the tests")
        found = engine.engine()
        variables = engine.variables("mine")
        patch.setattr(engine, "PROJECT", folder)
        patch.setattr(engine, "engine", lambda environ=None: found)
        patch.setattr(engine, "variables", lambda stack, environ=None: variables)
        yield folder


def write(project: Path, text: str) -> Path:
    file = project / "Pulumi.mine.yaml"
    file.write_text(text)
    return file


STYLES = [
    "config:\n  dask:cluster:\n    target: machines\n    machines: {source: compute, project: my-project}\n",
    "{'config': {\"dask:cluster\": {'target': 'machines', machines: {source: \"compute\", project: 'my-project'}}}}",
    "config:\n  dask:cluster:\n    ? target\n    : >-\n      machines\n    machines:\n      source:\n        compute\n"
    "      project: my-project\n",
]


@pytest.mark.parametrize("text", STYLES)
def test_the_style_of_the_yaml_makes_no_difference(project: Path, text: str) -> None:
    write(project, text)
    assert StackKind.of(configuration.read("mine")) == COMPUTE
    assert cloud_leftovers.project_of("mine") == "my-project"


def test_a_stack_that_does_not_exist_can_be_read_and_is_not_created(project: Path) -> None:
    write(project, STYLES[0])
    configuration.read("mine")
    with pytest.raises(EngineError, match="stack mine does not exist"):
        engine.outputs("mine")


def test_values_written_by_pulumi_config_set_are_read(project: Path) -> None:
    write(project, "config: {}\n")
    engine.pulumi("mine", "stack", "init", check=True)
    assert configuration.read("mine") == {}
    for key, value in {"target": "machines", "machines.source": "compute", "machines.project": "my-project"}.items():
        engine.pulumi("mine", "config", "set", "--path", f"dask:cluster.{key}", value, check=True)
    assert StackKind.of(configuration.read("mine")) == COMPUTE


@pytest.mark.parametrize("text", STYLES)
def test_your_address_is_added_to_a_file_of_any_style_and_nothing_else_changes(
    project: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(project, f"# a comment\n{text}")
    engine.pulumi("mine", "stack", "init", check=True)
    before = configuration.read("mine")
    monkeypatch.setattr(allow_my_address, "address", lambda: "198.51.100.4")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda question: "y")
    allow_my_address.main("mine")
    assert configuration.read("mine") == before | {"firewall": {"ssh": ["198.51.100.4/32"]}}
    assert file.read_text().startswith("# a comment\n")
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail("the offer is repeated"))
    allow_my_address.main("mine")


@pytest.mark.parametrize(
    "text", ["\tconfig: x", "config: [", "- a", "words", "config: words", "config: {dask:cluster: words}"]
)
def test_an_invalid_stack_file_is_reported_by_name(project: Path, text: str) -> None:
    write(project, text)
    for program in (cloud_leftovers.project_of, rehearse.main):
        with pytest.raises(RuntimeError, match=r"Pulumi\.mine\.yaml"):
            program("mine")


@pytest.mark.parametrize(
    "text", ["", "config:", "config: {dask:cluster: null}", "config: {dask:cluster: {machines: a}}"]
)
def test_a_file_without_settings_has_no_kind_and_no_project(project: Path, text: str) -> None:
    write(project, text)
    assert not StackKind.of(configuration.read("mine")).parts
    with pytest.raises(RuntimeError, match="stack mine names no project in Google Cloud"):
        cloud_leftovers.project_of("mine")


def test_the_error_for_a_missing_file_lists_the_existing_ones(project: Path) -> None:
    write(project, "")
    with pytest.raises(EngineError, match=r"there is no Pulumi\.other\.yaml in .*: copy one of Pulumi\.mine\.yaml"):
        configuration.file("me/dask/other")


def test_a_rehearsal_starts_nothing_if_the_settings_are_wrong(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = "{target: kubernetes, cluster: {source: existing, kubeconfig: /none}, workers: {replica: 3}}"
    file = write(project, f"config: {{dask:cluster: {cluster}}}")
    before = file.read_text()
    monkeypatch.setattr(rehearse.Rehearsal, "start", lambda *_: pytest.fail("something was started"))
    monkeypatch.setattr(rehearse.install, "main", lambda *_: pytest.fail("something was installed"))
    with pytest.raises(RuntimeError, match=r"workers\.replica: .* did you mean replicas\?$"):
        rehearse.main("mine")
    assert file.read_text() == before
