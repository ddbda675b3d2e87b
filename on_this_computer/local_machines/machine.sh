#!/usr/bin/env bash
# machine.sh up|down|start|stop|status: one local machine, a Debian system on systemd-nspawn with its own sshd.
#
#   DIRECTORY        the stack's own folder (network.sh made it); the machine's files are in DIRECTORY/NAME
#   NAME             the machine's host name, e.g. worker-1
#   BRIDGE           what network.sh printed
#   for `up` and `start`:
#   IMAGE            what image.sh printed
#   NETWORK          what network.sh printed, e.g. 10.20.30.0/24
#   NUMBER           host part of the machine's address, e.g. 11
#   ADDRESS, GATEWAY  in place of these two: the machine's whole address, and by whom alone it reaches any other
#   AUTHORIZED_KEY   SSH public keys that may log in as `admin`, who may use sudo
#   FILES            folder whose files a new machine has beside the image's (none)
#   DISKS            lines of NAME=FILE: the file is the machine's block device /dev/disk/by-id/NAME (none)
#   STARTED          kept in DIRECTORY/NAME/started; the caller can change it to have `up` run again
#   SECONDS_TO_BOOT  limit for the wait (60)
#   for `stop` and `down`:
#   SECONDS_TO_STOP  from the power button to the cut of the power (5)
#
# `up` makes the machine and starts it, where that is still to be done, waits until it answers on port 22 and
# has booted, and prints {"id": ID, "address": ADDRESS, "hostKey": "ssh-ed25519 ..."}. ID is made with the
# machine and never changes. `start` does the same, and waits only until the machine runs. `stop` switches it off;
# `down` does that and removes everything of it. `status` prints `running` or `stopped`.
#
# In DIRECTORY/NAME: id; image (that it was made from); upper and work (the overlay); etc (bound to /etc/machine
# inside); started; console.log (of this boot); running (locked by the machine's supervisor as long as it lives). Its
# processes are those in its control group BRIDGE-NAME. Mounts are in the supervisor's namespaces alone, so they end
# with it.
set -euo pipefail
umask 022
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=on_this_computer/local_machines/common.sh
source "$here/common.sh"

main() {
  become_root "DIRECTORY NAME BRIDGE IMAGE NETWORK NUMBER ADDRESS GATEWAY AUTHORIZED_KEY FILES DISKS STARTED \
        SECONDS_TO_BOOT SECONDS_TO_STOP" "$@"
  [[ $NAME =~ ^[a-z0-9]([a-z0-9-]*[a-z0-9])?$ ]] || fatal "NAME '$NAME' is not a host name (a-z, 0-9, -)"
  [[ $DIRECTORY == /* ]] || fatal "DIRECTORY '$DIRECTORY' must be an absolute path"
  state=$DIRECTORY/$NAME
  cgroup=$(findmnt -rn -o TARGET -t cgroup2 | head -n 1 || true)/$BRIDGE-$NAME
  case ${1-} in
    up) up ;;
    down) down ;;
    start) launch ;;
    stop) stop ;;
    status) if is_populated; then echo running; else echo stopped; fi ;;
    supervise | boot) "$1" ;; # by `up` alone
    *) fatal "expected 'up' or 'down', got '${1-}'" ;;
  esac
}

up() {
  make
  wait_until has_booted
  printf '{"id": "%s", "address": "%s", "hostKey": "%s"}\n' "$(<"$state/id")" "$address" \
    "$(cut -d ' ' -f 1,2 "$state/upper/etc/ssh/ssh_host_ed25519_key.pub")"
}

launch() {
  make
  wait_until true
}

make() {
  address=${ADDRESS:-${NETWORK%.*}.$NUMBER}
  check_computer
  # Only while it changes something: machines of one stack boot at the same time.
  exec 9<"$DIRECTORY"
  flock -w 60 9 || fatal "waited 60 s for another machine.sh in $DIRECTORY"
  rm -rf "$DIRECTORY/.$NAME"
  [[ -d $state ]] || create
  check_image "$(<"$state/image")"
  write_settings
  start
  exec 9<&-
}

down() {
  stop
  if [[ -d $DIRECTORY ]]; then
    exec 9<"$DIRECTORY"
    flock -w 60 9 || fatal "waited 60 s for another machine.sh in $DIRECTORY"
    # Renamed first: half a machine must never look like one.
    rm -rf "$DIRECTORY/.$NAME"
    [[ ! -d $state ]] || mv "$state" "$DIRECTORY/.$NAME"
    exec 9<&- # a busy computer takes long for the next line, and other machines go meanwhile
    rm -rf "$DIRECTORY/.$NAME"
  fi
  [[ ! -d $cgroup ]] || find "$cgroup" -depth -type d -delete
}

check_computer() {
  need systemd-nspawn=systemd-container ip=iproute2 ssh-keygen=openssh-client flock=util-linux
  [[ -e /dev/fuse ]] || cannot "it has no /dev/fuse (try: modprobe fuse)."
  grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null || cannot "its kernel has no overlay files."
  [[ $cgroup == /*/* ]] || cannot "it has no control groups v2 (start it with systemd.unified_cgroup_hierarchy=1)."
  if [[ -n ${DISKS-} ]]; then
    need losetup=mount
    [[ -e /dev/loop-control ]] || cannot "it has no loop devices (try: modprobe loop)."
  fi
  # Each machine's systemd takes some fifteen: at the usual limit of 128 the ninth stands still half-way.
  local instances=/proc/sys/fs/inotify/max_user_instances
  (($(<$instances) >= 8192)) || echo 8192 >$instances # until this computer restarts
}

