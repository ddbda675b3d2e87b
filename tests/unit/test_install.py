import hashlib
import io
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import settings.lock
from daskstack import engine
from rehearsal import programs
from tools import debian, install, python_packages, running, unlock

PROJECT = engine.PROJECT


def lock(pid: int, hostname: str = "") -> dict:
    return {"pid": pid, "hostname": hostname or socket.gethostname(), "timestamp": "2026-01-01T00:00:00Z"}


def release(content: bytes) -> bytes:
    """An archive as Pulumi publishes them."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo("pulumi/pulumi")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def site(monkeypatch) -> dict[str, bytes]:
    """Pulumi's download site: what it answers, by the end of the address."""
    answers = {".tar.gz": release(b"the engine")}
    monkeypatch.setattr(install.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(install.sys, "platform", "linux")
    monkeypatch.setattr(install, "fetch", lambda url: next(answers[end] for end in answers if url.endswith(end)))
    return answers


def publish(site: dict[str, bytes], checksum: str) -> None:
    name = f"pulumi-v{engine.VERSION}-linux-x64.tar.gz"
    site["checksums.txt"] = f"{'0' * 64}  pulumi-v0-other.tar.gz\n{checksum}  {name}\n".encode()


def test_a_release_with_the_published_checksum_is_installed(site, tmp_path):
    publish(site, hashlib.sha256(site[".tar.gz"]).hexdigest())
    install.download_engine(tmp_path / "engine")
    assert (tmp_path / "engine" / "pulumi").read_bytes() == b"the engine"


def test_a_release_with_a_wrong_checksum_is_rejected(site, tmp_path):
    publish(site, "1" * 64)
    with pytest.raises(running.InstallError, match=rf"expected the published sha256 {'1' * 64}, found "):
        install.download_engine(tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_a_release_with_a_wrong_checksum_does_not_cause_a_build(site, monkeypatch, tmp_path):
    """Whoever can change what the site sends must not choose which way is taken."""
    publish(site, "1" * 64)
    built = []
    monkeypatch.setattr(engine, "engine", lambda: None)
    monkeypatch.setattr(engine, "downloaded_engine", lambda: tmp_path / "engine" / "pulumi")
    monkeypatch.setattr(install, "build_engine", built.append)
    with pytest.raises(running.InstallError, match="expected the published sha256"):
        install.install_engine()
    assert not built


def test_an_unreachable_site_causes_a_single_build(monkeypatch, tmp_path, capsys):
    def unreachable(url: str) -> bytes:
        raise TimeoutError("timed out")

    built = []
    monkeypatch.setattr(engine, "engine", lambda: None)
    monkeypatch.setattr(install, "fetch", unreachable)
    monkeypatch.setattr(install, "build_engine", built.append)
    install.install_engine()
    assert built == [engine.built_engine()]
    assert capsys.readouterr().err.count("cannot be reached (timed out)") == 1


@pytest.mark.parametrize(("word", "other"), [("kubernetes", "build_kubernetes_plugin"), ("dev", "prepare_dev")])
def test_an_engine_and_what_else_must_be_built_are_built_at_the_same_time(word, other, monkeypatch, tmp_path):
    def unreachable(url: str) -> bytes:
        raise TimeoutError("timed out")

    both = threading.Barrier(2, timeout=10)
    monkeypatch.setattr(running, "CACHE", tmp_path)
    monkeypatch.setattr(engine, "engine", lambda: None)
    monkeypatch.setattr(install, "fetch", unreachable)
    monkeypatch.setattr(install, "build_engine", lambda _: both.wait())
    monkeypatch.setattr(install, other, lambda *_: both.wait())
    for name in ("machines", "install_venv", "install_plugins"):
        monkeypatch.setattr(install, name, lambda *_: None)
    monkeypatch.setitem(install.WORDS, "kubernetes", lambda: None)
    install.main([word])


@pytest.mark.parametrize("reachable", [True, False])
def test_the_kubernetes_plugin_is_built_only_if_it_cannot_be_downloaded(reachable, monkeypatch, tmp_path, capsys):
    def download(*command: object, **_: object) -> None:
        assert command[1:] == ("plugin", "install", "resource", "kubernetes", engine.KUBERNETES_PLUGIN)
        if not reachable:
            raise running.InstallError("refused")

    monkeypatch.setattr(install, "run", download)
    monkeypatch.setattr(engine, "language_host", lambda found: True)
    monkeypatch.setattr(programs, "kubernetes_plugin", lambda: tmp_path / "built")
    monkeypatch.setattr(install, "build_kubernetes_plugin", Path.touch)
    plugin = f"plugins/resource-kubernetes-v{engine.KUBERNETES_PLUGIN}/pulumi-resource-kubernetes"
    for _ in range(2):
        install.install_kubernetes_plugin(tmp_path / "pulumi", tmp_path)
        assert (tmp_path / plugin).exists() != reachable
        (tmp_path / "built").unlink(missing_ok=True)  # the link remains
    said = "The download failed: building the plugin from its Go module instead"
    assert capsys.readouterr().err.count(said) == (0 if reachable else 2)


@pytest.mark.parametrize("said", ["go version go1.19.8 linux/amd64", None])
def test_a_build_without_a_recent_go_names_the_remedies(said, monkeypatch, tmp_path):
    if said:
        go = tmp_path / "go"
        go.write_text(f"#!/bin/sh\necho '{said}'\n")
        go.chmod(0o755)
    monkeypatch.setattr(install, "which", lambda command: str(tmp_path / "go") if said else None)
    needs_go = r"Go 1\.21 .*found (go|none).*go\.dev/dl"
    with pytest.raises(running.InstallError, match=f"{needs_go}, or put `pulumi`"):
        install.build_engine(tmp_path / "pulumi")
    with pytest.raises(running.InstallError, match=f"{needs_go}$"):
        install.build_kubernetes(tmp_path / "kubernetes")


def test_a_failed_command_shows_the_end_of_its_log_and_where_the_rest_is(monkeypatch, tmp_path):
    monkeypatch.setattr(running, "CACHE", tmp_path)
    with pytest.raises(running.InstallError) as error:
        running.run("sh", "-c", "seq 100; echo the reason >&2; exit 3", log="sh")
    assert re.search(r"sh ended with status 3:\n.*\n99\n100\nthe reason\n", str(error.value), re.DOTALL)
    assert "\n50\n" not in str(error.value)
    assert str(error.value).endswith(f"The whole log: {tmp_path}/logs/sh.log")


def test_an_incomplete_folder_is_never_visible(tmp_path):
    with pytest.raises(KeyboardInterrupt), running.made_whole(tmp_path / "engine") as new:
        (new / "pulumi").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_packages_that_cannot_be_installed_are_listed_with_a_command(monkeypatch):
    monkeypatch.setattr(debian, "which", lambda command: None)
    monkeypatch.setattr(debian.sys, "platform", "linux")
    with pytest.raises(running.InstallError, match="as root: apt-get install debootstrap systemd-container"):
        debian.install_packages(debian.MACHINES, "for machines")


def test_the_lock_of_a_dead_process_is_stale():
    done = subprocess.Popen(["true"])
    done.wait()
    assert not unlock.holds(lock(done.pid))


def test_a_lock_whose_process_id_was_reused_is_stale():
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            assert not unlock.holds(lock(other.pid))
        finally:
            other.kill()


def test_the_lock_of_a_running_engine_holds_until_it_is_killed(tmp_path):
    program = shutil.copy(shutil.which("sleep"), tmp_path / "pulumi")
    with subprocess.Popen([program, "60"]) as running_engine:
        try:
            assert unlock.holds(lock(running_engine.pid))
        finally:
            running_engine.kill()
        # Whoever started it has not waited for it yet.
        deadline = time.monotonic() + 60
        while unlock.holds(lock(running_engine.pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not unlock.holds(lock(running_engine.pid))


def test_the_lock_of_another_computer_is_never_cleared():
    assert unlock.holds(lock(1, hostname="elsewhere"))


def test_locks_are_found_where_the_engine_puts_them(tmp_path):
    held = tmp_path / "a folder" / ".pulumi/locks/organization/dask/dev/0.json"
    held.parent.mkdir(parents=True)
    held.touch()
    assert unlock.locks((tmp_path / "a folder").as_uri(), "dev") == [held]
    assert unlock.locks("gs://team-state", "dev") == []


def test_an_incomplete_or_released_lock_is_stale(tmp_path):
    (tmp_path / "0.json.18a.tmp").touch()
    assert not unlock.holds(unlock.read(tmp_path / "0.json.18a.tmp"))
    assert not unlock.holds(unlock.read(tmp_path / "given-back.json"))


def test_only_the_stacks_own_incomplete_files_are_removed(tmp_path, monkeypatch):
    own = [
        "stacks/dask/dev.json.bak.18eb84d686dd5082.tmp",
        "stacks/dask/dev.json.18eb84d686dd5083.tmp",
        "history/dask/dev/dev-1.history.json.18eb84d686dd5084.tmp",
        "backups/dask/dev/dev.1.json.18eb84d686dd5085.tmp",
    ]
    kept = ["stacks/dask/dev.json", "stacks/dask/dev2.json.18eb84d686dd5086.tmp", "history/dask/gke/a.tmp"]
    for name in own + kept:
        (tmp_path / ".pulumi" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".pulumi" / name).touch()
    monkeypatch.setattr(engine, "variables", lambda stack: {"PULUMI_BACKEND_URL": tmp_path.as_uri()})
    unlock.main("dev")
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(found) == sorted(tmp_path / ".pulumi" / name for name in kept)


def pins(name: str) -> set[tuple[str, str]]:
    """Packages, each with its version and the computers that it is for."""
    return set(re.findall(r"^([\w.-]+)==([^\\\n]+)", (PROJECT / name).read_text(), re.MULTILINE))


def tracked(pattern: str) -> list[Path]:
    done = subprocess.run(["git", "ls-files", pattern], cwd=PROJECT, capture_output=True, text=True, check=True)
    return [PROJECT / line for line in done.stdout.splitlines()]


def test_every_list_of_python_packages_pins_each_with_hashes():
    lists = [path for pattern in ("*.lock", "*requirements*.txt", "tools/uv.txt") for path in tracked(pattern)]
    assert len(lists) >= 8
    for path in lists:
        lines = re.sub(r"\\\n", " ", path.read_text()).splitlines()
        packages = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        assert packages
        for package in packages:
            assert re.match(r"[\w.-]+(\[[\w,-]+\])?==[^ ]+ .*--hash=sha256:[0-9a-f]{64}", package), f"{path}: {package}"


def test_every_installation_of_python_packages_requires_hashes():
    texts = [path.read_text() for path in tracked("tools/*.py")]
    calls = [call for text in texts for call in re.findall(r".*\"pip\", \"(?:install|sync)\".*", text)]
    assert len(calls) >= 3
    [own] = [call for call in calls if "*own" in call]  # this project's folder, for which nothing is downloaded
    assert any('own = ("--no-index", "--no-deps", "--no-build-isolation", "--editable", PROJECT)' in t for t in texts)
    assert [call for call in calls if "--require-hashes" not in call] == [own]


def test_every_go_module_pins_the_checksums_of_its_dependencies():
    """And nothing tells Go to do without them."""
    modules = tracked("*go.mod")
    assert modules
    for module in modules:
        text, sums = module.read_text(), module.with_name("go.sum").read_text()
        required = re.findall(r"^\t?(?:require )?([\w./-]+\.[\w./-]+ v\S+)(?: // indirect)?$", text, re.MULTILINE)
        replaced = dict(re.findall(r"^\t?(?:replace )?(\S+)(?: v\S+)? => (\S+ v\S+)$", text, re.MULTILINE))
        assert required
        for need in required:
            found = replaced.get(need.split()[0], need)
            assert f"\n{found}/go.mod h1:" in f"\n{sums}", f"{module}: {found}"
    for path in tracked("*"):
        if path.suffix in (".py", ".sh", ".yml", ".mod") and path != Path(__file__):
            assert not re.search(r"GONOSUM|GONOSUMDB|GOINSECURE|GOSUMDB|-mod=mod", path.read_text()), path


def test_debians_keys_are_installed_where_they_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(debian, "KEYRING", tmp_path / "keyring.gpg")
    assert "debian-archive-keyring" in debian.for_machines().values()
    (tmp_path / "keyring.gpg").touch()
    assert debian.for_machines() == debian.MACHINES


def test_a_notebook_has_exactly_the_clusters_versions() -> None:
    """A notebook in .venv may have more packages; the notebook server's are added to those of the cluster."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    cluster = settings.lock.read(PROJECT / "environment.lock", python).packages
    assert cluster.keys() >= {"dask", "distributed", "numpy", "pandas", "cloudpickle"}
    assert {name: metadata.version(name) for name in cluster} == cluster
    server = settings.lock.read(PROJECT / "charts" / "jupyter.lock", python, dask=False).packages
    shared = server.keys() & cluster.keys()
    assert shared and {name: server[name] for name in shared} == {name: cluster[name] for name in shared}


def test_requirements_have_no_package_of_the_cluster_that_the_program_does_not_import() -> None:
    assert not {"dask", "distributed", "pandas"} & {name for name, _ in pins("requirements.txt")}


def test_versions_that_are_written_twice_agree():
    dependencies = tomllib.loads((PROJECT / "pyproject.toml").read_text())["dependency-groups"]["program"]
    assert f"pulumi-command=={engine.COMMAND}" in dependencies
    assert f"pulumi-kubernetes=={engine.KUBERNETES_PLUGIN}" in dependencies
    modules = (PROJECT / "rehearsal" / "engine" / "go.mod").read_text()
    assert f"github.com/pulumi/pulumi/pkg/v3 v{engine.VERSION}\n" in modules
    assert (
        f"--python-version {python_packages.PYTHON} "
        in (PROJECT / "environment.lock").read_text().splitlines()[1] + " "
    )


def test_the_lock_is_the_users_alone_and_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "CACHE", tmp_path)
    monkeypatch.setattr(running, "WAIT", 0.3)
    tmp_path.joinpath("lock").touch(0o644)
    with (
        running.one_at_a_time(),
        pytest.raises(running.InstallError, match="another make has been installing"),
        running.one_at_a_time(),
    ):
        pass
    assert tmp_path.joinpath("lock").stat().st_mode & 0o777 == 0o600
    with running.one_at_a_time():
        pass


def test_a_linked_environment_is_left_to_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other" / "bin").mkdir(parents=True)
    (tmp_path / ".venv").symlink_to(tmp_path / "other")
    for name in ("requirements.txt", "environment.lock", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path)
    monkeypatch.setattr(python_packages, "PROJECT", tmp_path)
    monkeypatch.setattr(python_packages, "run", lambda *_, **__: pytest.fail("something was installed"))
    python_packages.install_venv("requirements.txt")
