# State: the shared directory is mounted at the same path on every machine, on the one that holds its files too.
#   DATA_PATH     /srv/daskdata
#   HOLDS         yes on the machine that holds the files, else no
#   DATA_ADDRESS  address of that machine
#   DEVICE        block device of that machine that holds them:  /dev/disk/by-id/google-dask-data; empty: its own disk
#   DEVICE_SIZE   of that; a change of it runs the step, which lets the file system grow
#   OPTIONS       further sshfs mount options, each with a comma in front
#   DELETE        yes: undo deletes the files, too
#   LOGIN_USER    the user that up logs in as, who may use the directory like root and the cluster's user
# On the machine that holds them the files lie at DATA_PATH, underneath the mount, or on DEVICE. It mounts from itself
# so that whose a file is does not depend on where it was written: on disk all are the cluster user's.
# shellcheck shell=bash

UNITS=/etc/systemd/system
TMPFILES=/etc/tmpfiles.d/tmp.conf
DISK=$VAR/data
DISK_UNIT=dask-data.service
WATCH_UNIT=dask-data-watch.service
PATH_FILE=$ETC/data # where the shared directory is now, and on which device

members() {
  if [ "$LOGIN_USER" != root ]; then usermod --append --groups $CLUSTER_USER "$LOGIN_USER"; fi
}

in_tmp() { case $DATA_PATH in /tmp/* | /var/tmp/*) ;; *) return 1 ;; esac }

# At boot, and once a day, /tmp is emptied of what systemd-tmpfiles is not told to leave alone.
keep_from_cleaning() {
  in_tmp || return 0
  { sed 's/^D /q /' /usr/lib/tmpfiles.d/tmp.conf 2>/dev/null && echo "x $DATA_PATH"; } | put $TMPFILES 0644 root:root
}

refuse_tmpfs() {
  local parent=$DATA_PATH
  while [ ! -e "$parent" ]; do parent=$(dirname "$parent"); done
  case $(stat -f -c %T "$parent") in
    tmpfs | ramfs)
      fatal "$DATA_PATH is in memory here ($parent is a tmpfs): a restart would lose the data; use a data.path on disk"
      ;;
  esac
}

is_mounted() { findmnt -n "$1" >/dev/null; }

# The path of the last run: what is there now is this step's own.
is_ours() { [ "$(cut -d ' ' -f 1 $PATH_FILE 2>/dev/null)" = "$DATA_PATH" ]; }

# Refuses a path that something else on this machine uses, before anything is changed.
refuse_what_is_used() {
  local real unit mount owner user
  is_ours && return
  real=$(realpath -m "$DATA_PATH")
  [ "$real" = "$DATA_PATH" ] ||
    fatal "data.path $DATA_PATH leads through a symbolic link to $real on this machine; use a data.path without links"
  { findmnt -rn -o TARGET && { findmnt -rn --fstab -o TARGET || true; }; } | while read -r mount; do
    case $mount/ in
      "$DATA_PATH/") fatal "data.path $DATA_PATH is a mount of this machine's own; use a folder below it, such as $DATA_PATH/dask" ;;
      "$DATA_PATH"/*) fatal "$mount is mounted below data.path $DATA_PATH, which would hide it; use a folder without mounts in it, such as $DATA_PATH/dask" ;;
    esac
  done
  for unit in "$(systemd-escape --path --suffix=mount "$DATA_PATH")" "$(systemd-escape --path --suffix=automount "$DATA_PATH")"; do
    [ "$(systemctl show -P LoadState "$unit")" = not-found ] ||
      fatal "this machine has a unit $unit of its own, so data.path $DATA_PATH is in use; use a folder below it, such as $DATA_PATH/dask"
  done
  if in_tmp && [ -e $TMPFILES ]; then
    fatal "$TMPFILES exists already: a rule of yours about /tmp that ours would replace; use a data.path outside /tmp"
  fi
  [ -d "$DATA_PATH" ] || return 0
  owner=$(find "$DATA_PATH" -xdev ! -uid 0 -uid "-$(least_login_uid)" -printf '%p of user %u' -quit)
  [ -z "$owner" ] ||
    fatal "data.path $DATA_PATH is used by a service of this machine: it has $owner; use a folder of your own, e.g. /srv/daskdata"
  user=$(open_files)
  [ -z "$user" ] ||
    fatal "data.path $DATA_PATH is used by a service of this machine: ${user%%$'\n'*} has files open in it; use a folder of your own, e.g. /srv/daskdata"
}

least_login_uid() { awk '$1 == "UID_MIN" { min = $2 } END { print min ? min : 1000 }' /etc/login.defs; }

# Processes of the system that have files open below DATA_PATH.
open_files() {
  local min pid
  min=$(least_login_uid)
  # Any process may end meanwhile.
  { find /proc/[0-9]*/fd -lname "$DATA_PATH/*" 2>/dev/null || true; } | cut -d / -f 3 | sort -u | while read -r pid; do
    [ "$(stat -c %u "/proc/$pid" 2>/dev/null || echo "$min")" -ge "$min" ] ||
      echo "$(cat "/proc/$pid/comm" 2>/dev/null) (process $pid)"
  done
}

