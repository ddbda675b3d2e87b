# What a machine fetches from the authority, and installs.
# shellcheck shell=bash

# Not while a step installs them here.
fetch() {
  local before published=$ETC/published/$NAME
  exec 9<$FETCHED
  flock --wait 30 9 || exit 0
  if [ -z "$AUTHORITY_ADDRESS" ]; then
    [ ! -e "$published" ] || cp "$published" $FETCHED/new
  else
    # What comes is a task's to forge, but not to sign.
    timeout 60 setpriv --reuid $CLUSTER_USER --regid $CLUSTER_USER --init-groups env HOME=$CLUSTER_HOME \
      $SSH/ssh "$AUTHORITY_ADDRESS" "cat $published" </dev/null 9<&- | head -c 1000000 >$FETCHED/new
  fi
  ! cmp -s $FETCHED/new $FETCHED/bundle || return 0
  before=$(cat $SSH/host-cert.pub)
  take $FETCHED/new
  mv $FETCHED/new $FETCHED/bundle
  [ "$before" = "$(<$SSH/host-cert.pub)" ] || reload_sshd
}

# take BUNDLE: installs what is in it, where it is newer.
take() {
  local bundle=$1 new=$FETCHED/work file version
  rm -rf $new
  mkdir -p $new/files
  sed '/^-----END SSH SIGNATURE-----$/q' "$bundle" >$new/signature
  sed '1,/^-----END SSH SIGNATURE-----$/d' "$bundle" >$new/payload
  ssh-keygen -q -Y verify -f $SSH/authorities -I authority -n daskstack -s $new/signature <$new/payload >/dev/null ||
    fatal "what came from the authority ($AUTHORITY_ADDRESS) does not have its signature; nothing of it is installed"
  base64 -d $new/payload | tar -x --no-same-owner -C $new/files
  version=$(<$new/files/version)
  # An older one would take back what is revoked.
  if [ "$version" -gt "$(cat $FETCHED/version 2>/dev/null || echo 0)" ]; then
    belongs $new/files || fatal "what came from the authority is for other keys than this machine has; run up again"
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

# belongs FOLDER: its certificates are for this machine's keys, or for those that are to replace them.
belongs() {
  { ssh_is_for $SSH "$1" || ssh_is_for $NEXT/ssh "$1"; } && { tls_is_for $TLS "$1" || tls_is_for $NEXT/tls "$1"; }
}

# replace_keys FOLDER: where its certificates are for the keys that wait for them, both take their places at once. The
# public half comes last: by it a killed run's successor sees what is left to do.
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

# move FROM TO FILE...: those that are there, by one command.
move() {
  local from=$1 to=$2 each files=()
  shift 2
  for each; do
    [ ! -e "$from/$each" ] || files+=("$from/$each")
  done
  mv -f "${files[@]}" "$to/"
}

# ssh_is_for KEYS FOLDER, tls_is_for KEYS FOLDER: FOLDER's certificate is for the key in KEYS.
ssh_is_for() {
  [ -e "$1/id_ed25519.pub" ] &&
    ssh-keygen -Lf "$2/id_ed25519-cert.pub" |
    grep -qF "Public key: ED25519-CERT $(ssh-keygen -lf "$1/id_ed25519.pub" | cut -d' ' -f2)"
}

tls_is_for() {
  [ -e "$1/request.pem" ] &&
    [ "$(openssl x509 -in "$2/certificate.pem" -noout -pubkey)" = "$(openssl req -in "$1/request.pem" -noout -pubkey)" ]
}
