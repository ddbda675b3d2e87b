#!/usr/bin/env bash
# machine.sh up|down|start|stop|status: one local machine, a Debian system in systemd-nspawn with its own sshd.
#
#   DIRECTORY        the stack's folder, which network.sh created; the machine's files are in DIRECTORY/NAME
#   NAME             the machine's host name, e.g. worker-1
#   BRIDGE           the bridge that network.sh printed
#   for `up` and `start`:
#   IMAGE            the image that image.sh printed
#   NETWORK          the network that network.sh printed, e.g. 10.20.30.0/24
#   NUMBER           host part of the machine's address, e.g. 11
#   ADDRESS, GATEWAY  instead of these two: the machine's full address, and the gateway through which it reaches all others
#   AUTHORIZED_KEY   SSH public keys that can log in as `admin`, a user with sudo
#   FILES            folder with additional files for a new machine (none)
#   DISKS            lines of NAME=FILE: FILE becomes the block device /dev/disk/by-id/NAME (none)
#   STARTED          stored in DIRECTORY/NAME/started; a new value makes Pulumi run `up` again
#   SECONDS_TO_BOOT  timeout for booting (60)
#   for `stop` and `down`:
#   SECONDS_TO_STOP  seconds between an orderly shutdown and killing the machine (5)
#
# `up` creates and starts the machine if necessary, waits until it has booted and answers on port 22, and prints
# {"id": ID, "address": ADDRESS, "hostKey": "ssh-ed25519 ..."}. ID never changes during the machine's life. `start` does
# the same, but waits only until the machine runs. `stop` shuts the machine down; `down` also removes all its files.
# `status` prints `running` or `stopped`.
#
# DIRECTORY/NAME contains: id; image (its path); upper and work (the overlay); etc (mounted at /etc/machine); started;
# console.log (of the current boot); running (locked while the machine's supervisor runs). The machine's processes are
# in the control group BRIDGE-NAME. Its mounts are in the supervisor's namespaces, so they disappear with it.
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
    supervise | boot) "$1" ;; # only for internal use
    *) fatal "expected up, down, start, stop or status, got '${1-}'" ;;
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
  # Hold the lock only while changing files, because machines of a stack boot at the same time.
  exec 9<"$DIRECTORY"
  flock -w 60 9 || fatal "timed out after 60 s waiting for another machine.sh in $DIRECTORY"
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
    flock -w 60 9 || fatal "timed out after 60 s waiting for another machine.sh in $DIRECTORY"
    # Rename first, so that a partly deleted machine never looks like a machine.
    rm -rf "$DIRECTORY/.$NAME"
    [[ ! -d $state ]] || mv "$state" "$DIRECTORY/.$NAME"
    exec 9<&- # the next line can be slow; let other machines proceed meanwhile
    rm -rf "$DIRECTORY/.$NAME"
  fi
  [[ ! -d $cgroup ]] || find "$cgroup" -depth -type d -delete
}