directory() {
  ! is_mounted "$DATA_PATH" || return 0
  if [ ! -d "$DATA_PATH" ]; then
    remember data <<<"made $(first_missing "$DATA_PATH")"
    mkdir -p "$DATA_PATH"
  else
    remember data <<<"$(stat -c '%a %U:%G' "$DATA_PATH")"
  fi
}

refuse_to_hide_files() {
  if [ "$HOLDS$DEVICE" = yes ] || is_mounted "$DATA_PATH" || [ ! -d "$DATA_PATH" ]; then return; fi
  [ -z "$(ls -A "$DATA_PATH")" ] ||
    fatal "$DATA_PATH has files on this machine, which the shared directory would hide; move them away"
}

# A setting that changed: what was made for the old path or device goes, its files stay.
leave_former_path() {
  local place=$DATA_PATH${DEVICE:+ $DEVICE} former
  former=$(cat $PATH_FILE 2>/dev/null || true)
  if [ -n "$former" ] && [ "$former" != "$place" ]; then
    (DELETE=no && leave)
    refuse_to_hide_files # what lay underneath the mount
  fi
  printf '%s\n' "$place" | put $PATH_FILE 0644 root:root
}

# A blank device gets a file system. What has one already is mounted as it is, and nothing is ever formatted.
file_system() {
  need blkid util-linux
  need mkfs.ext4 e2fsprogs
  wait_for 60 "there is no block device $DEVICE; attach the disk" test -b "$DEVICE"
  [ "$(blkid -p -s USAGE -o value "$DEVICE")" != filesystem ] || return 0
  if blkid -p "$DEVICE" >&2 || ! cmp -s -n 1048576 "$DEVICE" /dev/zero; then
    fatal "$DEVICE is neither blank nor a file system: keep what is on it elsewhere and run wipefs --all $DEVICE" \
      "and blkdiscard -z $DEVICE here, or name another device; then run up again"
  fi
  note "making a file system on $DEVICE"
  mkfs.ext4 -q -m 0 -L daskdata "$DEVICE"
}

# The disk may have grown, or have been another machine's, where the cluster's user had another number.
adapt_file_system() {
  local said
  case $(findmnt -n -o FSTYPE $DISK) in
    ext*) said=$(resize2fs "$DEVICE" 2>&1) || fatal "the file system on $DEVICE cannot be made as large as it: $said" ;;
  esac
  rmdir $DISK/lost+found 2>/dev/null || true
  [ "$(stat -c %U $DISK)" = $CLUSTER_USER ] || chown -hR $CLUSTER_USER:$CLUSTER_USER $DISK
  chmod 0700 $DISK
}

mount_all() {
  need sshfs sshfs fuse-sshfs
  need fusermount3 fuse3
  local data below=''
  data=$(systemd-escape --path "$DATA_PATH")
  if [ "$HOLDS" = yes ]; then
    # The order matters: bound after the mount, DISK would be the mount, which then waits for itself. By default an
    # automount begins before every service, which would be a circle: systemd leaves out any job of it at boot.
    below="Requires=$DISK_UNIT
After=$DISK_UNIT
DefaultDependencies=no
Conflicts=umount.target
Before=umount.target"
    disk_unit | put $UNITS/$DISK_UNIT 0644 root:root
  fi
  mount_unit | put "$UNITS/$data.mount" 0644 root:root
  watch_unit "$data" | put $UNITS/$WATCH_UNIT 0644 root:root
  automount_unit "$below" | put "$UNITS/$data.automount" 0644 root:root
  if [ $changed = yes ]; then
    systemctl daemon-reload
    systemctl stop "$data.automount" "$data.mount"
  fi
  if [ "$HOLDS" = yes ]; then
    [ -n "$DEVICE" ] || is_mounted "$DATA_PATH" || install -d -m 0700 -o $CLUSTER_USER -g $CLUSTER_USER "$DATA_PATH"
    mkdir -p $DISK
    systemctl -q enable $DISK_UNIT
    systemctl start $DISK_UNIT
    [ -z "$DEVICE" ] || adapt_file_system
  else
    drop_disk # held the files until the data moved to another machine
  fi
  systemctl -q enable "$data.automount"
  systemctl start "$data.automount"
  timeout 30 ls "$DATA_PATH" >/dev/null 2>&1 || true
  [ "$(findmnt -n -o FSTYPE -t fuse.sshfs "$DATA_PATH")" = fuse.sshfs ] ||
    fatal "$DATA_PATH is not mounted: $(journalctl -u "$data.mount" -n 8 --no-pager -o cat)"
}

