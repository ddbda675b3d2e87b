# Mounts local SSDs at SPILL, where workers spill. A power-off erases them, and nothing on them outlives a worker, so
# each boot creates a new file system.
# shellcheck shell=bash

SSD_UNIT=dask-spill.service
SSD_PROGRAM=$OPT/mount_ssds
STRIPE=dask-spill         # the device that joins several SSDs
FORMATTED=/run/dask-spill # exists if this boot created the file system

# The program that the unit runs as root.
ssd_program() {
  echo '#!/bin/bash'
  echo 'set -euo pipefail'
  declare -p SSDS SPILL CLUSTER_USER STRIPE FORMATTED
  declare -f mount_ssds unmount_ssds
  echo "\"\$1\""
}

mount_ssds() {
  local ssds ssd device sectors table=''
  read -ra ssds <<<"$SSDS"
  for ssd in "${ssds[@]}"; do timeout 60 sh -c "until [ -b $ssd ]; do sleep 1; done"; done
  device=$SSDS
  if [ ${#ssds[@]} -gt 1 ]; then
    device=/dev/mapper/$STRIPE
    for ssd in "${ssds[@]}"; do table+=" $ssd 0"; done
    sectors=$(($(blockdev --getsz "${ssds[0]}") / 1024 * 1024 * ${#ssds[@]}))
    dmsetup info $STRIPE >/dev/null 2>&1 || dmsetup create $STRIPE --table "0 $sectors striped ${#ssds[@]} 1024$table"
  fi
  if [ ! -e $FORMATTED ]; then
    mkfs.ext4 -q -F -m 0 -O ^has_journal -L daskspill "$device"
    touch $FORMATTED
  fi
  mount -o nosuid,nodev,noatime "$device" "$SPILL"
  # Only root can write to SPILL, so this is no link.
  install -d -m 0700 -o $CLUSTER_USER -g $CLUSTER_USER "$SPILL/daskstack"
}

# While other processes use the mount, the device stays, and the next start mounts it again.
unmount_ssds() {
  umount --lazy "$SPILL"
  [[ $SSDS != *\ * ]] || dmsetup remove $STRIPE || true
}

ssd_unit() {
  cat <<UNIT
[Unit]
Description=Local SSDs to which Dask workers spill
RequiresMountsFor=$(dirname "$SPILL")

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=$SSD_PROGRAM mount_ssds
ExecStop=$SSD_PROGRAM unmount_ssds
UNIT
}

use_ssds() {
  need mkfs.ext4
  [[ $SSDS != *\ * ]] || need dmsetup
  findmnt -n "$SPILL" >/dev/null || [ -z "$(ls -A "$SPILL")" ] ||
    fatal "the local SSDs would hide files in $SPILL on this machine; move them away, or use another workers.spill"
  install -d -m 0755 $OPT
  ssd_program | cmp -s - $SSD_PROGRAM || stop_ssds # the program that mounted them unmounts them
  ssd_program | put $SSD_PROGRAM 0755 root:root
  ssd_unit | put $UNITS/$SSD_UNIT 0644 root:root
  systemctl daemon-reload
  systemctl start $SSD_UNIT ||
    fatal "cannot mount the local SSDs at $SPILL: $(journalctl -u $SSD_UNIT -n 8 --no-pager -o cat)"
}

stop_ssds() { [ ! -e $UNITS/$SSD_UNIT ] || systemctl stop $SSD_UNIT; }

drop_ssds() {
  stop_ssds
  drop $UNITS/$SSD_UNIT $SSD_PROGRAM $FORMATTED
}
