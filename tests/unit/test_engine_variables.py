"""The environment variables with which `make` runs Pulumi."""

import json
import pwd
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from daskstack import engine
from tools import undo_unfinished

LOGINS = [
    {"PULUMI_BACKEND_URL": "gs://team-state"},
    {"PULUMI_ACCESS_TOKEN": "pul-0"},
    {"PULUMI_CREDENTIALS_PATH": "credentials"},
]


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a user who has only an official Pulumi, on PATH."""
    executable(tmp_path / "bin" / "pulumi", "echo v3.300.0")
    executable(tmp_path / "bin" / "pulumi-language-python", "true")
    (tmp_path / ".pulumi" / "plugins" / f"resource-command-v{engine.COMMAND}").mkdir(parents=True)
    credentials = tmp_path / "credentials" / "credentials.json"
    credentials.parent.mkdir()
    credentials.write_text(json.dumps({"current": "https://api.pulumi.com"}))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_dir=str(tmp_path)))
    return {"HOME": str(tmp_path), "PATH": str(tmp_path / "bin")}


@pytest.fixture
def without_plugins(environ: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of a user whose only engine is ours, with stand-ins for the plugins."""
    (tmp_path / "bin" / "pulumi-language-python").unlink()
    (tmp_path / "bin" / "pulumi").unlink()
    built = executable(engine.built_engine(environ), "echo v3.259.0")
    replaced = engine.standins(built, environ)
    executable(replaced / "venv" / "bin" / "python", "true")
    (replaced / "complete").touch()
    executable(replaced / "home" / "logs", "")
    return environ


def login(environ: dict[str, str], extra: dict[str, str]) -> dict[str, str]:
    if "PULUMI_CREDENTIALS_PATH" in extra:
        extra = {"PULUMI_CREDENTIALS_PATH": f"{environ['HOME']}/credentials"}
    return {**environ, **extra}


def state(environ: dict[str, str]) -> str:
    return f"file://{environ['HOME']}/.local/share/daskstack/state"


@pytest.mark.parametrize("extra", LOGINS)
def test_dev_is_local_with_an_empty_passphrase_despite_a_login(environ, extra):
    found = engine.variables("dev", login({**environ, "PULUMI_CONFIG_PASSPHRASE": "theirs"}, extra))
    assert found["PULUMI_BACKEND_URL"] == state(environ)
    assert found["PULUMI_CONFIG_PASSPHRASE"] == ""


def test_only_the_owner_can_read_local_state(environ):
    engine.variables("dev", environ)
    folder = engine.data_folder(environ)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "state")] == [0o700, 0o700]


@pytest.mark.parametrize("extra", LOGINS)
def test_other_stacks_use_the_users_login(environ, extra):
    found = engine.variables("gke", login(environ, extra))
    assert found["PULUMI_BACKEND_URL"] == extra.get("PULUMI_BACKEND_URL", "https://api.pulumi.com")
    assert "PULUMI_CONFIG_PASSPHRASE" not in found


@pytest.mark.parametrize("extra", [{}, {"PULUMI_CONFIG_PASSPHRASE": ""}])
def test_other_stacks_need_a_login_or_a_passphrase(environ, extra):
    with pytest.raises(engine.EngineError, match=r"set PULUMI_CONFIG_PASSPHRASE .* or log in"):
        engine.variables("gke", {**environ, **extra})


@pytest.mark.parametrize("name", ["PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE"])
def test_other_stacks_without_a_login_are_local_with_the_users_passphrase(environ, name):
    found = engine.variables("gke", {**environ, name: "theirs"})
    assert found["PULUMI_BACKEND_URL"] == state(environ)
    assert "PULUMI_CONFIG_PASSPHRASE" not in found


@pytest.mark.parametrize("extra", LOGINS[1:])
def test_a_shell_with_the_variables_of_dev_still_finds_the_login(environ, extra):
    environ = login(environ, extra)
    shell = {**environ, **engine.variables("dev", environ)}
    assert engine.variables("gke", shell)["PULUMI_BACKEND_URL"] == "https://api.pulumi.com"


def test_computing_the_variables_again_changes_nothing(without_plugins):
    once = engine.variables("dev", without_plugins)
    assert engine.variables("dev", {**without_plugins, **once}) == once


def test_an_official_engine_uses_the_users_pulumi_home(environ):
    found = engine.variables("dev", environ)
    assert "PULUMI_HOME" not in found
    assert found["PATH"] == environ["PATH"]


