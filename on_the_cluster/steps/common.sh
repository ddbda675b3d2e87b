# Put in front of every step. To run a step by hand, on the machine, with the files of its folder where it has one:
#   (echo NETWORK=10.1.0.0/24 ...; cat common.sh firewall/*.sh firewall.sh) | sudo bash -s        (or: bash -s undo)
# `bash -s first` is the run that Pulumi does not know yet: if it fails, the step undoes itself, because no destroy will.
# Parameters come as plain assignments on standard input, never on a command line that others can read.
# shellcheck shell=bash
set -euo pipefail
shopt -s lastpipe # what `put` sets at the end of a pipe is set here
umask 022         # that of the machine may keep the cluster's user from what root installs
cd /              # no program reads its modules or settings from the login user's home

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
  printf 'error on %s: %s\n' "$(hostname)" "$*" | printable >&2
  exit 1
}

note() { printf '%s\n' "$*" | printable >&2; }

# Tasks choose some of what is printed, and a terminal would obey its control characters.
printable() { LC_ALL=C tr -dc '\11\12\40-\176'; }

# alone COMMAND...: runs it as the only step on this machine: that of an up that was killed may still be at work here.
# What such a step changed and did not see through counts as changed, so that services take it up.
UNFINISHED=/run/daskstack-unfinished
STEPPED=/run/daskstack-stepped # when the last step ended
LOCK=/run/daskstack.lock
alone() {
  open_lock
  if ! flock --nonblock 9; then
    note "waiting for a step of an earlier run that is still at work on $(hostname)"
    flock --wait 300 9 || fatal "a step of an earlier run is still at work after 300 s; end it or restart the machine, then run up again"
  fi
  [ ! -e $UNFINISHED ] || changed=yes
  if [ "${2:-}" = first ]; then undo_on_failure=yes; fi
  "$@" 9>&-
  rm -f $UNFINISHED
  if [ -d $VAR ]; then touch $STEPPED; else rm -f $STEPPED; fi
}

# Every user who can open a file, for reading too, can hold its lock.
open_lock() {
  (umask 077 && : >>$LOCK)
  chmod 0600 $LOCK
  exec 9>>$LOCK
}

at_exit=: # what a step has to clean up
undo_on_failure=no
trap 'ended $?' EXIT
ended() {
  trap '' PIPE # the connection may be gone, and with it whoever would read what is said here
  $at_exit
  [ "$1" != 0 ] || return 0
  name_full_disk
  [ $undo_on_failure = no ] || undo_first_run
}

# A full disk fails a step at any point, and what fails then seldom says why.
name_full_disk() {
  local folder left
  for folder in /etc /tmp /opt $OPT /var $VAR; do
    left=$(df --output=avail --block-size=1M "$folder" 2>/dev/null | tail -n 1 | tr -dc 0-9) || continue
    [ "${left:-100}" -lt 20 ] || continue
    note "the disk of $folder on $(hostname) is full ($left MB left): make room there, then run up again"
    return
  done
}

# In a process group of its own, which can be ended as a whole.
undo_first_run() {
  local undoing
  set -m
  (trap - EXIT && main undo) </dev/null >/dev/null 2>&1 9>&- &
  set +m
  undoing=$!
  timeout 120 tail -s 0.1 --pid=$undoing -f /dev/null || kill -KILL -- -$undoing
  if wait $undoing 2>/dev/null; then
    rm -f $UNFINISHED
    note "what this step had begun on $(hostname) is undone"
  else
    note "what this step had begun on $(hostname) could not be undone; run up again when the cause is mended, then destroy"
  fi
}

# put FILE MODE OWNER: FILE holds what arrives on standard input. Sets `changed` when it did not before.
changed=no
put() {
  local file=$1 mode=$2 owner=$3 new=$1.new # one name: a killed run's is written over
  rm -f "$new"
  (umask 077 && cat >"$new")
  chmod "$mode" "$new"
  chown "$owner" "$new"
  if cmp -s "$new" "$file" && [ "$(stat -c %a:%U:%G "$new")" = "$(stat -c %a:%U:%G "$file")" ]; then
    rm -f "$new"
  else
    touch $UNFINISHED
    mv -f "$new" "$file"
    changed=yes
  fi
}