check_image() {
  [[ -d $1 ]] || fatal "the image that $NAME was made from is gone: $1" $'\n' \
    "Destroy the stack and bring it up again; the machine's files are of no use without it."
  [[ $1 == "$IMAGE" ]] || say "$NAME keeps the image that it was made from: $1"
}

create() {
  local new=$DIRECTORY/.$NAME
  mkdir -p "$new"/{etc,work,upper/etc/ssh}
  cat /proc/sys/kernel/random/uuid >"$new/id"
  echo "$IMAGE" >"$new/image"
  tr -d - <"$new/id" >"$new/upper/etc/machine-id"
  ssh-keygen -q -t ed25519 -N '' -C "root@$NAME" -f "$new/upper/etc/ssh/ssh_host_ed25519_key"
  [[ -z ${FILES-} ]] || cp -rdT "$FILES" "$new/upper"
  mv "$new" "$state"
}

write_settings() {
  local wanted length=${GATEWAY:+32}
  wanted="[Match]
Name=host0
[Network]
Address=$address/${length:-24}
LinkLocalAddressing=no"
  [[ -z ${GATEWAY-} ]] || wanted+="
[Route]
Gateway=$GATEWAY
GatewayOnLink=yes"
  if [[ -e $state/etc/host0.network && $(<"$state/etc/host0.network") != "$wanted" ]] && is_running; then
    say "$NAME restarts with its new address $address"
    stop
  fi
  echo "$wanted" >"$state/etc/host0.network"
  echo "${STARTED-}" >"$state/started"
  echo "$AUTHORIZED_KEY" >"$state/etc/authorized_keys.partial"
  mv "$state/etc/authorized_keys.partial" "$state/etc/authorized_keys.admin"
}

is_running() { [[ -e $state/running ]] && ! flock -n "$state/running" true; }

is_populated() { grep -qs 'populated 1' "$cgroup/cgroup.events"; }

# The machine's own process 1, as this computer numbers it.
init() { head -n 1 "$cgroup/payload/init.scope/cgroup.procs" 2>/dev/null; }

start() {
  started=no
  exec 8>>"$state/running"
  if flock -n 8; then
    # A session of its own, nothing inherited but the lock: it must outlive the caller and not make it wait.
    setsid bash "$here/machine.sh" supervise </dev/null >"$state/console.log" 2>&1 9<&- &
    started=yes
  fi
  exec 8>&-
}

