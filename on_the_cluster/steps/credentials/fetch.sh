# Functions that fetch and install the authority's bundles.
# shellcheck shell=bash

# A step on this machine may be installing a bundle, so this takes the same lock.
fetch() {
  local before published=$ETC/published/$NAME
  exec 9<$FETCHED
  flock --wait 30 9 || exit 0
  if [ -z "$AUTHORITY_ADDRESS" ]; then
    [ ! -e "$published" ] || cp "$published" $FETCHED/new
  else
    # Tasks can forge the response, but not its signature.
    timeout 60 setpriv --reuid $CLUSTER_USER --regid $CLUSTER_USER --init-groups env HOME=$CLUSTER_HOME \
      $SSH/ssh "$AUTHORITY_ADDRESS" "cat $published" </dev/null 9<&- | head -c 1000000 >$FETCHED/new
  fi
  ! cmp -s $FETCHED/new $FETCHED/bundle || return 0
  before=$(cat $SSH/host-cert.pub)
  take $FETCHED/new
  mv $FETCHED/new $FETCHED/bundle
  [ "$before" = "$(<$SSH/host-cert.pub)" ] || reload_sshd
}

# take BUNDLE: verify the bundle, and install it if it is newer than the last one.
take() {
  local bundle=$1 new=$FETCHED/work file version
  rm -rf $new
  mkdir -p $new/files
  sed '/^-----END SSH SIGNATURE-----$/q' "$bundle" >$new/signature
  sed '1,/^-----END SSH SIGNATURE-----$/d' "$bundle" >$new/payload
  ssh-keygen -q -Y verify -f $SSH/authorities -I authority -n daskstack -s $new/signature <$new/payload >/dev/null ||
    fatal "the bundle from the authority ($AUTHORITY_ADDRESS) has no valid signature; it was not installed"
  base64 -d $new/payload | tar -x --no-same-owner -C $new/files
  version=$(<$new/files/version)
  # An older bundle would undo revocations.
  if [ "$version" -gt "$(cat $FETCHED/version 2>/dev/null || echo 0)" ]; then
    matches_keys $new/files || fatal "the bundle from the authority does not match this machine's keys; run up again"
    replace_keys $new/files
    for file in authorities known_hosts user-authority.pub revoked id_ed25519-cert.pub; do
      put $SSH/$file 0644 root:root <$new/files/$file
    done
    put $SSH/host-cert.pub 0644 root:root <$new/files/host-cert.pub
    put $TLS/certificate.pem 0644 root:root <$new/files/certificate.pem
    put $TLS/authority.pem 0644 root:root <$new/files/authority.pem
    echo "$version" >$FETCHED/version
  fi
  rm -rf $new
}

# matches_keys FOLDER: whether its certificates are for this machine's current keys, or for its next ones.
matches_keys() {
  { ssh_is_for $SSH "$1" || ssh_is_for $NEXT/ssh "$1"; } && { tls_is_for $TLS "$1" || tls_is_for $NEXT/tls "$1"; }
}

# replace_keys FOLDER: if its certificates are for the next keys, install both together. The public key is moved last,
# so that the next run notices an interrupted replacement.
replace_keys() {
  if ssh_is_for $NEXT/ssh "$1"; then
    install -m 0644 "$1/id_ed25519-cert.pub" $NEXT/ssh/
    move $NEXT/ssh $SSH id_ed25519-cert.pub id_ed25519 id_ed25519.pub
  fi
  if tls_is_for $NEXT/tls "$1"; then
    install -m 0644 "$1/certificate.pem" "$1/authority.pem" $NEXT/tls/
    move $NEXT/tls $TLS authority.pem certificate.pem key.pem request.pem
  fi
  rmdir $NEXT/ssh $NEXT/tls $NEXT 2>/dev/null || true
}

# move FROM TO FILE...: move those files that exist, with a single command.
move() {
  local from=$1 to=$2 each files=()
  shift 2
  for each; do
    [ ! -e "$from/$each" ] || files+=("$from/$each")
  done
  mv -f "${files[@]}" "$to/"
}

# ssh_is_for KEYS FOLDER, tls_is_for KEYS FOLDER: whether FOLDER's certificate is for the key in KEYS.
ssh_is_for() {
  [ -e "$1/id_ed25519.pub" ] &&
    ssh-keygen -Lf "$2/id_ed25519-cert.pub" |
    grep -qF "Public key: ED25519-CERT $(ssh-keygen -lf "$1/id_ed25519.pub" | cut -d' ' -f2)"
}

tls_is_for() {
  [ -e "$1/request.pem" ] &&
    [ "$(openssl x509 -in "$2/certificate.pem" -noout -pubkey)" = "$(openssl req -in "$1/request.pem" -noout -pubkey)" ]
}