drop_disk() {
  [ ! -e $UNITS/$DISK_UNIT ] || systemctl -q disable --now $DISK_UNIT
  drop $UNITS/$DISK_UNIT
  [ ! -d $DISK ] || rmdir $DISK
}

# Also the proof that nothing goes beside the mount: what is written must arrive where the files are.
verify() {
  local probe
  probe=.daskstack-$(hostname)-$$
  as_cluster_user touch "$DATA_PATH/$probe" || fatal "the cluster's user cannot write to $DATA_PATH"
  as_cluster_user $ETC/ssh/ssh "$DATA_ADDRESS" rm "$DISK/$probe" ||
    fatal "what is written to $DATA_PATH here does not arrive on $DATA_ADDRESS"
}

main() {
  if [ "${1:-}" = undo ]; then
    undo
    return
  fi
  refuse_what_is_used
  if [ -n "$DEVICE" ]; then file_system; elif [ "$HOLDS" = yes ]; then refuse_tmpfs; fi
  refuse_to_hide_files
  leave_former_path
  members
  keep_from_cleaning
  directory
  mount_all
  verify
}

undo() {
  if [ $undo_on_failure = yes ]; then
    DELETE=no # which is for a destroy
  else
    end_processes
  fi
  leave
  if [ "$LOGIN_USER" != root ]; then gpasswd -d "$LOGIN_USER" $CLUSTER_USER >/dev/null 2>&1 || true; fi
  tidy
}

# Takes away what was made for the path and the device of the last run, whatever the settings say now.
leave() {
  local data
  if [ ! -e $PATH_FILE ]; then
    drop $PATH_FILE
    return
  fi
  read -r DATA_PATH DEVICE <$PATH_FILE
  data=$(systemd-escape --path "$DATA_PATH")
  if [ -e "$UNITS/$data.automount" ]; then
    systemctl -q disable --now "$data.automount"
    systemctl stop "$data.mount" || umount -l "$DATA_PATH"
  fi
  if [ -n "$DEVICE" ] && is_mounted $DISK; then empty_device; fi
  drop_disk
  drop "$UNITS/$data.automount" "$UNITS/$data.mount" $UNITS/$WATCH_UNIT
  systemctl daemon-reload
  systemctl reset-failed "$data.mount" 2>/dev/null || true
  if in_tmp; then drop $TMPFILES; fi
  give_back
  drop $PATH_FILE
  forget data
}

empty_device() {
  [ "$DELETE" = no ] || find $DISK -xdev -mindepth 1 -delete
  [ -z "$(ls -A $DISK)" ] || note "$DEVICE on $(hostname) is kept: it has files on it"
}

# The files are the user's: they stay, and are those of the directory's owner, or of the login user where we made it.
# Tasks may still run and move things about meanwhile, so no name below the directory is looked up twice.
give_back() {
  local mode owner
  [ -e $BEFORE/data ] || return 0
  read -r mode owner <$BEFORE/data
  if [ "$HOLDS" = yes ] && [ "$DELETE" = yes ]; then
    find "$DATA_PATH" -xdev -mindepth 1 -delete
  fi
  if [ "$mode" = made ]; then
    remove_made "$owner" "$DATA_PATH"
    [ -d "$DATA_PATH" ] || return 0
    owner=$LOGIN_USER: mode=0700
  fi
  chown -h "$owner" "$DATA_PATH" || true
  if [ -L "$DATA_PATH" ] || [ ! -d "$DATA_PATH" ]; then
    note "$DATA_PATH on $(hostname) is not the folder any more that it was; it is left alone"
    return
  fi
  chmod "$mode" "$DATA_PATH"
  chown -hRf --from=$CLUSTER_USER "$owner" "$DATA_PATH" ||
    note "not every file in $DATA_PATH on $(hostname) could be given to ${owner%%:*}: something changed them meanwhile"
  [ -z "$(ls -A "$DATA_PATH")" ] || note "$DATA_PATH on $(hostname) is kept: it has files in it"
}

alone main "$@" </dev/null