stop() {
  local pid pids begun=$SECONDS limit=${SECONDS_TO_STOP:-5}
  pid=$(init || true)
  [[ -z $pid ]] || kill -s RTMIN+4 "$pid" 2>/dev/null || true # systemd: power off
  while is_running || is_populated; do
    if [[ -z $pid ]] || ((SECONDS - begun >= limit)); then
      mapfile -t pids < <(find "$cgroup" -name cgroup.procs -exec cat {} + 2>/dev/null)
      kill -s KILL "${pids[@]}" 2>/dev/null || true
    fi
    ((SECONDS - begun < limit + 10)) || fatal "$NAME does not end; its processes are those in $cgroup"
    sleep 0.05
  done
}

supervise() {
  cd /
  mkdir -p "$cgroup"
  while is_populated; do sleep 0.05; done # processes of a killed supervisor, about to end
  echo 0 >"$cgroup/cgroup.procs"
  exec nsenter --net="/run/netns/$BRIDGE" \
    unshare --mount --pid --fork --kill-child --mount-proc bash "$here/machine.sh" boot
}

# Process 1 of a process namespace of its own.
boot() {
  local root=/run/machine status binds=(--bind=/dev/fuse)
  # Where v1 groups are mounted as well, all machines would put their services into the same ones.
  [[ $(stat -f -c %T /sys/fs/cgroup) == cgroup2fs ]] || mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mount -t tmpfs tmpfs /run
  mkdir "$root"
  mount -t overlay overlay -o "lowerdir=$(<"$state/image"),upperdir=$state/upper,workdir=$state/work" "$root"
  [[ ! -e /dev/autofs ]] || binds+=(--bind=/dev/autofs)
  attach

  export TERM=dumb SYSTEMD_NSPAWN_TMPFS_TMP=0
  while true; do
    status=0
    # No user namespace: the kernel allows no automount in one. So its root is kept from devices and from the kernel,
    # and could still leave the machine with some skill (docs/security.md, Decisions).
    systemd-nspawn --quiet --boot --directory="$root" --machine="$NAME" --settings=no \
      --register=no --keep-unit --drop-capability=CAP_MKNOD --network-bridge="$BRIDGE" "${binds[@]}" \
      --bind-ro="$state/etc:/etc/machine" --resolv-conf=off --timezone=off --link-journal=no \
      --console=read-only || status=$?
    # 133: `reboot` inside.
    ((status == 133)) || exit "$status"
  done
}

# A disk's device ends with its last user: this process, or what mounts it.
attach() {
  local id file device
  SECONDS=0
  while IFS='=' read -r id file; do
    [[ -n $id ]] || continue
    while [[ -n $(losetup --associated "$file") ]]; do
      ((SECONDS < 10)) || fatal "disk $file is in use by another machine"
      sleep 0.1
    done
    device=$(losetup --find --show "$file")
    # shellcheck disable=SC2034 # held open as long as this process lives
    exec {disk}<>"$device"
    losetup --detach "$device"
    binds+=("--bind=$device:/dev/disk/by-id/$id")
  done <<<"${DISKS-}"
}

# wait_until CONDITION: that it runs, and what CONDITION says of its process 1.
wait_until() {
  local limit=${SECONDS_TO_BOOT:-60} pid
  SECONDS=0
  until pid=$(init) && [[ -n $pid ]] && "$1" "$pid"; do
    if ! is_running; then
      [[ $started == no ]] || not_booted "it ended"
      start # what ran when we came was about to end
    fi
    ((SECONDS < limit)) || not_booted "it does not answer on $address port 22, or still starts, after $limit s"
    sleep 0.1
  done
}

answers() { [[ $(timeout 2 bash -c "exec 3<>/dev/tcp/$1/22 && head -c 4 <&3" 2>/dev/null) == SSH- ]]; }

has_booted() { systemd_has_booted "$1" && answers "$address"; }

systemd_has_booted() {
  # Not --pid: a machine that reboots stops and awaits all processes of its namespace, and nsenter with them.
  [[ $(timeout -k 1 20 nsenter --target "$1" --mount systemctl is-system-running 2>/dev/null) == @(running|degraded) ]]
}

not_booted() {
  fatal "machine $NAME did not boot: $1. Last lines of its console ($state/console.log):" $'\n' \
    "$(tail -n 15 "$state/console.log" | tr -d '\r')"
}

main "$@"