def test_plugins_are_found_in_the_home_of_the_user_database(without_plugins, tmp_path):
    executable(tmp_path / "bin" / "pulumi-language-python", "true")
    elsewhere = {**without_plugins, "HOME": str(tmp_path / "elsewhere"), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    assert "PULUMI_HOME" not in engine.variables("dev", elsewhere)


def test_a_user_who_is_not_in_the_database_has_plugins_in_home(without_plugins, tmp_path, monkeypatch):
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    executable(tmp_path / "bin" / "pulumi-language-python", "true")
    assert "PULUMI_HOME" not in engine.variables("dev", without_plugins)


def test_stand_ins_have_a_separate_pulumi_home(without_plugins):
    found = engine.variables("dev", without_plugins)
    assert Path(found["PULUMI_HOME"]).is_relative_to(engine.cache_folder(without_plugins))
    assert found["PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION"] == "true"


def test_stand_ins_without_their_python_are_not_used(without_plugins):
    built = engine.built_engine(without_plugins)
    (engine.standins(built, without_plugins) / "venv" / "bin" / "python").unlink()
    assert "PULUMI_HOME" not in engine.variables("dev", without_plugins)


def test_the_login_is_found_although_stand_ins_have_a_separate_home(without_plugins):
    own = Path(without_plugins["HOME"], ".pulumi")
    (own / "credentials.json").write_text('{"current": "s3://theirs"}')
    found = engine.variables("vms", without_plugins)
    assert (found["PULUMI_BACKEND_URL"], found["PULUMI_CREDENTIALS_PATH"]) == ("s3://theirs", str(own))


def test_official_plugins_are_preferred_to_stand_ins(without_plugins, tmp_path):
    executable(tmp_path / "bin" / "pulumi-language-python", "true")
    assert "PULUMI_HOME" not in engine.variables("dev", without_plugins)


def test_our_engine_replaces_one_on_path_that_is_too_old(without_plugins, tmp_path):
    executable(tmp_path / "bin" / "pulumi", "echo v3.213.9")
    assert engine.engine(without_plugins) == engine.built_engine(without_plugins)
    path = engine.variables("dev", without_plugins)["PATH"].split(":")
    assert path == [str(engine.built_engine(without_plugins).parent), without_plugins["PATH"]]


def test_an_engine_on_path_is_preferred_to_ours(without_plugins, tmp_path):
    theirs = executable(tmp_path / "bin" / "pulumi", "echo v3.214.0")
    assert engine.engine(without_plugins) == theirs


def test_the_error_for_a_missing_engine_names_the_remedy(environ, tmp_path):
    (tmp_path / "bin" / "pulumi").unlink()
    with pytest.raises(engine.EngineError, match=r"3\.214\.0 or newer on PATH, or the one that `make up`"):
        engine.variables("dev", environ)


def test_pulumi_runs_64_operations_at_once_unless_the_user_sets_another_number(environ):
    assert engine.variables("dev", environ)["PULUMI_PARALLEL"] == "64"
    assert engine.variables("dev", {**environ, "PULUMI_PARALLEL": "2"})["PULUMI_PARALLEL"] == "2"


def test_cloud_credentials_are_not_overridden(environ):
    theirs = {"GOOGLE_OAUTH_ACCESS_TOKEN": "x", "GOOGLE_APPLICATION_CREDENTIALS": "y", "AWS_PROFILE": "z"}
    assert not theirs.keys() & engine.variables("dev", {**environ, **theirs}).keys()


def test_the_engine_module_needs_only_the_standard_library():
    command = f"import sys; sys.path.insert(0, {str(engine.PROJECT)!r}); import daskstack.engine"
    subprocess.run([sys.executable, "-I", "-S", "-c", command], check=True)


def test_exports_are_quoted_for_the_shell(environ):
    odd = {**environ, "PATH": f"{environ['PATH']}:/it's a $folder"}
    script = f"""eval "$('{sys.executable}' -m daskstack env --stack dev)" && printf %s "$PATH" """
    done = subprocess.run(
        ["/bin/sh", "-c", script], cwd=engine.PROJECT, env=odd, capture_output=True, text=True, check=True
    )
    assert done.stdout == odd["PATH"]


@pytest.mark.parametrize("program", [engine.outputs, undo_unfinished.main])
def test_a_hanging_backend_is_reported_after_a_time_limit(environ, program, monkeypatch):
    executable(Path(environ["PATH"]) / "pulumi", '[ "$1" = version ] && echo v3.300.0 || exec sleep 60')
    monkeypatch.setattr(engine, "STATE_LIMIT", 0.1)
    for name, value in {**environ, "PATH": f"{environ['PATH']}:/usr/bin:/bin"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(engine.EngineError, match="of stack dev did not end within"):
        program("dev")
