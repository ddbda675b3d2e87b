# Put in front of every step. To run a step by hand, on the machine:
#   (echo NETWORK=10.1.0.0/24 ...; cat common.sh firewall.sh) | sudo bash -s        (or: bash -s undo)
# Parameters come as plain assignments on standard input, never on a command line that others can read.
# shellcheck shell=bash
set -euo pipefail
shopt -s lastpipe # what `put` sets at the end of a pipe is set here

CLUSTER_USER=dask
# Root's alone to write, but for the home in VAR: what runs on the cluster must not be able to put a link or a program
# where root would follow it.
ETC=/etc/daskstack
OPT=/opt/daskstack
VAR=/var/lib/daskstack
CLUSTER_HOME=$VAR/home
# What was here before us, so that undo can give it back.
BEFORE=$VAR/before

fatal() {
  printf 'error on %s: %s\n' "$(hostname)" "$*" >&2
  exit 1
}

note() { printf '%s\n' "$*" >&2; }

# put FILE MODE OWNER: FILE holds what arrives on standard input. Sets `changed` when it did not before.
changed=no
put() {
  local file=$1 mode=$2 owner=$3 new
  new=$(mktemp "$file.XXXXXX")
  cat >"$new"
  chmod "$mode" "$new"
  chown "$owner" "$new"
  if cmp -s "$new" "$file" && [ "$(stat -c %a:%U:%G "$new")" = "$(stat -c %a:%U:%G "$file")" ]; then
    rm -f "$new"
  else
    mv -f "$new" "$file"
    changed=yes
  fi
}

# need COMMAND PACKAGE...: COMMAND is there, from the first of these packages that the system knows.
need() {
  local command=$1 package
  shift
  if command -v "$command" >/dev/null; then return; fi
  note "installing $1, for $command"
  for package in "$@"; do
    if install_package "$package"; then
      hash -r
      command -v "$command" >/dev/null && return
    fi
  done
  fatal "'$command' is missing and no package could be installed for it ($*); install it, then run up again"
}

install_package() {
  if command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get -o DPkg::Lock::Timeout=120 install -y -q --no-install-recommends "$1" >&2 ||
      { apt-get -q update >&2 && apt-get -o DPkg::Lock::Timeout=120 install -y -q --no-install-recommends "$1" >&2; }
  elif command -v dnf >/dev/null; then
    dnf -q -y install "$1" >&2
  else
    fatal "no apt-get and no dnf to install $1 with; install it by hand, then run up again"
  fi
}

# wait_for SECONDS WHAT COMMAND...: COMMAND succeeds within SECONDS, or the step fails and says WHAT did not happen.
wait_for() {
  local end=$((SECONDS + $1)) seconds=$1 what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || fatal "waited $seconds s in vain: $what"
    sleep 0.2
  done
}

# remember NAME: keeps standard input as what was there before us, unless it is kept already.
remember() {
  install -d -m 0755 $VAR
  install -d -m 0700 "$BEFORE"
  if [ -e "$BEFORE/$1" ]; then cat >/dev/null; else put "$BEFORE/$1" 0600 root:root; fi
}

forget() {
  rm -f "$BEFORE/$1"
  tidy
}

# The last undo of a machine leaves no empty folder of ours.
tidy() { rmdir "$BEFORE" $VAR $ETC $OPT 2>/dev/null || true; }

as_cluster_user() { setpriv --reuid $CLUSTER_USER --regid $CLUSTER_USER --init-groups env HOME=$CLUSTER_HOME "$@"; }
