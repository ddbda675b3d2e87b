#!/usr/bin/env bash
# The Debian 12 image that local machines start from: found in the cache, or built there once (about a minute).
#
#   CACHE   folder to keep it in, e.g. ~/.cache/daskstack
#
# Prints the image's folder, $CACHE/images/<hash of this file>. Nothing in it belongs to one machine: no SSH
# host key, no machine-id, no address. Any change to this file makes another image.
set -euo pipefail
umask 022
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=on_this_computer/local_machines/common.sh
source "$here/common.sh"

packages=(
  systemd systemd-sysv dbus libnss-myhostname openssh-server sudo
  sshfs acl nftables firewalld netbase iproute2
  python3 python3-venv ca-certificates openssl
)

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Package updates that cannot reach anything, and a log-in prompt on a console that is a log file.
masked=(apt-daily.timer apt-daily-upgrade.timer console-getty.service)

main() {
  local image partial started=$SECONDS
  image=$CACHE/images/$(sha256sum "$here/image.sh" | cut -c 1-16)
  if [[ -d $image ]]; then
    echo "$image"
    return
  fi
  mkdir -p "$CACHE/images"
  become_root CACHE
  need debootstrap=debootstrap flock=util-linux gpgv=gpgv
  # Without these keys debootstrap would take what it gets, signed or not.
  [[ -s $keyring ]] ||
    cannot "it lacks the keys of Debian's archive, $keyring (Debian and Ubuntu: apt-get install debian-archive-keyring)."

  exec 9<"$CACHE/images"
  flock -n 9 || {
    say "Waiting for another run that builds the image..."
    flock 9
  }
  if [[ ! -d $image ]]; then
    partial=$image.partial
    # A build that was killed leaves its /proc mounted.
    ! mountpoint -q "$partial/proc" || umount "$partial/proc"
    rm -rf "$partial"
    build "$partial"
    mv "$partial" "$image"
    say "Image built in $((SECONDS - started)) s: $image ($(du -sh "$image" | cut -f 1))"
  fi
  echo "$image"
}

# mirror LABEL: where this computer's own apt gets Debian (or Debian-Security) from, or nothing.
mirror() {
  command -v apt-get >/dev/null || return 0
  apt-get indextargets --format "\$(REPO_URI)" 'Created-By: Packages' 'Origin: Debian' "Label: $1" |
    grep -m 1 '^http' || true
}

build() {
  local root=$1 debian security
  debian=$(mirror Debian)
  security=$(mirror Debian-Security)

  say "Building the machines' image (Debian 12, once): base system"
  # Without a mirror of this computer's own, debootstrap knows one, and security updates lie beside it.
  logged "$root" debootstrap --variant=minbase --force-check-gpg --keyring="$keyring" bookworm "$root" ${debian:+"$debian"}
  security=${security:-$(sed -n 's#^deb \(.*\)/debian/* .*#\1/debian-security#p' "$root/etc/apt/sources.list")}
  echo "deb $security bookworm-security main" >>"$root/etc/apt/sources.list"

  say "Building the machines' image: security updates and ${#packages[@]} packages"
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # nothing starts while it is installed
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

# logged ROOT COMMAND...: quiet, unless it fails.
logged() {
  local log=$1.log
  shift
  "$@" >"$log" 2>&1 9<&- || fatal "'$*' failed: $(tail -n 15 "$log")" $'\n' "Its whole output is in $log"
  rm "$log"
}

configure() {
  local root=$1
  inside "$root" useradd --create-home --shell /bin/bash admin
  echo 'admin ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/admin"
  chmod 440 "$root/etc/sudoers.d/admin"

  # What differs between machines is in /etc/machine, which machine.sh binds into each.
  mkdir "$root/etc/machine"
  ln -s /etc/machine/host0.network "$root/etc/systemd/network/10-host0.network"
  cat >"$root/etc/ssh/sshd_config.d/machine.conf" <<'END'
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile .ssh/authorized_keys /etc/machine/authorized_keys.%u
END
  rm -f "$root"/etc/ssh/ssh_host_*
  # Empty, and not absent: an absent one makes systemd enable every unit at first boot, firewalld too.
  : >"$root/etc/machine-id"
  rm -f "$root/var/lib/dbus/machine-id" "$root/etc/hostname"
  printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts" # a machine's own name: libnss-myhostname
  : >"$root/etc/resolv.conf"                                       # debootstrap leaves the builder's; nothing outside can be reached

  logged "$root" inside "$root" systemctl disable firewalld nftables
  logged "$root" inside "$root" systemctl enable systemd-networkd ssh
  logged "$root" inside "$root" systemctl mask "${masked[@]}"
}

main "$@"
