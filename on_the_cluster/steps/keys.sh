# State: the cluster's user exists, and this machine has made its own SSH and TLS keys. Prints their public halves.
#   NAME      the machine's name in the cluster
#   METADATA  no: the cluster's user cannot reach the cloud's metadata server, which hands out the machine's account; yes
#   RENEWAL   a change of it makes new keys: they are used when the step credentials, or a fetch, has certificates for them
# Private keys never leave the machine; the authority signs what is printed here.

UNITS=/etc/systemd/system
GUARD=dask-metadata
TABLE=daskstack
NEXT=$ETC/next # like $ETC: the keys that are to replace those there

cluster_user() {
  if id $CLUSTER_USER >/dev/null 2>&1; then
    cluster_user_is_ours ||
      fatal "a user '$CLUSTER_USER' exists already and is not the cluster's; rename it or use another machine"
  else
    useradd --system --user-group --home-dir $CLUSTER_HOME --shell /bin/sh --comment "Dask cluster" $CLUSTER_USER
  fi
  # Unlike bash it reads no file of the home when sshd starts it.
  [ "$(getent passwd $CLUSTER_USER | cut -d: -f7)" = /bin/sh ] || usermod --shell /bin/sh $CLUSTER_USER
  install -d -m 0755 $VAR $ETC $ETC/ssh $ETC/tls
  # In a home that is the cluster's user's own, that user could replace what is root's in it.
  install -d -m 1770 -o root -g $CLUSTER_USER $CLUSTER_HOME
  roots_own .ssh
  # From here PAM would take LD_PRELOAD for sessions.
  roots_own .pam_environment
  limit_user_units
}

# A table of its own: a reload of firewalld leaves it alone. On Google Cloud the metadata server answers DNS, too.
metadata_rules() {
  cat <<RULES
table inet $TABLE
delete table inet $TABLE
table inet $TABLE {
  chain output {
    type filter hook output priority filter; policy accept;
    meta skuid $CLUSTER_USER ip daddr 169.254.169.254 meta l4proto { tcp, udp } th dport 53 accept
    meta skuid $CLUSTER_USER ip daddr 169.254.169.254 reject with icmpx type admin-prohibited
    meta skuid $CLUSTER_USER ip6 daddr { fd00:ec2::254, fd20:ce::254 } reject with icmpx type admin-prohibited
  }
}
RULES
}

metadata_unit() {
  cat <<UNIT
[Unit]
Description=Keeps Dask tasks from the cloud's metadata server
After=nftables.service
Before=network-pre.target
Wants=network-pre.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=$(command -v nft) -f $ETC/metadata.nft

[Install]
WantedBy=multi-user.target
# Without the rule nothing of Dask starts.
RequiredBy=dask-scheduler.service dask-worker@.service
UNIT
}

guard_metadata() {
  need nft nftables
  metadata_rules | put $ETC/metadata.nft 0644 root:root
  metadata_unit | put $UNITS/$GUARD.service 0644 root:root
  systemctl daemon-reload
  nft -f $ETC/metadata.nft || fatal "the rule that keeps tasks from the metadata server does not load; see above"
  systemctl -q enable --now $GUARD # not restarted: Dask would be, too
}

open_metadata() {
  if [ -e $UNITS/$GUARD.service ]; then
    systemctl -q disable $GUARD
    drop $UNITS/$GUARD.service
    systemctl daemon-reload # first: now Dask does not stop with it
    systemctl stop $GUARD
  fi
  drop $UNITS/$GUARD.service $ETC/metadata.nft
  ! nft list table inet $TABLE >/dev/null 2>&1 || nft delete table inet $TABLE
}

# roots_own NAME: NAME in the home is a folder of root's, whatever a task put there.
roots_own() {
  local file=$CLUSTER_HOME/$1 end=$((SECONDS + 10))
  while [ "$(stat -c %U:%F "$file" 2>/dev/null)" != root:directory ]; do
    [ $SECONDS -lt $end ] || fatal "$file cannot be made root's: tasks put their own there again and again; stop Dask here"
    rm -rf "$file"
    mkdir -m 0755 "$file" 2>/dev/null || true
  done
}