# drop FILE...: removes them, and what a killed run has begun to put there.
drop() {
  local file
  for file; do rm -f "$file" "$file.new"; done
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

LOCKED=120         # seconds to wait for another program that installs packages
INSTALL_LIMIT=1800 # seconds for one package or the package lists
install_package() {
  if command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    local install=(apt-get -o "DPkg::Lock::Timeout=$LOCKED" install -y -q --no-install-recommends "$1")
    timeout $INSTALL_LIMIT "${install[@]}" >&2 || { update_lists && timeout $INSTALL_LIMIT "${install[@]}" >&2; }
  elif command -v dnf >/dev/null; then
    timeout $INSTALL_LIMIT dnf -q -y install "$1" >&2
  else
    fatal "no apt-get and no dnf to install $1 with; install it by hand, then run up again"
  fi
}

# apt-get waits for dpkg's lock by itself, but not for that of the lists, which a new cloud machine holds at first.
update_lists() {
  local end=$((SECONDS + LOCKED)) said told=
  until said=$(timeout $INSTALL_LIMIT apt-get -q update 2>&1); do
    if [[ $said != *lists/lock* ]] || [ $SECONDS -ge $end ]; then
      note "apt-get update failed on $(hostname): $(grep '^E:' <<<"$said" || tail -n 3 <<<"$said")"
      return 1
    fi
    [ -n "$told" ] || note "waiting for another program to give back apt's lock: $(grep -m 1 lists/lock <<<"$said")"
    told=yes
    sleep 1
  done
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
  drop "$BEFORE/$1"
  tidy
}

# The last undo of a machine leaves no empty folder of ours.
tidy() { rmdir "$BEFORE" $VAR $ETC $OPT 2>/dev/null || true; }

# The topmost folder that `mkdir -p FOLDER` would make.
first_missing() {
  local folder=$1
  while [ ! -e "$(dirname "$folder")" ]; do folder=$(dirname "$folder"); done
  printf '%s\n' "$folder"
}

# remove_made TOP FOLDER: removes FOLDER and the folders above it up to TOP, as far as they are empty.
remove_made() {
  local above
  above=$(dirname "$1")
  [ ! -d "$2" ] || (cd "$above" && rmdir --parents --ignore-fail-on-non-empty "${2#"${above%/}/"}")
}

# as_cluster_user COMMAND...: tasks can make any command of their user stand still, so it ends after a minute, or after
# `within` seconds.
as_cluster_user() {
  timeout -k 5 "${within:-60}" setpriv --reuid $CLUSTER_USER --regid $CLUSTER_USER --init-groups --no-new-privs \
    env HOME=$CLUSTER_HOME "$@"
}

# Another user of that name is none of our business.
cluster_user_is_ours() { [ "$(getent passwd $CLUSTER_USER | cut -d: -f6)" = $CLUSTER_HOME ]; }

# Ends every process of the cluster's user, and removes what would start another one. The kernel signals all of them at
# once and lets none fork meanwhile, so this ends a fork bomb too.
end_processes() {
  local end=$((SECONDS + 60))
  cluster_user_is_ours || return 0
  rm -f /var/spool/cron/crontabs/$CLUSTER_USER /var/spool/cron/$CLUSTER_USER /var/lib/systemd/linger/$CLUSTER_USER
  delete_files_of_cluster_user /var/spool # crontabs and at jobs
  timeout 20 loginctl terminate-user $CLUSTER_USER 2>/dev/null || true
  while pgrep -u $CLUSTER_USER >/dev/null || pgrep -U $CLUSTER_USER >/dev/null; do
    [ $SECONDS -lt $end ] || fatal "processes of user $CLUSTER_USER do not end: $(pgrep -l -u $CLUSTER_USER | head -n 5 | xargs)"
    setpriv --reuid $CLUSTER_USER --regid $CLUSTER_USER --clear-groups bash -c 'kill -KILL -1' 2>/dev/null || true
    pkill -KILL -U $CLUSTER_USER || true
    sleep 0.1
  done
}

# end_cluster_user: besides, nothing of that user is left where every user may leave something.
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

# delete_files_of_cluster_user FOLDER...: a folder of that user with files of others in it becomes root's.
delete_files_of_cluster_user() {
  local folder
  for folder; do
    [ -d "$folder" ] || continue
    find "$folder" -xdev -depth -user $CLUSTER_USER \
      \( -delete -o -execdir chown -h root:root {} \; \) 2>/dev/null || true
  done
}

# A program of the installed environment, as the cluster's user, with Dask's configuration. Not in the home, from which
# Python would import what a task put there.
in_environment() {
  (cd / && as_cluster_user PYTHONSAFEPATH=1 PATH=$OPT/environment/bin:/usr/local/bin:/usr/bin:/bin DASK_CONFIG=$ETC/dask.yaml \
    PYTHONPYCACHEPREFIX=$CLUSTER_HOME/.cache/pycache "$@")
}

# one_at_a_time AUTHORITY_ADDRESS: until this step ends, no other machine of the cluster stops its workers. The lock is
# on the authority's machine (no address: this one), and ends with the connection; after 300 s at the latest, when this
# machine died with it. Tasks can hold it too, or break it: then the workers restart all the same.
one_at_a_time() {
  local here=(sh -c) patience=600
  local lock="exec 9>$CLUSTER_HOME/stopping.lock && flock -w $patience 9 && echo held && timeout 300 cat"
  [ -z "$1" ] || here=("$ETC/ssh/ssh" "$1")
  coproc LOCK { within=$((patience + 360)) as_cluster_user "${here[@]}" "$lock" 2>/dev/null; }
  read -r -t $((patience + 30)) _ <&"${LOCK[0]}" ||
    note "no turn to restart workers within $patience s, or no answer from ${1:-this machine}: $(hostname) restarts its own now"
}

# Starts the worker units that are named, and waits until each answers.
start_workers() {
  local unit
  # Not for as long as they take: tasks can keep them from starting.
  systemctl start --no-block "$@"
  for unit in "$@"; do
    # shellcheck source=/dev/null
    (source "$ETC/worker-${unit#*@}.env" && until_it_answers "$unit" "$ADDRESS" "$WORKER_PORT")
  done
}

# until_it_answers UNIT ADDRESS PORT
until_it_answers() {
  local end=$((SECONDS + 60))
  until (exec 3<>"/dev/tcp/$2/$3") 2>/dev/null; do
    [ $SECONDS -lt $end ] ||
      fatal "$1 does not answer on port $3 after 60 s: $(journalctl -u "$1" -n 15 --no-pager -o cat)"
    sleep 0.2
  done
}
