# State (on the authority): the keys of a machine or of the client are signed. Prints the machine's bundle, or the
# client's certificates. Undo revokes them.
#   NAME        the machine's name, or "client"
#   ADDRESS     the machine's address in the cluster's network; empty for the client
#   HOST_KEY    the machine's public SSH host key; empty for the client
#   USER_KEY    the public SSH key of the machine's cluster user, or of the client, which can only open tunnels to Dask
#   REQUEST     the TLS certificate request, PEM
#   RENEWAL     a new value signs the keys again
# Do not trust the keys' format: tasks may have compromised the machine that sent them.

AUTHORITY=$ETC/authority
PROGRAM=$OPT/authority

check_ssh() {
  [[ $2 =~ ^ssh-ed25519\ [A-Za-z0-9+/]+=*$ ]] ||
    fatal "cannot sign the SSH $1 key of $NAME: expected an ssh-ed25519 key, found '${2:0:40}...'; remove the key on $NAME" \
      "and run up again"
}

check_tls() {
  openssl req -in "$1" -noout -verify -text 2>/dev/null | grep -q 'ASN1 OID: prime256v1' ||
    fatal "cannot sign the TLS request of $NAME: expected a request for an EC key on P-256; remove $ETC/tls on $NAME" \
      "and run up again"
}

main() {
  if [ "${1:-}" = undo ]; then
    [ -x $PROGRAM ] || return 0
    $PROGRAM revoke "$NAME"
    # Machines fetch the revocation lists within minutes. Do not wait: destroy removes all machines anyway.
    systemctl start --no-block dask-authority
    return
  fi
  [ -s $AUTHORITY/tls.pem ] || fatal "the authority has no keys; run up again to create them"
  work=$(mktemp -d "$AUTHORITY/request.XXXXXX") # if this step is killed, undoing the authority removes it
  at_exit="rm -rf $work"
  printf '%s' "$ADDRESS" >"$work/address"
  printf '%s\n' "$REQUEST" >"$work/request.pem"
  if [ -n "$ADDRESS" ]; then
    check_ssh host "$HOST_KEY"
    printf '%s\n' "$HOST_KEY" >"$work/host.pub"
  fi
  check_ssh user "$USER_KEY"
  printf '%s\n' "$USER_KEY" >"$work/user.pub"
  check_tls "$work/request.pem"
  $PROGRAM admit "$NAME" "$work" || fatal "cannot sign the keys of $NAME; the cause is above"
  local signed=$AUTHORITY/machines/$NAME bundle='' user=''
  if [ -n "$ADDRESS" ]; then
    bundle=$(awk -v ORS='\\n' 1 "$ETC/published/$NAME")
  else
    user=$(cut -d' ' -f1,2 "$signed/user-cert.pub")
  fi
  printf '{"bundle": "%s", "user": "%s", "tls": "%s", "expires": "%s"}\n' "$bundle" "$user" \
    "$(awk -v ORS='\\n' 1 "$signed/tls.pem")" \
    "$(date -u -d "$(openssl x509 -in "$signed/tls.pem" -noout -enddate | cut -d= -f2)" +%Y-%m-%d)"
}

main "$@" </dev/null
