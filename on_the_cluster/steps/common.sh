# This file precedes every step. To run a step by hand on a machine, include the files of the step's folder, if any
# (instead of `-s`, `-s undo` undoes the step):
#   (echo NETWORK=10.1.0.0/24 ...; cat common/*.sh common.sh firewall/*.sh firewall.sh) | sudo bash -s
# `bash -s first` is a resource's first run. If it fails, the step undoes itself, because Pulumi does not record the
# resource and destroy would not undo it. Parameters are assignments on standard input, because other users can read
# command lines.
# shellcheck shell=bash
set -euo pipefail
shopt -s lastpipe # `put` sets `changed` at the end of a pipe
umask 022         # with a stricter umask, the cluster's user could not read what root installs
cd /              # no program loads modules or settings from the login user's home

CLUSTER_USER=dask
# Only root can write to these folders, except for the home in VAR. Otherwise a task could place a link or a program
# that root follows or runs.
ETC=/etc/daskstack
OPT=/opt/daskstack
VAR=/var/lib/daskstack
CLUSTER_HOME=$VAR/home
# The machine's original state, which undo restores.
BEFORE=$VAR/before

fatal() {
  printf 'error on %s: %s\n' "$(hostname)" "$*" | printable >&2
  exit 1
}

note() { printf '%s\n' "$*" | printable >&2; }

# label FILE...: give the files, with all that is in them, the SELinux labels of their places. systemd starts only
# programs with the right one, and new files have their folder's.
label() {
  if selinuxenabled 2>/dev/null; then restorecon -R "$@"; fi
}

# Tasks can influence the output, and terminals would interpret its control characters.
printable() { LC_ALL=C tr -dc '\11\12\40-\176'; }

# exclusively COMMAND...: run COMMAND while no other step runs on this machine. A step of a killed up may still be
# running. If that step changed files but did not finish, this one treats them as changed, so that it restarts services.
UNFINISHED=/run/daskstack-unfinished
STEPPED=/run/daskstack-stepped # its modification time is the end of the last step
LOCK=/run/daskstack.lock
exclusively() {
  open_lock
  if ! flock --nonblock 9; then
    note "waiting for a step of an earlier run that is still running on $(hostname)"
    flock --wait 300 9 || fatal "a step of an earlier run is still running after 300 s; end it or restart the machine, then run up again"
  fi
  [ ! -e $UNFINISHED ] || changed=yes
  if [ "${2:-}" = first ]; then undo_on_failure=yes; fi
  "$@" 9>&-
  rm -f $UNFINISHED
  if [ -d $VAR ]; then touch $STEPPED; else rm -f $STEPPED; fi
}

# Any user who can open a file, even only for reading, can lock it. So only root may open this one.
open_lock() {
  (umask 077 && : >>$LOCK)
  chmod 0600 $LOCK
  exec 9>>$LOCK
}

at_exit=: # the step's own cleanup
undo_on_failure=no
trap 'on_exit $?' EXIT
on_exit() {
  trap '' PIPE # writing must not fail if the connection is lost
  $at_exit
  [ "$1" != 0 ] || return 0
  report_full_disk
  [ $undo_on_failure = no ] || undo_first_run
}

# A full disk can fail any command, and few of them mention the cause.
report_full_disk() {
  local folder left
  for folder in /etc /tmp /opt $OPT /var $VAR; do
    left=$(df --output=avail --block-size=1M "$folder" 2>/dev/null | tail -n 1 | tr -dc 0-9) || continue
    [ "${left:-100}" -lt 20 ] || continue
    note "the disk of $folder on $(hostname) is full ($left MB left); free some space, then run up again"
    return
  done
}

# The undo runs in its own process group, so that it can be killed with all its children.
undo_first_run() {
  local undoing
  set -m
  (trap - EXIT && main undo) </dev/null >/dev/null 2>&1 9>&- &
  set +m
  undoing=$!
  timeout 120 tail -s 0.1 --pid=$undoing -f /dev/null || kill -KILL -- -$undoing
  if wait $undoing 2>/dev/null; then
    rm -f $UNFINISHED
    note "undid this step's changes on $(hostname)"
  else
    note "could not undo this step's changes on $(hostname); fix the cause and run up again, then destroy"
  fi
}

