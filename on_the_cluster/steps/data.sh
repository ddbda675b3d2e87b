# State: the shared directory is mounted at the same path on every machine, including the one that stores its files.
#   DATA_PATH     /srv/daskdata
#   HOLDS         yes on the machine that stores the files, else no
#   DATA_ADDRESS  address of that machine
#   DEVICE        block device of the files, e.g. /dev/disk/by-id/google-dask-data; empty: the machine's own disk
#   DEVICE_SIZE   size of the device; a new value runs the step, which grows the file system
#   OPTIONS       additional sshfs mount options, each with a leading comma
#   DELETE        yes: undo also deletes the files
#   LOGIN_USER    the user that up logs in as; it can use the directory like root and the cluster's user
# The files are at DATA_PATH underneath the mount, or on DEVICE. Their machine mounts from itself, so that all files
# belong to the cluster's user on disk, wherever they were written.
# shellcheck shell=bash

UNITS=/etc/systemd/system
TMPFILES=/etc/tmpfiles.d/tmp.conf
DISK=$VAR/data
DISK_UNIT=dask-data.service
WATCH_UNIT=dask-data-watch.service
PATH_FILE=$ETC/data # the current path and device of the shared directory

add_login_user_to_group() {
  if [ "$LOGIN_USER" != root ]; then usermod --append --groups $CLUSTER_USER "$LOGIN_USER"; fi
}

in_tmp() { case $DATA_PATH in /tmp/* | /var/tmp/*) ;; *) return 1 ;; esac }

# At boot and once a day, systemd-tmpfiles cleans /tmp, except for paths that are excluded in its configuration.
keep_from_cleaning() {
  in_tmp || return 0
  { sed 's/^D /q /' /usr/lib/tmpfiles.d/tmp.conf 2>/dev/null && echo "x $DATA_PATH"; } | put $TMPFILES 0644 root:root
}

refuse_tmpfs() {
  local parent=$DATA_PATH
  while [ ! -e "$parent" ]; do parent=$(dirname "$parent"); done
  case $(stat -f -c %T "$parent") in
    tmpfs | ramfs)
      fatal "$DATA_PATH is in memory ($parent is a tmpfs), so a restart would lose the data; use a data.path on a disk"
      ;;
  esac
}

is_mounted() { findmnt -n "$1" >/dev/null; }

# Whether the last run used the same path, so that its contents and mounts belong to this step.
is_ours() { [ "$(cut -d ' ' -f 1 $PATH_FILE 2>/dev/null)" = "$DATA_PATH" ]; }

# Fail before changing anything if something else on this machine uses the path.
refuse_used_path() {
  local real unit mount owner user
  is_ours && return
  real=$(realpath -m "$DATA_PATH")
  [ "$real" = "$DATA_PATH" ] ||
    fatal "data.path $DATA_PATH contains a symbolic link and resolves to $real on this machine; use a path without links"
  { findmnt -rn -o TARGET && { findmnt -rn --fstab -o TARGET || true; }; } | while read -r mount; do
    case $mount/ in
      "$DATA_PATH/") fatal "data.path $DATA_PATH is already a mount point on this machine; use a folder below it, such as $DATA_PATH/dask" ;;
      "$DATA_PATH"/*) fatal "data.path $DATA_PATH would hide the mount $mount on this machine; use a folder without mounts, such as $DATA_PATH/dask" ;;
    esac
  done
  for unit in "$(systemd-escape --path --suffix=mount "$DATA_PATH")" "$(systemd-escape --path --suffix=automount "$DATA_PATH")"; do
    [ "$(systemctl show -P LoadState "$unit")" = not-found ] ||
      fatal "data.path $DATA_PATH is used by this machine's unit $unit; use a folder below it, such as $DATA_PATH/dask"
  done
  if in_tmp && [ -e $TMPFILES ]; then
    fatal "$TMPFILES already exists, and our rule for /tmp would replace it; use a data.path outside /tmp"
  fi
  [ -d "$DATA_PATH" ] || return 0
  owner=$(find "$DATA_PATH" -xdev ! -uid 0 -uid "-$(least_login_uid)" -printf '%p of user %u' -quit)
  [ -z "$owner" ] ||
    fatal "data.path $DATA_PATH is used by a service of this machine: it contains $owner; use another folder, e.g. /srv/daskdata"
  user=$(system_processes_in_path)
  [ -z "$user" ] ||
    fatal "data.path $DATA_PATH is used by a service of this machine: ${user%%$'\n'*} has files open in it; use another folder, e.g. /srv/daskdata"
}

least_login_uid() { awk '$1 == "UID_MIN" { min = $2 } END { print min ? min : 1000 }' /etc/login.defs; }

# System processes that have files open below DATA_PATH.
system_processes_in_path() {
  local min pid
  min=$(least_login_uid)
  # Processes can end during the search.
  { find /proc/[0-9]*/fd -lname "$DATA_PATH/*" 2>/dev/null || true; } | cut -d / -f 3 | sort -u | while read -r pid; do
    [ "$(stat -c %u "/proc/$pid" 2>/dev/null || echo "$min")" -ge "$min" ] ||
      echo "$(cat "/proc/$pid/comm" 2>/dev/null) (process $pid)"
  done
}

