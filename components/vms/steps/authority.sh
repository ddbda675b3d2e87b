# State: this machine is the cluster's authority: it holds the keys that sign SSH and TLS credentials, and they are
# root's alone. Prints their public halves.
#   CLUSTER   the cluster's name, for the certificates' subject

AUTHORITY=$ETC/authority

main() {
  if [ "${1:-}" = undo ]; then
    rm -rf $AUTHORITY $ETC/members # the list of members moved with the authority, and stays behind as the keys do
    tidy
    return
  fi
  need openssl openssl
  install -d -m 0755 $ETC
  install -d -m 0700 $AUTHORITY
  local kind new=$AUTHORITY/.new
  rm -rf $new
  install -d -m 0700 $new
  for kind in host user; do
    [ -s $AUTHORITY/$kind ] && continue
    ssh-keygen -q -t ed25519 -N '' -C "dask $kind authority of $CLUSTER" -f $new/$kind
    mv $new/$kind.pub $AUTHORITY/$kind.pub
    mv $new/$kind $AUTHORITY/$kind
  done
  if [ ! -s $AUTHORITY/tls.pem ]; then
    # Ten years: everything that it signs lasts one, so this one is made anew only with the cluster.
    openssl req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
      -subj "/CN=dask authority of $CLUSTER" -addext "keyUsage=critical,keyCertSign,cRLSign" \
      -keyout $new/tls.key -out $new/tls.pem 2>/dev/null
    mv $new/tls.key $AUTHORITY/tls.key
    mv $new/tls.pem $AUTHORITY/tls.pem
  fi
  rm -rf $new
  chmod 0600 $AUTHORITY/host $AUTHORITY/user $AUTHORITY/tls.key
  printf '{"hostAuthority": "%s", "userAuthority": "%s", "tlsAuthority": "%s"}\n' \
    "$(cut -d' ' -f1,2 $AUTHORITY/host.pub)" "$(cut -d' ' -f1,2 $AUTHORITY/user.pub)" \
    "$(awk -v ORS='\\n' 1 $AUTHORITY/tls.pem)"
}

alone main "$@" </dev/null