check_computer() {
  need systemd-nspawn=systemd-container ip=iproute2 ssh-keygen=openssh-client flock=util-linux
  [[ -e /dev/fuse ]] || cannot "it has no /dev/fuse (try: modprobe fuse)."
  grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null || cannot "its kernel does not support overlayfs."
  [[ $cgroup == /*/* ]] || cannot "cgroup v2 is not mounted (boot with systemd.unified_cgroup_hierarchy=1)."
  if [[ -n ${DISKS-} ]]; then
    need losetup=mount
    [[ -e /dev/loop-control ]] || cannot "it has no loop devices (try: modprobe loop)."
  fi
  # Each machine's systemd uses about fifteen inotify instances. With the default limit of 128, the ninth machine hangs
  # while it boots.
  local instances=/proc/sys/fs/inotify/max_user_instances
  (($(<$instances) >= 8192)) || echo 8192 >$instances # until this computer restarts
}

check_image() {
  [[ -d $1 ]] || fatal "the image of machine $NAME no longer exists: $1" $'\n' \
    "Destroy the stack and bring it up again; the machine's files cannot be used without the image."
  [[ $1 == "$IMAGE" ]] || say "$NAME keeps its original image: $1"
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
    say "Restarting $NAME with its new address $address"
    stop
  fi
  echo "$wanted" >"$state/etc/host0.network"
  echo "${STARTED-}" >"$state/started"
  echo "$AUTHORIZED_KEY" >"$state/etc/authorized_keys.partial"
  mv "$state/etc/authorized_keys.partial" "$state/etc/authorized_keys.admin"
}

is_running() { [[ -e $state/running ]] && ! flock -n "$state/running" true; }

is_populated() { grep -qs 'populated 1' "$cgroup/cgroup.events"; }

# The process ID of the machine's init on this computer.
init() { head -n 1 "$cgroup/payload/init.scope/cgroup.procs" 2>/dev/null; }

start() {
  started=no
  exec 8>>"$state/running"
  if flock -n 8; then
    # The supervisor must outlive the caller without blocking it, so it gets its own session and inherits only the lock.
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
    ((SECONDS - begun < limit + 10)) || fatal "cannot stop $NAME; its remaining processes are in $cgroup"
    sleep 0.05
  done
}

supervise() {
  cd /
  mkdir -p "$cgroup"
  while is_populated; do sleep 0.05; done # processes of a killed supervisor may still be ending
  echo 0 >"$cgroup/cgroup.procs"
  exec nsenter --net="/run/netns/$BRIDGE" \
    unshare --mount --pid --fork --kill-child --mount-proc bash "$here/machine.sh" boot
}

# This runs as process 1 of a new PID namespace.
boot() {
  local root=/run/machine status binds=(--bind=/dev/fuse)
  # If cgroup v1 is mounted as well, all machines would share the same groups for their services.
  [[ $(stat -f -c %T /sys/fs/cgroup) == cgroup2fs ]] || mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mount -t tmpfs tmpfs /run
  mkdir "$root"
  mount -t overlay overlay -o "lowerdir=$(<"$state/image"),upperdir=$state/upper,workdir=$state/work" "$root"
  [[ ! -e /dev/autofs ]] || binds+=(--bind=/dev/autofs)
  attach

  export TERM=dumb SYSTEMD_NSPAWN_TMPFS_TMP=0
  while true; do
    status=0
    # There is no user namespace, because the kernel does not allow automounts in one. The machine's root has no access
    # to devices and kernel modules, but a skilled attacker could still escape (docs/security.md, Decisions).
    systemd-nspawn --quiet --boot --directory="$root" --machine="$NAME" --settings=no \
      --register=no --keep-unit --drop-capability=CAP_MKNOD --network-bridge="$BRIDGE" "${binds[@]}" \
      --bind-ro="$state/etc:/etc/machine" --resolv-conf=off --timezone=off --link-journal=no \
      --console=read-only || status=$?
    # 133 means that the machine rebooted.
    ((status == 133)) || exit "$status"
  done
}

# A loop device is released when nothing uses it any more: neither this process nor a mount.
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
    # shellcheck disable=SC2034 # stays open until this process ends
    exec {disk}<>"$device"
    losetup --detach "$device"
    binds+=("--bind=$device:/dev/disk/by-id/$id")
  done <<<"${DISKS-}"
}

# wait_until CONDITION: wait until the machine runs and `CONDITION PID` succeeds for its init.
wait_until() {
  local limit=${SECONDS_TO_BOOT:-60} pid
  SECONDS=0
  until pid=$(init) && [[ -n $pid ]] && "$1" "$pid"; do
    if ! is_running; then
      [[ $started == no ]] || boot_failed "it stopped"
      start # the machine that we found running has stopped
    fi
    ((SECONDS < limit)) || boot_failed "after $limit s $(unready "$pid")"
    sleep 0.1
  done
}

answers() { [[ $(timeout 2 bash -c "exec 3<>/dev/tcp/$1/22 && head -c 4 <&3" 2>/dev/null) == SSH- ]]; }

# sshd starts late, so ask it first: systemctl can hang on a bus that is just starting.
has_booted() { answers "$address" && systemd_has_booted "$1"; }

systemd_has_booted() {
  local state
  state=$(in_machine "$1" is-system-running 2>/dev/null)
  [[ $state == @(running|degraded) ]]
}

# in_machine PID ARGUMENTS: systemctl in the machine with this init.
in_machine() {
  # Do not use --pid: a machine that reboots stops all processes in its PID namespace and waits for them. Without it, the
  # systemd of Debian 13 refuses clients that do not use the bus.
  SYSTEMCTL_FORCE_BUS=1 timeout -k 1 5 nsenter --target "$1" --mount systemctl "${@:2}"
}

# unready PID: why the machine is not ready.
unready() {
  if answers "$address"; then
    echo "it is still booting; systemd's jobs: $(in_machine "$1" list-jobs --no-legend 2>&1 | tr -s ' \n' ' ')"
  else
    echo "it does not answer on port 22 of $address"
  fi
}

boot_failed() {
  fatal "machine $NAME did not boot: $1. The last lines of its console ($state/console.log):" $'\n' \
    "$(tail -n 15 "$state/console.log" | tr -d '\r')"
}

main "$@"