directory() {
  ! is_mounted "$DATA_PATH" || return 0
  if [ ! -d "$DATA_PATH" ]; then
    [ ! -e "$DATA_PATH" ] || fatal "$DATA_PATH is not a directory; move it away, or write another data.path"
    remember data <<<"made $(first_missing "$DATA_PATH")"
    mkdir -p "$DATA_PATH"
  else
    remember data <<<"$(stat -c '%a %U:%G' "$DATA_PATH")"
  fi
}

refuse_to_hide_files() {
  if [ "$HOLDS$DEVICE" = yes ] || is_mounted "$DATA_PATH" || [ ! -d "$DATA_PATH" ]; then return; fi
  [ -z "$(ls -A "$DATA_PATH")" ] ||
    fatal "the shared directory would hide files in $DATA_PATH on this machine; move them away"
}

# If the path or the device has changed, remove the old mount but not its files.
remove_former_mount() {
  local place=$DATA_PATH${DEVICE:+ $DEVICE} former
  former=$(cat $PATH_FILE 2>/dev/null || true)
  if [ -n "$former" ] && [ "$former" != "$place" ]; then
    (DELETE=no && remove_mount)
    refuse_to_hide_files # files underneath the old mount are visible now
  fi
  printf '%s\n' "$place" | put $PATH_FILE 0644 root:root
}

# Create a file system on a blank device. Never format a device that contains anything.
file_system() {
  need blkid util-linux
  need mkfs.ext4 e2fsprogs
  wait_for 60 "block device $DEVICE to appear; attach the disk" test -b "$DEVICE"
  [ "$(blkid -p -s USAGE -o value "$DEVICE")" != filesystem ] || return 0
  if blkid -p "$DEVICE" >&2 || ! cmp -s -n 1048576 "$DEVICE" /dev/zero; then
    fatal "$DEVICE has no file system but is not blank; save its contents elsewhere and run wipefs --all $DEVICE" \
      "and blkdiscard -z $DEVICE here, or use another device; then run up again"
  fi
  note "creating a file system on $DEVICE"
  mkfs.ext4 -q -m 0 -L daskdata "$DEVICE"
}

# The disk may have grown, or come from another machine on which the cluster's user had a different ID.
adapt_file_system() {
  local output
  case $(findmnt -n -o FSTYPE $DISK) in
    ext*) output=$(resize2fs "$DEVICE" 2>&1) || fatal "cannot grow the file system on $DEVICE to the device's size: $output" ;;
  esac
  rmdir $DISK/lost+found 2>/dev/null || true
  [ "$(stat -c %U $DISK)" = $CLUSTER_USER ] || chown -hR $CLUSTER_USER:$CLUSTER_USER $DISK
  chmod 0700 $DISK
}

mount_all() {
  need sshfs sshfs fuse-sshfs
  need fusermount3 fuse3
  local data
  data=$(systemd-escape --path "$DATA_PATH")
  [ "$HOLDS" != yes ] || disk_unit | put $UNITS/$DISK_UNIT 0644 root:root
  mount_unit | put "$UNITS/$data.mount" 0644 root:root
  watch_unit "$data" | put $UNITS/$WATCH_UNIT 0644 root:root
  automount_unit | put "$UNITS/$data.automount" 0644 root:root
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
    drop_disk # in case the data moved to another machine
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

# A file written here must arrive on the machine that stores the files; otherwise the path is not the mount.
verify() {
  local probe
  probe=.daskstack-$(hostname)-$$
  as_cluster_user touch "$DATA_PATH/$probe" || fatal "user $CLUSTER_USER cannot write to $DATA_PATH"
  as_cluster_user $ETC/ssh/ssh "$DATA_ADDRESS" rm "$DISK/$probe" ||
    fatal "a file written to $DATA_PATH on this machine did not arrive on $DATA_ADDRESS"
}

main() {
  if [ "${1:-}" = undo ]; then
    undo
    return
  fi
  refuse_used_path
  if [ -n "$DEVICE" ]; then file_system; elif [ "$HOLDS" = yes ]; then refuse_tmpfs; fi
  refuse_to_hide_files
  remove_former_mount
  add_login_user_to_group
  keep_from_cleaning
  directory
  mount_all
  verify
}

undo() {
  if [ $undo_on_failure = yes ]; then
    DELETE=no # only destroy deletes files
  else
    end_processes
  fi
  remove_mount
  if [ "$LOGIN_USER" != root ]; then gpasswd -d "$LOGIN_USER" $CLUSTER_USER >/dev/null 2>&1 || true; fi
  tidy
}

# Remove the mount of the last run, whatever the settings say now.
remove_mount() {
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
  restore_owner
  drop $PATH_FILE
  forget data
}

empty_device() {
  [ "$DELETE" = no ] || find $DISK -xdev -mindepth 1 -delete
  [ -z "$(ls -A $DISK)" ] || note "kept $DEVICE on $(hostname), because it contains files"
}

# The files belong to the user, so they stay. Give them to the directory's original owner, or to the login user if we
# created the directory. Tasks may still be running and moving files, so never look up a name below the directory twice.
restore_owner() {
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
    note "left $DATA_PATH on $(hostname) unchanged, because it was replaced by something else"
    return
  fi
  chmod "$mode" "$DATA_PATH"
  chown -hRf --from=$CLUSTER_USER "$owner" "$DATA_PATH" ||
    note "could not give every file in $DATA_PATH on $(hostname) to ${owner%%:*}, because some changed meanwhile"
  [ -z "$(ls -A "$DATA_PATH")" ] || note "kept $DATA_PATH on $(hostname), because it contains files"
}

exclusively main "$@" </dev/null
