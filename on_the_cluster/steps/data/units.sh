# systemd units that mount the shared directory.
# shellcheck shell=bash

# Keeps the files accessible at DISK while the mount covers DATA_PATH. This is not a mount unit, because systemd would
# then order it after the mount of DATA_PATH. The bind mount is private, or a mount on DATA_PATH would propagate to
# DISK.
disk_unit() {
  local start="ExecStart=mount --bind --make-private $DATA_PATH $DISK"
  [ -z "$DEVICE" ] || start="ExecStartPre=timeout 60 sh -c 'until [ -b $DEVICE ]; do sleep 1; done'
ExecStart=mount -o nosuid,nodev $DEVICE $DISK"
  cat <<UNIT
[Unit]
Description=Files of the Dask cluster's shared directory
RequiresMountsFor=$(dirname "$DATA_PATH")

[Service]
Type=oneshot
RemainAfterExit=yes
$start
ExecStop=umount --lazy $DISK

[Install]
WantedBy=multi-user.target
UNIT
}

# The mount's options set the group of all files, because IDs differ between machines; MOUNT_PROGRAM lets its members use
# every file. Neither sshfs nor the kernel caches attributes, so that machines see each other's changes at once.
# MOUNT_PROGRAM remembers some for a second.
mount_unit() {
  cat <<UNIT
[Unit]
Description=Shared directory of the Dask cluster
After=network-online.target
Wants=network-online.target $WATCH_UNIT
# The machine that stores the files can be down for a long time; each access retries the mount.
StartLimitIntervalSec=0

[Mount]
What=$MOUNT_PROGRAM#$CLUSTER_USER@$DATA_ADDRESS:$DISK
Where=$DATA_PATH
Type=fuse3
Options=_netdev,ssh_command=$ETC/ssh/ssh,reconnect,uid=$(id -u $CLUSTER_USER),gid=$(id -g $CLUSTER_USER),dir_cache=no,attr_timeout=0,entry_timeout=0$OPTIONS
TimeoutSec=20
LazyUnmount=yes
UNIT
}

# If sshfs dies, every access to the mount fails with "Transport endpoint is not connected", but systemd still considers
# it mounted.
watch_unit() {
  cat <<UNIT
[Unit]
Description=Unmounts the shared directory if its sshfs has died, so that the next access mounts it again
BindsTo=$1.mount
After=$1.mount

[Service]
# Stop the unit rather than unmount the path: if the mount is already gone, the path belongs to the automount.
ExecStart=/bin/sh -c 'for p in \$\$(cat /sys/fs/cgroup\$\$(systemctl show -P ControlGroup $1.mount)/cgroup.procs); do \
case \$\$(readlink /proc/\$\$p/exe) in */sshfs) tail --pid=\$\$p -f /dev/null ;; esac; done; systemctl stop --no-block $1.mount'
UNIT
}

automount_unit() {
  local below=''
  # The order matters: if DISK were bound after the mount, it would show the mount itself, which would wait for itself.
  # By default an automount starts before every service. That would be an ordering cycle, and systemd resolves a cycle at
  # boot by dropping one of its jobs.
  [ "$HOLDS" != yes ] || below="Requires=$DISK_UNIT
After=$DISK_UNIT
DefaultDependencies=no
Conflicts=umount.target
Before=umount.target"
  cat <<UNIT
[Unit]
Description=Shared directory of the Dask cluster, mounted on first access
$below

[Automount]
Where=$DATA_PATH

[Install]
WantedBy=multi-user.target
UNIT
}