# put FILE MODE OWNER: write standard input to FILE. Sets `changed` if contents, mode or owner differ.
changed=no
put() {
  local file=$1 mode=$2 owner=$3 new=$1.new # a fixed name, so that the next run overwrites a killed run's file
  rm -f "$new"
  (umask 077 && cat >"$new")
  chmod "$mode" "$new"
  chown "$owner" "$new"
  if cmp -s "$new" "$file" && [ "$(stat -c %a:%U:%G "$new")" = "$(stat -c %a:%U:%G "$file")" ]; then
    rm -f "$new"
  else
    touch $UNFINISHED
    mv -f "$new" "$file"
    label "$file"
    changed=yes
  fi
}

# drop FILE...: remove the files, and any temporary files of a killed `put`.
drop() {
  local file
  for file; do rm -f "$file" "$file.new"; done
}

# A command or library, its package on Debian and Ubuntu, its package on the Red Hat family.
PACKAGES='
blkid         util-linux  util-linux
dmsetup       dmsetup     device-mapper
firewall-cmd  firewalld   firewalld
libgomp.so.1  libgomp1    libgomp
mkfs.ext4     e2fsprogs   e2fsprogs
mount.fuse3   fuse3       fuse3
nft           nftables    nftables
openssl       openssl     openssl
pgrep         procps      procps-ng
python3       python3     python3
sshfs         sshfs       fuse-sshfs
'

# package_of NAME: print the package of a command or library of the table.
package_of() {
  local column=2
  command -v apt-get >/dev/null || column=3
  awk -v name="$1" -v column=$column '$1 == name { print $column }' <<<"$PACKAGES"
}

# need COMMAND: install its package if it is missing.
need() {
  local package advice='check this machine'"'"'s package sources, or install it'
  command -v "$1" >/dev/null && return
  package=$(package_of "$1")
  note "installing $package for $1"
  ! install_package "$package" || {
    hash -r
    command -v "$1" >/dev/null && return
  }
  [ "$package" != fuse-sshfs ] || advice="enable the repository EPEL, which has it (e.g. dnf install epel-release)"
  fatal "'$1' is missing, and its package $package could not be installed; $advice, then run up again"
}

LOCKED=600         # seconds to wait for another program to release apt's lock
INSTALL_LIMIT=1800 # timeout in seconds for one package, or for the package lists
install_package() {
  if command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    local install=(apt-get -o "DPkg::Lock::Timeout=$LOCKED" install -y -q --no-install-recommends "$1")
    with_proxies timeout $INSTALL_LIMIT "${install[@]}" >&2 ||
      { update_lists && with_proxies timeout $INSTALL_LIMIT "${install[@]}" >&2; }
  elif command -v dnf >/dev/null; then
    with_proxies timeout $INSTALL_LIMIT dnf -q -y install "$1" >&2
  else
    fatal "cannot install $1, because this machine has neither apt-get nor dnf; install it by hand, then run up again"
  fi
}

# with_proxies COMMAND...: run COMMAND with the proxies of /etc/environment, which sudo drops on some systems.
with_proxies() {
  local proxies variable="(https?|all|no)_proxy"
  mapfile -t proxies < <(sed -nE "s/^(export +)?($variable)=([\"']?)(.*)\4 *$/\2=\5/Ip" /etc/environment 2>/dev/null)
  env "${proxies[@]}" "$@"
}

# apt-get can wait for dpkg's lock, but not for the lock of the package lists, which new cloud machines hold at first.
update_lists() {
  local end=$((SECONDS + LOCKED)) output announced=
  until output=$(with_proxies timeout $INSTALL_LIMIT apt-get -q update 2>&1); do
    if [[ $output != *lists/lock* ]] || [ $SECONDS -ge $end ]; then
      note "apt-get update failed on $(hostname): $(grep '^E:' <<<"$output" || tail -n 3 <<<"$output")"
      return 1
    fi
    [ -n "$announced" ] || note "waiting for another program to release apt's lock: $(grep -m 1 lists/lock <<<"$output")"
    announced=yes
    sleep 1
  done
}

# wait_for SECONDS CONDITION COMMAND...: wait until COMMAND succeeds. CONDITION completes the error "timed out waiting
# for".
wait_for() {
  local end=$((SECONDS + $1)) seconds=$1 condition=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || fatal "timed out after $seconds s waiting for $condition"
    sleep 0.2
  done
}

