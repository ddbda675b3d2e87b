# State (on the authority): a machine's keys, or the client's, are signed. Prints what the machine installs, and the
# client's certificates. Undone, nothing that was signed for it is accepted any more.
#   NAME        the machine's name, or "client"
#   ADDRESS     the machine's address in the cluster's network; empty for the client
#   HOST_KEY    the machine's public SSH host key      (empty for the client)
#   USER_KEY    its cluster user's public SSH key; the client's is for tunnels to Dask alone
#   REQUEST     its TLS certificate request, PEM
#   RENEWAL     any change of it signs again
# The keys come from a machine that tasks may have taken over.

AUTHORITY=$ETC/authority
PROGRAM=$OPT/authority

check_ssh() {
  [[ $2 =~ ^ssh-ed25519\ [A-Za-z0-9+/]+=*$ ]] ||
    fatal "the SSH $1 key of $NAME is not signed: expected one ssh-ed25519 key, found '${2:0:40}...'; remove it on $NAME" \
      "and run up again"
}

check_tls() {
  openssl req -in "$1" -noout -verify -text 2>/dev/null | grep -q 'ASN1 OID: prime256v1' ||
    fatal "the TLS request of $NAME is not signed: expected one for an EC key on P-256; remove $ETC/tls on $NAME and run" \
      "up again"
}

main() {
  if [ "${1:-}" = undo ]; then
    [ -x $PROGRAM ] || return 0
    $PROGRAM revoke "$NAME"
    # Machines fetch the lists within minutes. Not waited for: with the whole cluster go all of its machines.
    systemctl start --no-block dask-authority
    return
  fi
  [ -s $AUTHORITY/tls.pem ] || fatal "the authority has no keys; run up again to make them"
  work=$(mktemp -d "$AUTHORITY/request.XXXXXX") # there it goes with the authority if this is killed
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
  $PROGRAM admit "$NAME" "$work" || fatal "the keys of $NAME are not signed; the cause is above"
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
