#!/usr/bin/env bash
# Builds the Debian image of local machines in the cache, unless it is already there (about a minute).
#
#   CACHE    the cache folder, e.g. ~/.cache/daskstack
#   RELEASE  the Debian release, which decides the Python version: bookworm (the default) has 3.11, trixie has 3.13
#
# Prints the image's folder, $CACHE/images/RELEASE-<hash of this file>. The image contains nothing specific to one
# machine: no SSH host key, no machine-id, no address. Any change to this file builds a new image.
set -euo pipefail
umask 022
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=on_this_computer/local_machines/common.sh
source "$here/common.sh"

packages=(
  systemd systemd-sysv dbus libnss-myhostname openssh-server sudo
  sshfs libgomp1 acl git rsync nftables firewalld netbase iproute2
  python3 python3-venv ca-certificates openssl
)

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Machines cannot reach package indexes, and their console is a log file, so it needs no login prompt.
masked=(apt-daily.timer apt-daily-upgrade.timer console-getty.service)

main() {
  local image partial started=$SECONDS
  release=${RELEASE:-bookworm}
  image=$CACHE/images/$release-$(sha256sum "$here/image.sh" | cut -c 1-16)
  if [[ -d $image ]]; then
    echo "$image"
    return
  fi
  mkdir -p "$CACHE/images"
  become_root "CACHE RELEASE"
  need debootstrap=debootstrap flock=util-linux gpgv=gpgv
  # Without these keys, debootstrap would not verify signatures.
  [[ -s $keyring ]] ||
    cannot "the keys of Debian's archive, $keyring, are missing (try: apt-get install debian-archive-keyring)."

  exec 9<"$CACHE/images"
  flock -n 9 || {
    say "Waiting for another run to build the image..."
    flock 9
  }
  if [[ ! -d $image ]]; then
    partial=$image.partial
    # A killed build leaves its /proc mounted.
    ! mountpoint -q "$partial/proc" || umount "$partial/proc"
    rm -rf "$partial"
    build "$partial"
    mv "$partial" "$image"
    say "Image built in $((SECONDS - started)) s: $image ($(du -sh "$image" | cut -f 1))"
  fi
  echo "$image"
}

# mirror LABEL: print the mirror from which this computer's apt gets Debian or Debian-Security, if any.
mirror() {
  command -v apt-get >/dev/null || return 0
  apt-get indextargets --format "\$(REPO_URI)" 'Created-By: Packages' 'Origin: Debian' "Label: $1" |
    grep -m 1 '^http' || true
}

build() {
  local root=$1 debian security
  debian=$(mirror Debian)
  security=$(mirror Debian-Security)

  say "Building the machines' image (Debian $release, only once): base system"
  # If this computer's apt has no mirror, use debootstrap's default one, which also has the security updates.
  logged "$root" debootstrap --variant=minbase --force-check-gpg --keyring="$keyring" "$release" "$root" \
    ${debian:+"$debian"}
  security=${security:-$(sed -n 's#^deb \(.*\)/debian/* .*#\1/debian-security#p' "$root/etc/apt/sources.list")}
  echo "deb $security $release-security main" >>"$root/etc/apt/sources.list"

  say "Building the machines' image: security updates and ${#packages[@]} packages"
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # do not start services during the installation
  chmod 755 "$root/usr/sbin/policy-rc.d"
  mount -t proc proc "$root/proc" # polkit's installation reads it
  logged "$root" inside "$root" apt-get update
  logged "$root" inside "$root" apt-get "${apt_options[@]}" dist-upgrade
  logged "$root" inside "$root" apt-get "${apt_options[@]}" install "${packages[@]}"
  umount "$root/proc"
  rm -r "$root/usr/sbin/policy-rc.d" "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*

  configure "$root"
}

apt_options=(-y -q --no-install-recommends -o Dpkg::Options::=--force-unsafe-io)

inside() {
  local root=$1
  shift
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 chroot "$root" "$@"
}

# logged ROOT COMMAND...: run COMMAND, and show its output only if it fails.
logged() {
  local log=$1.log
  shift
  "$@" >"$log" 2>&1 9<&- || fatal "'$*' failed: $(tail -n 15 "$log")" $'\n' "The full output is in $log"
  rm "$log"
}

configure() {
  local root=$1
  inside "$root" useradd --create-home --shell /bin/bash admin
  echo 'admin ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/admin"
  chmod 440 "$root/etc/sudoers.d/admin"

  # Each machine's own settings are in /etc/machine, which machine.sh mounts.
  mkdir "$root/etc/machine"
  ln -s /etc/machine/host0.network "$root/etc/systemd/network/10-host0.network"
  cat >"$root/etc/ssh/sshd_config.d/machine.conf" <<'END'
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile .ssh/authorized_keys /etc/machine/authorized_keys.%u
END
  rm -f "$root"/etc/ssh/ssh_host_*
  # Empty rather than missing: without this file, systemd enables every unit at the first boot, including firewalld.
  : >"$root/etc/machine-id"
  rm -f "$root/var/lib/dbus/machine-id" "$root/etc/hostname"
  printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts" # libnss-myhostname resolves the machine's own name
  : >"$root/etc/resolv.conf"                                       # debootstrap copied this computer's; machines have no DNS

  logged "$root" inside "$root" systemctl disable firewalld nftables
  logged "$root" inside "$root" systemctl enable systemd-networkd ssh
  logged "$root" inside "$root" systemctl mask "${masked[@]}"
}

main "$@"
