"""Steps on a machine without any of the packages that they need: they install them from the machine's own source."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from on_this_computer import send_environment
from rehearsal.machines import Machine, Stack
from tests.machines.test_steps import DEVICE, Disk, Pair, blank_disk, wheel

# Commands that steps need, and their Debian packages. Listed here because the steps themselves could forget one.
NEEDED = {
    ("blkid", "util-linux"), ("firewall-cmd", "firewalld"), ("mount.fuse3", "fuse3"), ("mkfs.ext4", "e2fsprogs"),
    ("nft", "nftables"), ("openssl", "openssl"), ("pgrep", "procps"), ("python3", "python3"), ("sshfs", "sshfs"),
}  # fmt: skip
ALWAYS = {"procps", "util-linux"}  # required by sshd and Debian itself

# Repacks the packages that a removal would delete and offers them to apt as a source, so that no download is needed.
SOURCE = r"""
set -euo pipefail
export LC_ALL=C
mkdir /var/packages
cd /var/packages
apt-get -s -y --allow-remove-essential purge --auto-remove $PACKAGES | sed -n 's/^Purg \([^ ]*\) .*/\1/p' |
  while read -r package; do
    root=$(mktemp -d)
    mkdir "$root/DEBIAN"
    dpkg-query -L "$package" | while read -r path; do
      case $path in
        /. | /bin | /sbin | /lib | /lib64) ;; # links to folders of /usr
        /*) [ ! -e "$path" ] && [ ! -L "$path" ] || printf '%s\n' "${path#/}" ;;
      esac
    done | tar -C / --no-recursion -c -T - | tar -x -C "$root"
    dpkg-query -s "$package" | sed -e '/^Status:/d' -e '/^Conffiles:/,/^[^ ]/ { /^Conffiles:/d; /^ /d }' \
      >"$root/DEBIAN/control"
    for part in preinst postinst prerm postrm conffiles triggers; do
      for file in /var/lib/dpkg/info/"$package"{,:amd64}.$part; do
        [ ! -e "$file" ] || cp -p "$file" "$root/DEBIAN/$part"
      done
    done
    dpkg-deb -Znone -b "$root" "$package.deb" >/dev/null
    rm -r "$root"
    {
      dpkg-deb -f "$package.deb"
      printf 'Filename: ./%s\nSize: %s\n' "$package.deb" "$(stat -c %s "$package.deb")"
      printf 'SHA256: %s\n\n' "$(sha256sum <"$package.deb" | cut -d ' ' -f 1)"
    } >>Packages
  done
echo 'deb [trusted=yes] file:/var/packages ./' >/etc/apt/sources.list
"""
REMOVE = r"""
export DEBIAN_FRONTEND=noninteractive
apt-get -y -q --allow-remove-essential purge --auto-remove $PACKAGES >/dev/null
rm -rf /var/lib/apt/lists/*
"""


class Bare(Pair):
    """A machine and the packages that its steps installed on it."""

    def __init__(self, machine: Machine, stack: Stack) -> None:
        super().__init__(machine, machine, stack.network)
        self.installed: set[tuple[str, str]] = set()  # state and package

    def step(self, machine: Machine, state: str, **variables: str) -> dict[str, str]:
        printed = super().step(machine, state, **variables)
        self.installed |= {(state, each) for each in re.findall(r"^installing (\S+) for", self.said, re.MULTILINE)}
        return printed


PYTHON = "/opt/daskstack/environment/bin/python"


def lose_packages(machine: Machine) -> None:
    machine.run(REMOVE, {"PACKAGES": " ".join(sorted({package for _, package in NEEDED} - ALWAYS))})
    commands = [command for command, package in NEEDED if package not in ALWAYS]
    assert machine.run("type -P " + " ".join(commands), check=False).stdout == ""


@pytest.fixture
def bare(boot: Callable[..., list[Machine]], stack: Stack) -> Bare:
    [machine] = boot("bare")
    machine.run(SOURCE, {"PACKAGES": " ".join(sorted({package for _, package in NEEDED} - ALWAYS))})
    lose_packages(machine)
    return Bare(machine, stack)


@pytest.fixture
def disk(bare: Bare, tmp_path: Path) -> Iterator[Disk]:
    with blank_disk(bare.head, tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def house(bare: Bare, tmp_path: Path) -> Path:
    """The environment that the machine installs: a package with one module."""
    folder = tmp_path / send_environment.FOLDER
    (folder / "wheels").mkdir(parents=True)
    shutil.copy(next(send_environment.collect(Path("environment.lock"), "3.11", "wheelhouse").glob("uv-*.whl")), folder)
    (folder / "environment.lock").write_text(wheel(folder / "wheels", "value = 1\n"))
    connection = {"host": bare.head.address, "user": "admin", "host_key": bare.head.host_key}
    send_environment.send(folder, connection | {"private_key": bare.head.key.read_text()})
    return folder


def test_steps_install_the_packages_they_need(bare: Bare, disk: Disk, house: Path) -> None:
    bare.firewall(bare.head)
    bare.undo(bare.head, "firewall")
    assert bare.installed == {("firewall", "nftables"), ("firewall", "python3"), ("firewall", "firewalld")}
    lose_packages(bare.head)
    bare.installed.clear()

    bare.credentials(bare.head)
    variables = {**bare.data_variables(bare.head, "/srv/daskdata"), "DEVICE": DEVICE}
    bare.step(bare.head, "data", **variables)
    [uv] = house.glob("uv-*.whl")
    bare.step(
        bare.head, "environment", LOCK_SHA256=send_environment.sha256(house / "environment.lock"), PYTHON="3.11",
        SOURCE="wheelhouse", SYSTEM="", UV=uv.name, UV_SHA256=send_environment.sha256(uv), AUTHORITY_ADDRESS="",
        UV_ENV="", CERTIFICATES="", CHECK="", IMPORTS="",
    )  # fmt: skip
    assert bare.installed == {
        ("keys", "nftables"), ("keys", "openssl"), ("authority", "python3"), ("data", "e2fsprogs"), ("data", "sshfs"),
    }  # fmt: skip
    assert (
        bare.head.ssh("cd / && /opt/daskstack/environment/bin/python -c 'import tiny; print(tiny.value)'").stdout
        == "1\n"
    )
    for state in ("environment", "data", "credentials", "authority", "keys"):
        bare.undo(bare.head, state)
