"""Dask's options, and warnings about certificates."""

import json
import subprocess
from datetime import date
from pathlib import Path

import pytest

from components.machines import dask_options
from components.machines.sources.local import installed_release, numbered
from components.machines.step import script
from daskstack.client_keys import notice
from settings import MachinesTarget, parse

ROOT = Path(__file__).parents[2]


def settings(**more) -> MachinesTarget:
    return parse({"target": "machines", "machines": {"source": "local"}, **more}, ROOT)


def test_every_worker_process_has_its_own_three_ports() -> None:
    assert list(dask_options.worker_ports(settings(), 2)) == [9000, 9001, 9002, 9003, 9004, 9005]
    assert dask_options.dask_ports(settings(), 2) == "8786 8787 9000-9005"


def test_a_groups_machines_run_its_number_of_workers_with_its_resources() -> None:
    big = {"name": "big", "perMachine": 2, "resources": {"GPU": 1, "memory": 0.5}}
    found = settings(workers={"groups": [big]})
    names = dask_options.worker_names(found, ["worker-1", "big-1"])
    assert names == ["worker-1-1", "big-1-1", "big-1-2"]
    assert dask_options.resources(found.group_of("big-1")) == ("--resources", "GPU=1 memory=0.5")
    assert dask_options.resources(found.group_of("worker-1")) == ()


@pytest.mark.parametrize(
    ("setting", "opened"),
    [({}, "32768-60999"), ({"libraries": "40000-40100"}, "40000-40100"), ({"libraries": "none"}, "")],
)
def test_the_ports_of_libraries_are_open_unless_a_setting_narrows_or_closes_them(setting: dict, opened: str) -> None:
    assert dask_options.library_ports(settings(dask={"ports": setting})) == opened


def test_without_tls_the_configuration_does_not_mention_it() -> None:
    assert "tls" not in dask_options.config(settings(dask={"tls": False}))
    assert dask_options.protocol(settings(dask={"tls": False})) == "tcp"


def test_the_users_dask_config_is_merged_with_tls_settings() -> None:
    config = json.loads(
        dask_options.config(settings(dask={"config": {"distributed": {"comm": {"timeouts": {"connect": "9s"}}}}}))
    )
    comm = config["distributed"]["comm"]
    assert comm["timeouts"] == {"connect": "9s"}
    assert comm["require-encryption"] is True
    assert comm["tls"]["worker"]["key"] == "/etc/daskstack/tls/key.pem"


def test_arguments_are_quoted_for_systemd() -> None:
    assert dask_options.quoted(["--preload", "a b.py", '"', "$HOME", "100%", "\\"]) == (
        r'"--preload" "a b.py" "\"" "$$HOME" "100%%" "\\"'
    )


@pytest.mark.parametrize(
    ("variable", "uv", "tasks"),
    [
        ("UV_DEFAULT_INDEX", True, False),
        ("PIP_INDEX_URL", False, False),
        ("HTTPS_PROXY", True, True),
        ("no_proxy", True, True),
        ("SSL_CERT_FILE", True, True),
        ("TOKEN", False, True),
    ],
)
def test_only_uv_gets_the_package_index_and_only_tasks_their_own_variables(
    variable: str, uv: bool, tasks: bool
) -> None:
    assert (dask_options.concerns_uv(variable), dask_options.concerns_tasks(variable)) == (uv, tasks)


def test_exported_variables_keep_every_character() -> None:
    text = 'it\'s "$HOME" `id` \\ %h #1\nnext'
    command = ["bash", "-c", f"{dask_options.exports({'A': text, 'B': ''})}\nprintenv A B"]
    assert subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout == f"{text}\n\n"


@pytest.mark.parametrize(("today", "said"), [("2026-01-01", False), ("2026-11-01", False), ("2026-11-02", True)])
def test_up_warns_sixty_days_before_certificates_end(today: str, said: bool) -> None:
    text = notice("worker-1", "2027-01-01", date.fromisoformat(today))
    assert (text is not None) == said
    if text:
        assert "worker-1 expire on 2027-01-01, in 60 days: increase credentials.renewal" in text


def test_a_machine_keeps_its_address_when_others_are_added_or_removed(tmp_path: Path) -> None:
    def numbers(*names: str) -> list[int]:
        return [number for number, _ in numbered(list(names), tmp_path)]

    def boot(name: str, number: int) -> None:
        file = tmp_path / name / "etc" / "host0.network"
        file.parent.mkdir(parents=True)
        file.write_text(f"[Match]\nName=host0\n[Network]\nAddress=10.20.30.{number}/24\nLinkLocalAddressing=no\n")

    assert numbers("scheduler", "worker-1", "worker-3", "big-1", "worker-1-1") == [10, 11, 13, 254, 253]
    boot("big-1", 254)
    boot("worker-1-1", 253)
    assert numbers("scheduler", "big-1", "big-2", "worker-1-1") == [10, 254, 252, 253]
    assert numbers("scheduler", "new-1", "worker-1-1") == [10, 252, 253], "big-1 still has its address"


def test_a_value_cannot_become_a_command() -> None:
    assert "X='$(touch it); a'\"'\"'b'\n" in script("check", {"X": "$(touch it); a'b"})


def test_the_debian_release_of_an_existing_machine_is_known(tmp_path: Path) -> None:
    assert installed_release(tmp_path / "worker-1") is None
    (tmp_path / "worker-1").mkdir()
    (tmp_path / "worker-1" / "image").write_text(f"{tmp_path}/image\n")
    (tmp_path / "image" / "etc").mkdir(parents=True)
    (tmp_path / "image" / "etc" / "os-release").write_text("ID=debian\nVERSION_CODENAME=trixie\n")
    assert installed_release(tmp_path / "worker-1") == "trixie"
