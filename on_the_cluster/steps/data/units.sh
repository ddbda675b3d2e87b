# The units that mount the shared directory.
# shellcheck shell=bash

# Where the files stay reachable once the mount lies over them. Not a mount unit: systemd would want DATA_PATH mounted
# before it. Private: else what is mounted over DATA_PATH would appear over DISK too.
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

# Owner and mode are the mount's, not the file's: user ids differ from machine to machine, and everyone who may use
# the directory may use every file. Attributes are not cached: what one machine wrote, the next reads whole.
mount_unit() {
  cat <<UNIT
[Unit]
Description=Shared directory of the Dask cluster
After=network-online.target
Wants=network-online.target $WATCH_UNIT
# The machine that holds the files may be away for long; each access tries again.
StartLimitIntervalSec=0

[Mount]
What=$CLUSTER_USER@$DATA_ADDRESS:$DISK
Where=$DATA_PATH
Type=fuse.sshfs
Options=_netdev,ssh_command=$ETC/ssh/ssh,reconnect,allow_other,default_permissions,uid=$(id -u $CLUSTER_USER),gid=$(id -g $CLUSTER_USER),umask=007,dir_cache=no,attr_timeout=0,entry_timeout=0$OPTIONS
TimeoutSec=20
LazyUnmount=yes
UNIT
}

# A mount whose sshfs has died answers "Transport endpoint is not connected" for ever, and systemd takes it for mounted.
watch_unit() {
  cat <<UNIT
[Unit]
Description=Lets go of the shared directory when its sshfs has died; the next access mounts it again
BindsTo=$1.mount
After=$1.mount

[Service]
# The unit, not the path: where sshfs took its mount along, the path is the automount's, which has to stay.
ExecStart=/bin/sh -c 'for p in \$\$(cat /sys/fs/cgroup\$\$(systemctl show -P ControlGroup $1.mount)/cgroup.procs); do \
case \$\$(readlink /proc/\$\$p/exe) in */sshfs) tail --pid=\$\$p -f /dev/null ;; esac; done; systemctl stop --no-block $1.mount'
UNIT
}

automount_unit() {
  cat <<UNIT
[Unit]
Description=Shared directory of the Dask cluster, mounted when it is used
$1

[Automount]
Where=$DATA_PATH

[Install]
WantedBy=multi-user.target
UNIT
}
