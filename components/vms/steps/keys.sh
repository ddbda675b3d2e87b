# State: the cluster's user exists, and this machine has made its own SSH and TLS keys. Prints their public halves.
#   NAME      the machine's name in the cluster
# Private keys never leave the machine; the authority signs what is printed here.

cluster_user() {
  if id $CLUSTER_USER >/dev/null 2>&1; then
    cluster_user_is_ours ||
      fatal "a user '$CLUSTER_USER' exists already and is not the cluster's; rename it or use another machine"
  else
    useradd --system --user-group --home-dir $CLUSTER_HOME --shell /bin/bash --comment "Dask cluster" $CLUSTER_USER
  fi
  install -d -m 0755 $VAR $ETC $ETC/ssh $ETC/tls
  install -d -m 0700 -o $CLUSTER_USER -g $CLUSTER_USER $CLUSTER_HOME
}

# A key that a killed run left half-written does not count: keys are made beside their place and moved there whole.
make_keys() {
  local key=$ETC/ssh/id_ed25519
  if [ ! -s $key ]; then
    rm -f $key.new $key.new.pub
    ssh-keygen -q -t ed25519 -N '' -C "$CLUSTER_USER@$NAME" -f $key.new
    chown $CLUSTER_USER:$CLUSTER_USER $key.new
    mv $key.new.pub $key.pub
    mv $key.new $key
  fi
  key=$ETC/tls/key.pem
  if [ ! -s $key ]; then
    (umask 077 && openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$NAME" \
      -keyout $key.new -out $ETC/tls/request.pem 2>/dev/null)
    chown $CLUSTER_USER:$CLUSTER_USER $key.new
    mv $key.new $key
  fi
}

# Public keys and PEM text have neither quotes nor backslashes, so this needs no JSON tool on the machine.
public_halves() {
  printf '{"hostKey": "%s", "userKey": "%s", "request": "%s"}\n' \
    "$(cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub)" \
    "$(cut -d' ' -f1,2 $ETC/ssh/id_ed25519.pub)" \
    "$(awk -v ORS='\\n' 1 $ETC/tls/request.pem)"
}

main() {
  if [ "${1:-}" = undo ]; then
    undo
    return
  fi
  need openssl openssl
  need pgrep procps procps-ng # for undo
  cluster_user
  make_keys
  [ -s /etc/ssh/ssh_host_ed25519_key.pub ] ||
    fatal "sshd has no ed25519 host key; make one (ssh-keygen -A), restart sshd and run up again"
  public_halves
}

undo() {
  end_cluster_user
  ! cluster_user_is_ours || userdel $CLUSTER_USER
  rm -rf $ETC/ssh $ETC/tls $CLUSTER_HOME
  tidy
}

alone main "$@" </dev/null
