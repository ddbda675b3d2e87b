# State (on the authority): a machine's keys, or the client's, are signed for a year. Prints the certificates.
#   NAME        the machine's name, or "client"
#   ADDRESS     the machine's address in the cluster's network; empty for the client
#   HOST_KEY    the machine's public SSH host key      (empty for the client)
#   USER_KEY    its cluster user's public SSH key; the client's is for tunnels to Dask alone
#   REQUEST     its TLS certificate request, PEM
#   RENEWAL     any change of it signs again
# Backdated by a day, for clocks that differ.

AUTHORITY=$ETC/authority
DAYS=365

sign_ssh() {
  local kind=$1 key=$2 principals=$3 options=("${@:4}")
  [ "$kind" = user ] || options+=(-h)
  printf '%s\n' "$key" >"$work/$kind.pub"
  ssh-keygen -q -s "$AUTHORITY/$kind" "${options[@]}" -I "$NAME" -n "$principals" -V "-1d:+${DAYS}d" "$work/$kind.pub"
  cut -d' ' -f1,2 "$work/$kind-cert.pub"
}

sign_tls() {
  printf '%s\n' "$REQUEST" >"$work/request.pem"
  : >"$work/index"
  cat >"$work/ca.conf" <<CONF
[ca]
default_ca = authority
[authority]
database = $work/index
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = any
x509_extensions = both_sides
copy_extensions = none
[any]
commonName = supplied
[both_sides]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
CONF
  openssl ca -batch -notext -config "$work/ca.conf" -cert $AUTHORITY/tls.pem -keyfile $AUTHORITY/tls.key \
    -startdate "$(date -u -d '-1 day' +%Y%m%d%H%M%SZ)" -enddate "$(date -u -d "+$DAYS days" +%Y%m%d%H%M%SZ)" \
    -subj "/CN=$NAME" -in "$work/request.pem" -out "$work/tls.pem" 2>"$work/log" || fatal "$(cat "$work/log")"
  awk -v ORS='\\n' 1 "$work/tls.pem"
}

main() {
  [ "${1:-}" = undo ] && return # what was signed goes with the machine that has it
  [ -s $AUTHORITY/tls.pem ] || fatal "the authority has no keys; run up again to make them"
  work=$(mktemp -d)
  at_exit="rm -rf $work"
  local host='' user='' tls
  if [ -n "$ADDRESS" ]; then
    host=$(sign_ssh host "$HOST_KEY" "$NAME,$ADDRESS")
    user=$(sign_ssh user "$USER_KEY" $CLUSTER_USER)
  else
    user=$(sign_ssh user "$USER_KEY" dask-tunnel -O clear -O permit-port-forwarding)
  fi
  tls=$(sign_tls)
  printf '{"host": "%s", "user": "%s", "tls": "%s", "expires": "%s"}\n' \
    "$host" "$user" "$tls" "$(date -u -d "+$DAYS days" +%Y-%m-%d)"
}

main "$@" </dev/null