# remember NAME: save standard input as the original state, unless it is already saved.
remember() {
  install -d -m 0755 $VAR
  install -d -m 0700 "$BEFORE"
  if [ -e "$BEFORE/$1" ]; then cat >/dev/null; else put "$BEFORE/$1" 0600 root:root; fi
}

forget() {
  drop "$BEFORE/$1"
  tidy
}

# The last undo on a machine removes our empty folders.
tidy() { rmdir "$BEFORE" $VAR $ETC $OPT 2>/dev/null || true; }

# first_missing FOLDER: print the topmost folder that `mkdir -p FOLDER` would create.
first_missing() {
  local folder=$1
  while [ ! -e "$(dirname "$folder")" ]; do folder=$(dirname "$folder"); done
  printf '%s\n' "$folder"
}

# remove_made TOP FOLDER: remove FOLDER and its parents up to TOP, as long as they are empty.
remove_made() {
  local above
  above=$(dirname "$1")
  [ ! -d "$2" ] || (cd "$above" && rmdir --parents --ignore-fail-on-non-empty "${2#"${above%/}/"}")
}

# as_cluster_user COMMAND...: run COMMAND as the cluster's user, for at most `within` seconds (60). Tasks run as the
# same user, so they could suspend it.
as_cluster_user() {
  timeout -k 5 "${within:-60}" setpriv --reuid $CLUSTER_USER --regid $CLUSTER_USER --init-groups --no-new-privs \
    env HOME=$CLUSTER_HOME "$@"
}

# The machine may have an unrelated user with this name.
cluster_user_is_ours() { [ "$(getent passwd $CLUSTER_USER | cut -d: -f6)" = $CLUSTER_HOME ]; }

# Kill every process of the cluster's user, and remove whatever could start new ones. `kill -1` signals all processes at
# once, and none can fork meanwhile, so this also stops a fork bomb.
end_processes() {
  local end=$((SECONDS + 60))
  cluster_user_is_ours || return 0
  rm -f /var/spool/cron/crontabs/$CLUSTER_USER /var/spool/cron/$CLUSTER_USER /var/lib/systemd/linger/$CLUSTER_USER
  delete_files_of_cluster_user /var/spool # crontabs and at jobs
  timeout 20 loginctl terminate-user $CLUSTER_USER 2>/dev/null || true
  while pgrep -u $CLUSTER_USER >/dev/null || pgrep -U $CLUSTER_USER >/dev/null; do
    [ $SECONDS -lt $end ] ||
      fatal "cannot end all processes of user $CLUSTER_USER: $(pgrep -l -u $CLUSTER_USER | head -n 5 | xargs)"
    setpriv --reuid $CLUSTER_USER --regid $CLUSTER_USER --clear-groups bash -c 'kill -KILL -1' 2>/dev/null || true
    pkill -KILL -U $CLUSTER_USER || true
    sleep 0.1
  done
}

# end_cluster_user: end_processes, and remove the user's files from places where every user can write.
end_cluster_user() {
  local target
  cluster_user_is_ours || return 0
  usermod --expiredate 1 $CLUSTER_USER # no new session from here on
  end_processes
  { findmnt -rn -o TARGET -O "user_id=$(id -u $CLUSTER_USER)" || true; } | while read -r target; do
    umount --lazy "$(printf %b "$target")"
  done
  setpriv --reuid $CLUSTER_USER --regid $CLUSTER_USER --clear-groups ipcrm --all 2>/dev/null || true
  delete_files_of_cluster_user /tmp /var/tmp /dev/shm /dev/mqueue /run /run/lock /var/mail /var/crash
}

# delete_files_of_cluster_user FOLDER...: a folder that contains other users' files is given to root instead.
delete_files_of_cluster_user() {
  local folder
  for folder; do
    [ -d "$folder" ] || continue
    find "$folder" -xdev -depth -user $CLUSTER_USER \
      \( -delete -o -execdir chown -h root:root {} \; \) 2>/dev/null || true
  done
}

# in_environment COMMAND...: run a program of the installed environment as the cluster's user, with Dask's
# configuration. The working directory is not the home, where Python would import modules that a task placed there.
in_environment() {
  (cd / && as_cluster_user PYTHONSAFEPATH=1 PATH=$OPT/environment/bin:/usr/local/bin:/usr/bin:/bin DASK_CONFIG=$ETC/dask.yaml \
    PYTHONPYCACHEPREFIX=$CLUSTER_HOME/.cache/pycache "$@")
}
