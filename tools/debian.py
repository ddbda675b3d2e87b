"""Debian packages that the project needs on this computer."""

import os
import subprocess
import sys
from pathlib import Path

from tools.running import InstallError, phase, run, which

# Commands or files, and the Debian packages that provide them.
MACHINES = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "unshare": "util-linux",
}
# debootstrap verifies Debian's packages with these keys.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TEST = {"sshd": "openssh-server", "git": "git"}
KUBERNETES = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "nft": "nftables",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "unshare": "util-linux",
}
# Services that each package enables; they would start at the next boot.
SERVICES = {
    "openssh-server": ("ssh.service", "ssh.socket"),
    "etcd-server": ("etcd.service",),
    "containerd": ("containerd.service",),
}


def for_machines() -> dict[str, str]:
    return MACHINES if KEYRING.exists() else MACHINES | {str(KEYRING): "debian-archive-keyring"}


def install_packages(wanted: dict[str, str], why: str) -> None:
    missing = [package for command, package in wanted.items() if not which(command)]
    if not missing or sys.platform != "linux":
        return
    names = " ".join(missing)
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    if not which("apt-get") or (sudo and (not which("sudo") or subprocess.run(["sudo", "-v"]).returncode)):
        raise InstallError(f"{names}: needed {why}; install them as root: apt-get install {names}")
    with phase(f"Installing Debian packages {why}: {names}"):
        # A package's service must not start: policy-rc.d prevents it now, `disable` at the next boot.
        script = """
            policy=/usr/sbin/policy-rc.d
            if [ ! -e "$policy" ]; then
                trap 'rm -f "$policy"' EXIT
                trap 'exit 130' INT TERM
                printf '#!/bin/sh\\nexit 101\\n' >"$policy"
                chmod +x "$policy"
            fi
            export DEBIAN_FRONTEND=noninteractive
            services=$1
            shift
            apt-get update && apt-get install --yes --no-install-recommends "$@" || exit
            for service in $services; do
                systemctl disable "$service" || true
            done
        """
        services = " ".join(service for package in missing for service in SERVICES.get(package, ()))
        run(*sudo, "sh", "-c", script, "sh", services, *missing, log="packages")
