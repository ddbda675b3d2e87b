# State: the cluster's user exists, and this machine has generated its SSH and TLS keys. Prints the public keys.
#   NAME      the machine's name in the cluster
#   METADATA  no: block the cluster's user from the cloud's metadata server, which grants access to the machine's account;
#             yes: allow it
#   RENEWAL   a new value generates new keys, which are used once the step `credentials` or a fetch installs certificates
# Private keys never leave the machine. The authority signs the public keys.

UNITS=/etc/systemd/system
NEXT=$ETC/next # the next keys, with the same layout as $ETC

cluster_user() {
  if id $CLUSTER_USER >/dev/null 2>&1; then
    cluster_user_is_ours ||
      fatal "user '$CLUSTER_USER' already exists and does not belong to this cluster; rename it or use another machine"
  else
    # No password fits `*`. Without PAM, sshd rejects users whose password is locked with `!`.
    useradd --system --user-group --home-dir $CLUSTER_HOME --shell /bin/sh --password '*' --comment "Dask cluster" \
      $CLUSTER_USER
  fi
  # Unlike bash, sh reads no files from the home when sshd starts it.
  [ "$(getent passwd $CLUSTER_USER | cut -d: -f7)" = /bin/sh ] || usermod --shell /bin/sh $CLUSTER_USER
  install -d -m 0755 $VAR $ETC $ETC/ssh $ETC/tls
  # Root owns the home; otherwise the cluster's user could replace root's files in it.
  install -d -m 1770 -o root -g $CLUSTER_USER $CLUSTER_HOME
  ensure_root_folder .ssh
  # From a file with this name, PAM would set variables such as LD_PRELOAD for sessions.
  ensure_root_folder .pam_environment
  limit_user_units
}

# ensure_root_folder NAME: NAME in the home is a folder that belongs to root. Tasks may have created something else
# there.
ensure_root_folder() {
  local file=$CLUSTER_HOME/$1 end=$((SECONDS + 10))
  while [ "$(stat -c %U:%F "$file" 2>/dev/null)" != root:directory ]; do
    [ $SECONDS -lt $end ] || fatal "cannot create $file, because tasks keep replacing it; stop Dask on this machine"
    rm -rf "$file"
    mkdir -m 0755 "$file" 2>/dev/null || true
  done
}

# A session can start user units, which are not children of the session and do not inherit its restrictions.
limit_user_units() {
  install -d -m 0755 "$(dirname "$(user_unit)")"
  printf '[Service]\nNoNewPrivileges=yes\n' | put "$(user_unit)" 0644 root:root
  [ $changed = no ] || systemctl daemon-reload
}

user_unit() { echo "/etc/systemd/system/user@$(id -u $CLUSTER_USER).service.d/daskstack.conf"; }

# make_keys FOLDER: generate missing keys in FOLDER/ssh and FOLDER/tls. Keys are written to temporary files and renamed,
# so that a killed run leaves no partial key.
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
    # This machine must trust the authority's new keys before they sign anything. If the fetch fails, e.g. because
    # certificates have expired, the step `credentials` installs the bundle.
    [ ! -x $OPT/credentials ] || [ -d $ETC/authority ] || $OPT/credentials ||
      note "$NAME could not fetch the authority's bundle; a later step of this up installs it"
  fi
  printf '%s\n' "$RENEWAL" | put $known 0644 root:root
}

# newest FILE: the path of FILE among the next keys if there are any, else among the current ones.
newest() { if [ -e "$NEXT/$1" ]; then echo "$NEXT/$1"; else echo "$ETC/$1"; fi; }

# Public keys and PEM text contain neither quotes nor backslashes, so printf can write this JSON.
print_public_keys() {
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
  need openssl
  need pgrep # undo uses it
  cluster_user
  if [ "$METADATA" = no ]; then block_metadata; else allow_metadata; fi
  make_keys $ETC
  renew_keys
  [ -s /etc/ssh/ssh_host_ed25519_key.pub ] ||
    fatal "sshd has no ed25519 host key; create one (ssh-keygen -A), restart sshd and run up again"
  print_public_keys
}

undo() {
  end_cluster_user
  if cluster_user_is_ours; then
    drop "$(user_unit)"
    rmdir "$(dirname "$(user_unit)")" 2>/dev/null || true
    systemctl daemon-reload
    userdel $CLUSTER_USER
  fi
  allow_metadata
  rm -rf $ETC/ssh $ETC/tls $NEXT $NEXT.new $CLUSTER_HOME
  tidy
}

exclusively main "$@" </dev/null
