# State: the shared directory is there, at the same path on every machine: on one as a folder of its own, on all others
# mounted from it.
#   DATA_PATH     /srv/daskdata
#   DATA_ADDRESS  address of the machine that holds the data; empty on that machine
#   OPTIONS       further sshfs mount options, each with a comma in front
#   LOGIN_USER    the user that up logs in as, who may use the directory like the cluster's user
# Everybody's files are usable by everybody who may use the directory: root, the login user, the cluster's user.

UNITS=/etc/systemd/system
TMPFILES=/etc/tmpfiles.d/tmp.conf

members() {
  if [ "$LOGIN_USER" != root ]; then usermod --append --groups $CLUSTER_USER "$LOGIN_USER"; fi
}

# At boot, and once a day, /tmp is emptied of what systemd-tmpfiles is not told to leave alone.
keep_from_cleaning() {
  case $DATA_PATH in /tmp/* | /var/tmp/*) ;; *) return 0 ;; esac
  [ -e $TMPFILES ] && ! grep -qF "x $DATA_PATH" $TMPFILES &&
    fatal "$TMPFILES exists already: a rule of yours about /tmp that ours would replace; use a data.path outside /tmp"
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

hold() {
  need setfacl acl
  refuse_tmpfs
  if [ -d "$DATA_PATH" ]; then
    remember data <<<"$(stat -c '%a %U:%G' "$DATA_PATH")"
  else
    remember data <<<made
    mkdir -p "$DATA_PATH"
  fi
  chown $CLUSTER_USER:$CLUSTER_USER "$DATA_PATH"
  chmod 2770 "$DATA_PATH"
  setfacl -m "g:$CLUSTER_USER:rwX,d:u::rwX,d:g::rwX,d:g:$CLUSTER_USER:rwX,d:o::-" "$DATA_PATH"
}

# Owner and mode are the mount's, not the file's: what root or the login user wrote on one machine has to be open to
# the cluster's user on another, and user ids differ from machine to machine. The far end lets the cluster's user do it.
mount_unit() {
  cat <<UNIT
[Unit]
Description=Shared directory of the Dask cluster
After=network-online.target
Wants=network-online.target
# The machine that holds the data may be away for long; each access tries again.
StartLimitIntervalSec=0

[Mount]
What=$CLUSTER_USER@$DATA_ADDRESS:$DATA_PATH
Where=$DATA_PATH
Type=fuse.sshfs
Options=_netdev,ssh_command=$ETC/ssh/ssh,reconnect,allow_other,default_permissions,uid=$(id -u $CLUSTER_USER),gid=$(id -g $CLUSTER_USER),umask=007,dir_cache=no$OPTIONS
TimeoutSec=20
UNIT
}

automount_unit() {
  cat <<UNIT
[Unit]
Description=Shared directory of the Dask cluster, mounted when it is used

[Automount]
Where=$DATA_PATH

[Install]
WantedBy=multi-user.target
UNIT
}

mounted() { findmnt -n -t fuse.sshfs "$DATA_PATH" >/dev/null && timeout 10 stat "$DATA_PATH/." >/dev/null; }

mount_from_holder() {
  need sshfs sshfs fuse-sshfs
  need fusermount3 fuse3
  if ! findmnt -n "$DATA_PATH" >/dev/null; then
    [ ! -d "$DATA_PATH" ] || [ -z "$(ls -A "$DATA_PATH")" ] ||
      fatal "$DATA_PATH has files on this machine, which the shared directory would hide; move them away"
    if [ ! -d "$DATA_PATH" ]; then
      remember data <<<made
      mkdir -p "$DATA_PATH"
    fi
  fi
  local unit
  unit=$(systemd-escape --path "$DATA_PATH")
  mount_unit | put "$UNITS/$unit.mount" 0644 root:root
  automount_unit | put "$UNITS/$unit.automount" 0644 root:root
  if [ $changed = yes ]; then
    systemctl daemon-reload
    systemctl stop "$unit.automount" "$unit.mount"
  fi
  systemctl -q enable "$unit.automount"
  systemctl start "$unit.automount"
  timeout 30 ls "$DATA_PATH" >/dev/null 2>&1 || true
  mounted || fatal "$DATA_PATH is not mounted: $(journalctl -u "$unit.mount" -n 8 --no-pager -o cat)"
}

# Also the proof that nothing goes beside the mount: what is written must arrive where the mount comes from.
verify() {
  local probe
  probe=$DATA_PATH/.daskstack-$(hostname)-$$
  as_cluster_user touch "$probe" || fatal "the cluster's user cannot write to $DATA_PATH"
  if [ -n "$DATA_ADDRESS" ]; then
    as_cluster_user $ETC/ssh/ssh "$DATA_ADDRESS" rm "$probe" ||
      fatal "what is written to $DATA_PATH here does not arrive on $DATA_ADDRESS"
  else
    rm "$probe"
  fi
}

main() {
  if [ "${1:-}" = undo ]; then
    undo
    return
  fi
  members
  keep_from_cleaning
  if [ -z "$DATA_ADDRESS" ]; then hold; else mount_from_holder; fi
  verify
}

undo() {
  local unit
  unit=$(systemd-escape --path "$DATA_PATH")
  if [ -e "$UNITS/$unit.automount" ]; then
    systemctl -q disable --now "$unit.automount" || true
    systemctl stop "$unit.mount" || umount -l "$DATA_PATH"
    rm -f "$UNITS/$unit.automount" "$UNITS/$unit.mount"
    systemctl daemon-reload
  fi
  case $DATA_PATH in /tmp/* | /var/tmp/*) rm -f $TMPFILES ;; esac
  if [ "$LOGIN_USER" != root ]; then gpasswd -d "$LOGIN_USER" $CLUSTER_USER >/dev/null 2>&1 || true; fi
  if [ "$(cat $BEFORE/data 2>/dev/null)" = made ]; then
    # A directory with files in it is the user's.
    rmdir "$DATA_PATH" 2>/dev/null || note "$DATA_PATH is kept: it has files in it"
  fi
  forget data
}

main "$@" </dev/null
