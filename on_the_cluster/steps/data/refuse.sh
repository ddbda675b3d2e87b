# Reasons why the shared directory cannot be at DATA_PATH on this machine. They change nothing.
# shellcheck shell=bash

TMPFILES=/etc/tmpfiles.d/tmp.conf
PATH_FILE=$ETC/data # the current path and device of the shared directory

in_tmp() { case $DATA_PATH in /tmp/* | /var/tmp/*) ;; *) return 1 ;; esac }

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

refuse_to_hide_files() {
  if [ "$HOLDS$DEVICE" = yes ] || is_mounted "$DATA_PATH" || [ ! -d "$DATA_PATH" ]; then return; fi
  [ -z "$(ls -A "$DATA_PATH")" ] ||
    fatal "the shared directory would hide files in $DATA_PATH on this machine; move them away"
}
