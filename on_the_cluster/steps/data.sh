# State: the shared directory is mounted at the same path on every machine, including the one that stores its files.
#   DATA_PATH     /srv/daskdata
#   HOLDS         yes on the machine that stores the files, else no
#   DATA_ADDRESS  address of that machine
#   DEVICE        block device of the files, e.g. /dev/disk/by-id/google-dask-data; empty: the machine's own disk
#   DEVICE_SIZE   size of the device; a new value runs the step, which grows the file system
#   OPTIONS       additional sshfs mount options, each with a leading comma
#   DELETE        yes: undo also deletes the files
#   LOGIN_USER    the user that up logs in as; it can use the directory like root and the cluster's user. A directory
#                 (LDAP) can know it by another name, too
#   MOUNT         the Python program that mounts the directory
#   DASKDATA      the Python module for URLs of its files, such as daskdata://x.csv
# The files are at DATA_PATH underneath the mount, or on DEVICE. Their machine mounts from itself, so that all files
# belong to the cluster's user on disk, wherever they were written.
# shellcheck shell=bash

UNITS=/etc/systemd/system
DISK=$VAR/data
DISK_UNIT=dask-data.service
WATCH_UNIT=dask-data-watch.service
MOUNT_PROGRAM=$OPT/mount_data.py
MODULES=$OPT/modules    # PYTHONPATH of Dask's services
PROBE=.daskstack-probe- # begins the names of files with which steps test the directory

add_login_user_to_group() {
  if [ "$LOGIN_USER" != root ]; then usermod --append --groups $CLUSTER_USER "$(id -un -- "$LOGIN_USER")"; fi
}

# At boot and once a day, systemd-tmpfiles cleans /tmp, except for paths that are excluded in its configuration.
keep_from_cleaning() {
  in_tmp || return 0
  { sed 's/^D /q /' /usr/lib/tmpfiles.d/tmp.conf 2>/dev/null && echo "x $DATA_PATH"; } | put $TMPFILES 0644 root:root
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
  need blkid
  need mkfs.ext4
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
  need sshfs
  need mount.fuse3
  need python3
  local data
  install -d -m 0755 $OPT
  printf '%s' "$MOUNT" | put $MOUNT_PROGRAM 0755 root:root
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

# fsspec finds the module through the metadata of its package. It is not in the environment, which has exactly the
# packages of the lock.
module() {
  install -d -m 0755 $OPT $MODULES $MODULES/daskdata-1.dist-info
  printf '%s' "$DASKDATA" | put $MODULES/daskdata.py 0644 root:root
  printf 'Metadata-Version: 2.1\nName: daskdata\nVersion: 1\n' | put $MODULES/daskdata-1.dist-info/METADATA 0644 root:root
  printf '[fsspec.specs]\ndaskdata = daskdata:DaskData\n' |
    put $MODULES/daskdata-1.dist-info/entry_points.txt 0644 root:root
}

drop_disk() {
  [ ! -e $UNITS/$DISK_UNIT ] || systemctl -q disable --now $DISK_UNIT
  drop $UNITS/$DISK_UNIT
  [ ! -d $DISK ] || rmdir $DISK
}

# A file written here must arrive on the machine that stores the files; otherwise the path is not the mount.
verify() {
  local probe
  probe=$PROBE$(hostname)
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
  module
  verify
}

undo() {
  if [ $undo_on_failure = yes ]; then
    DELETE=no # only destroy deletes files
  else
    end_processes
  fi
  remove_mount
  rm -rf $MODULES
  if [ "$LOGIN_USER" != root ]; then gpasswd -d "$(id -un -- "$LOGIN_USER")" $CLUSTER_USER >/dev/null 2>&1 || true; fi
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
  drop "$UNITS/$data.automount" "$UNITS/$data.mount" $UNITS/$WATCH_UNIT $MOUNT_PROGRAM
  systemctl daemon-reload
  systemctl reset-failed "$data.mount" 2>/dev/null || true
  if in_tmp; then drop $TMPFILES; fi
  restore_owner
  forget data
  drop $PATH_FILE # last: without it, the next undo looks for nothing
}

# A killed `verify` leaves its file.
drop_probes() { find "$1" -xdev -maxdepth 1 -name "$PROBE*" -type f -empty -delete; }

empty_device() {
  drop_probes $DISK
  [ "$DELETE" = no ] || find $DISK -xdev -mindepth 1 -delete
  [ -z "$(ls -A $DISK)" ] || note "kept $DEVICE on $(hostname), because it contains files"
}

# The files belong to the user, so they stay. Give them to the directory's original owner, or to the login user if we
# created the directory. Tasks may still be running and moving files, so never look up a name below the directory twice.
restore_owner() {
  local mode owner
  [ -e $BEFORE/data ] || return 0
  read -r mode owner <$BEFORE/data
  if [ "$HOLDS" = yes ]; then
    if [ "$DELETE" = yes ]; then find "$DATA_PATH" -xdev -mindepth 1 -delete; else drop_probes "$DATA_PATH"; fi
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
