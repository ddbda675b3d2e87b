# Functions of the authority's program that sign and revoke.
# shellcheck shell=bash

day() { date -u -d "$1" +%Y%m%d%H%M%SZ; }

tls_config() {
  cat <<CONF
[ca]
default_ca = authority
[authority]
database = index
new_certs_dir = .work
unique_subject = no
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
[req]
distinguished_name = any_name
x509_extensions = signs
[any_name]
[signs]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
CONF
}

sign_ssh() {
  local kind=$1 name=$2
  shift 2
  cp "machines/$name/$kind.pub" .work/
  ssh-keygen -q -s "$kind" -z "$(date +%s%N)" -I "$name" -V "-1d:+${days}d" "$@" ".work/$kind.pub"
  mv ".work/$kind-cert.pub" "machines/$name/"
}

sign_tls() {
  local name=$1 days=$2
  tls_config >.work/conf
  openssl ca -batch -notext -config .work/conf -cert tls.pem -keyfile tls.key -startdate "$(day '-1 day')" \
    -enddate "$(day "+$days days")" -subj "/CN=$name" -in "machines/$name/request.pem" -out .work/tls.pem 2>.work/log ||
    { cat .work/log >&2 && return 1; }
  mv .work/tls.pem "machines/$name/"
}

sign() {
  local name=$1 address days=$DAYS
  address=$(<"machines/$name/address")
  if [ -z "$address" ]; then
    days=$CLIENT_DAYS
    sign_ssh user "$name" -n dask-tunnel -O clear -O permit-port-forwarding
  else
    sign_ssh host "$name" -h -n "$name,$address"
    # Allow commands and SFTP, but no terminal and no forwarding.
    sign_ssh user "$name" -n $CLUSTER_USER -O clear -O "source-address=$SOURCES"
    printf '%s\n' "$SOURCES" >"machines/$name/sources"
  fi
  sign_tls "$name" "$days"
}

# Write the TLS revocation list. `index` keeps revoked certificates until they expire. The list is backdated, too.
revocations() {
  local now
  now=$(date -u +%y%m%d%H%M%SZ)
  awk -F '\t' -v now="$now" '$2 >= now' index >.work/index
  mv .work/index index
  tls_config >.work/conf
  openssl ca -gencrl -config .work/conf -cert tls.pem -keyfile tls.key -crl_lastupdate "$(day '-1 day')" \
    -crl_nextupdate "$(day '+3650 days')" -out .work/crl 2>.work/log || { cat .work/log >&2 && return 1; }
  mv .work/crl crl
}

# revoke_tls COLUMN VALUE: revoke the certificates with VALUE in this column of `index`.
revoke_tls() {
  awk -F '\t' -v OFS='\t' -v now="$(date -u +%y%m%d%H%M%SZ)" -v column="$1" -v value="$2" \
    '$1 == "V" && $column == value { $1 = "R"; $3 = now } { print }' index >.work/index
  mv .work/index index
  touch unpublished
}

# retire FOLDER: revoke the SSH keys in FOLDER.
retire() {
  local key
  for key in "$1"/host.pub "$1"/user.pub; do
    [ ! -s "$key" ] || grep -qxFf "$key" revoked || cat "$key" >>revoked
  done
  touch unpublished
}