# A session can start units of the user, which are no children of the session.
limit_user_units() {
  install -d -m 0755 "$(dirname "$(user_unit)")"
  printf '[Service]\nNoNewPrivileges=yes\n' | put "$(user_unit)" 0644 root:root
  [ $changed = no ] || systemctl daemon-reload
}

user_unit() { echo "/etc/systemd/system/user@$(id -u $CLUSTER_USER).service.d/daskstack.conf"; }

# make_keys FOLDER: in FOLDER/ssh and FOLDER/tls, where they are missing. A key that a killed run left half-written does
# not count: keys are made beside their place and moved there whole.
make_keys() {
  local key=$1/ssh/id_ed25519
  if [ ! -s "$key" ]; then
    rm -f "$key.new" "$key.new.pub"
    ssh-keygen -q -t ed25519 -N '' -C "$CLUSTER_USER@$NAME" -f "$key.new"
    chown $CLUSTER_USER:$CLUSTER_USER "$key.new"
    mv "$key.new.pub" "$key.pub"
    mv "$key.new" "$key"
  fi
  key=$1/tls/key.pem
  if [ ! -s "$key" ]; then
    (umask 077 && openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$NAME" \
      -keyout "$key.new" -out "$1/tls/request.pem" 2>/dev/null)
    chown $CLUSTER_USER:$CLUSTER_USER "$key.new"
    mv "$key.new" "$key"
  fi
}

renew_keys() {
  local known=$ETC/tls/renewal
  if [ "$(cat $known 2>/dev/null || echo "$RENEWAL")" != "$RENEWAL" ]; then
    rm -rf $NEXT $NEXT.new
    install -d -m 0755 $NEXT.new/ssh $NEXT.new/tls
    make_keys $NEXT.new
    mv $NEXT.new $NEXT
    # The authority's new keys must be trusted here before anything is signed with them. Where this fails, because
    # certificates have ended, the step credentials brings both.
    [ ! -x $OPT/credentials ] || [ -d $ETC/authority ] || $OPT/credentials ||
      note "$NAME has not fetched what the authority publishes; this up brings it"
  fi
  printf '%s\n' "$RENEWAL" | put $known 0644 root:root
}

# newest FILE: among the keys that are in use and those that are to replace them.
newest() { if [ -e "$NEXT/$1" ]; then echo "$NEXT/$1"; else echo "$ETC/$1"; fi; }

# Public keys and PEM text have neither quotes nor backslashes, so this needs no JSON tool on the machine.
public_halves() {
  printf '{"hostKey": "%s", "userKey": "%s", "request": "%s"}\n' \
    "$(cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub)" \
    "$(cut -d' ' -f1,2 "$(newest ssh/id_ed25519.pub)")" \
    "$(awk -v ORS='\\n' 1 "$(newest tls/request.pem)")"
}

main() {
  if [ "${1:-}" = undo ]; then
    undo
    return
  fi
  need openssl openssl
  need pgrep procps procps-ng # for undo
  cluster_user
  if [ "$METADATA" = no ]; then guard_metadata; else open_metadata; fi
  make_keys $ETC
  renew_keys
  [ -s /etc/ssh/ssh_host_ed25519_key.pub ] ||
    fatal "sshd has no ed25519 host key; make one (ssh-keygen -A), restart sshd and run up again"
  public_halves
}

undo() {
  end_cluster_user
  if cluster_user_is_ours; then
    drop "$(user_unit)"
    rmdir "$(dirname "$(user_unit)")" 2>/dev/null || true
    systemctl daemon-reload
    userdel $CLUSTER_USER
  fi
  open_metadata
  rm -rf $ETC/ssh $ETC/tls $NEXT $NEXT.new $CLUSTER_HOME
  tidy
}

alone main "$@" </dev/null
