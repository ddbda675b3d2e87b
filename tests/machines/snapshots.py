"""Snapshots of everything a step could leave on a machine: files, users, units, processes, mounts, memory, firewall."""

import sys
import time

from rehearsal.machines import Machine, as_root

# A machine's file system is the image with an overlay folder that contains every change. The overlay is small, so the
# script compares everything in it with the image. It skips only files that the system itself can write at any time
# (logs, caches, its own state, folders of services that start, backups of the user databases) and bytecode that Python
# compiles while Dask runs. Installed packages are compared by size and time, other files by their contents.
FILES = r"""
import hashlib, os, re, stat, sys

LEFT_OUT = re.compile(r"/(proc|sys|dev|run)|/var/(log|cache)|/var/lib/systemd/(?!linger).*|.*/systemd-private-[^/]*"
                      r"|/tmp/namespace-dev-.*|/etc/[^/]*-|/etc/machine|/var/backups/dpkg.*|/etc/daskstack/fetched/new"
                      r"|/var/lib/daskstack/home/\.cache|.*/\.sudo_as_admin_successful")

def is_whiteout(found):
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0

def lstat(path):
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None

def content(name, path, found):
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(path)
    if not stat.S_ISREG(found.st_mode):
        return ""
    if name.startswith("/opt/daskstack/environment/"):
        return f"{found.st_size} {found.st_mtime_ns}"
    with open(path, "rb") as file:
        return hashlib.md5(file.read()).hexdigest()

def described(name, path, found):
    attributes = {each: os.getxattr(path, each, follow_symlinks=False).hex()
                  for each in os.listxattr(path, follow_symlinks=False) if not each.startswith("trusted.overlay")}
    mode, owner = oct(found.st_mode), f"{found.st_uid}:{found.st_gid}"
    return " ".join((name, mode, owner, content(name, path, found), *map(str, attributes.items())))

def opaque(path):
    return "trusted.overlay.opaque" in os.listxattr(path)

def compare(name, upper, lower):
    names = os.listdir(upper)
    if lower and opaque(upper):
        for each in set(os.listdir(lower)) - set(names):
            print(f"{name}/{each} is deleted")
    for each in names:
        inside, path, below = f"{name}/{each}", f"{upper}/{each}", lower and f"{lower}/{each}"
        found, old = lstat(path), lstat(below) if below else None
        if found is None or LEFT_OUT.fullmatch(inside):
            continue
        if is_whiteout(found):
            if old:
                print(f"{inside} is deleted")
            continue
        try:
            said = described(inside, path, found)
            if not old or said != described(inside, below, old):
                print(said)
            if stat.S_ISDIR(found.st_mode):
                compare(inside, path, below if old and stat.S_ISDIR(old.st_mode) else None)
        except FileNotFoundError:
            pass  # it went meanwhile

compare("", sys.argv[1], sys.argv[2])
"""

# Other state than files, and files in memory.
STATE = r"""
cd /
find /dev/shm /dev/mqueue -mindepth 1 -printf '%p %y %m %u:%g %s\n'
listed() {
  # systemd's own folders of a unit come and go whenever a timer runs it.
  find /run /run/lock -xdev ! -path '/run/user/*' ! -path '/run/systemd/units/*' ! -path '/run/systemd/propagate/*' \
    ! -name daskstack.lock "$@"
}
listed \( -iname '*dask*' -o -nouser \)
listed -user dask 2>/dev/null
systemctl list-units --all --no-legend --plain 'dask*' '*data*' ssh.service firewalld.service |
  awk '/^dask-(authority|credentials)\.service/ {next} {print $1, $3, $1 ~ /timer$/ ? "" : $4}' # they run at any time
findmnt -rn -o TARGET,SOURCE,FSTYPE,OPTIONS | grep -Ev '^/(dev|proc|run|sys)' | sed 's/,fd=.*pipe_ino=[0-9]*//'
ps -o args= -u dask 2>/dev/null | grep -Ev 'systemd --user|sd-pam|sshd:|cat /etc/daskstack/published/'
ipcs -m | tail -n +4
nft list ruleset
true
"""


def files(machine: Machine) -> set[str]:
    """The machine's files that differ from the image, one line each, with every relevant attribute."""
    image = (machine.folder / "image").read_text().strip()
    program = (sys.executable, "-I", "-c", FILES)
    return set(as_root(*program, str(machine.folder / "upper"), image).stdout.splitlines())


def changes(machine: Machine, before: set[str]) -> set[str]:
    """The differences from the snapshot `before` after units have had time to stop."""
    end = time.monotonic() + 60
    while (differs := snapshot(machine) ^ before) and time.monotonic() < end:
        time.sleep(0.5)
    return differs


def snapshot(machine: Machine) -> set[str]:
    return files(machine) | set(machine.run(STATE).stdout.splitlines())
