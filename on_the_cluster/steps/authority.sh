# State: this machine is the cluster's authority. It holds the keys that sign SSH and TLS credentials, which only root
# can read. It renews certificates before they expire, and publishes a bundle for each machine to fetch.
#   CLUSTER   the cluster's name, for the certificates' subject
#   NETWORK   networks or addresses from which machines may use their SSH certificates, separated by spaces
#   DAYS      validity of a machine's certificates; the authority renews them after a third of this time
#   RENEWAL   a new value creates new keys in addition to the current ones
#   ACCESS    the Python program with which `daskstack access` admits people
# New keys stay in `next` until every machine trusts them as well. Then the step `renewal` makes them sign. Machines
# trust the former keys until the step `members` ends that, after every machine has received its new certificates. The
# bundles contain all of these public keys. Certificates are backdated by one day, because clocks can differ.

AUTHORITY=$ETC/authority
PUBLISHED=$ETC/published
PROGRAM=$OPT/authority
ACCESS_PROGRAM=$OPT/access.py
UNIT=/etc/systemd/system/dask-authority
CLIENT_DAYS=365 # the client's certificates are not renewed automatically

# The program that steps and the timer run as root:
#   authority admit NAME FOLDER   sign the keys in FOLDER for machine NAME, and publish its bundle
#   authority revoke NAME         revoke everything signed for NAME
#   authority outdate NAME        revoke those keys of NAME that were replaced
#   authority settle MINUTES      revoke keys that were replaced at least MINUTES ago, and renew; with 0, machines also
#                                 stop trusting the authority's former keys
#   authority advance             start to sign with the next keys
#   authority renew               renew certificates that expire soon, and publish changes
program() {
  echo '#!/bin/bash'
  echo 'set -euo pipefail'
  declare -p AUTHORITY PUBLISHED CLUSTER_USER DAYS CLIENT_DAYS SOURCES
  declare -f sign_ssh sign_tls day tls_config sign revocations revoke_tls retire admit discard revoke outdate settle advance due renew publish commands
  # shellcheck disable=SC2016
  echo 'commands "$@"'
}

commands() {
  cd $AUTHORITY
  exec 8<.
  flock --wait 120 8
  rm -rf .work
  mkdir .work
  "$@" 8<&-
  rm -rf .work
}

admit() {
  local name=$1 folder=$2 file old
  if [ -d "machines/$name" ]; then
    for file in host.pub user.pub request.pem; do
      if [ -e "machines/$name/$file" ] && ! cmp -s "machines/$name/$file" "$folder/$file"; then
        old=$(mktemp -d "replaced/$name.XXXXXX")
        if [ $file = request.pem ]; then
          awk -F '\t' -v subject="/CN=$name" '$1 == "V" && $6 == subject { print $4 }' index >"$old/serials"
        else
          cp "machines/$name/$file" "$old/"
        fi
      fi
    done
  fi
  mkdir -p "machines/$name"
  cp "$folder"/* "machines/$name/"
  # A machine that was removed and added again has new keys, except for its SSH host key.
  if [ -e "$folder/host.pub" ] && grep -qxFf "$folder/host.pub" revoked; then
    { grep -vxFf "$folder/host.pub" revoked || true; } >.work/revoked
    mv .work/revoked revoked
    touch unpublished
  fi
  sign "$name"
  publish "$name"
}

# discard FIND-EXPRESSION: revoke and forget these replaced keys.
discard() {
  local old serial
  find replaced -mindepth 1 -maxdepth 1 "$@" | while read -r old; do
    retire "$old"
    if [ -e "$old/serials" ]; then
      while read -r serial; do revoke_tls 4 "$serial"; done <"$old/serials"
    fi
    rm -rf "$old"
  done
}

outdate() { discard -name "$1.*"; }

settle() {
  discard ! -newermt "$1 minutes ago"
  if [ "$1" = 0 ] && [ -d former ]; then
    touch unpublished
    rm -rf former
  fi
  renew
}

# If this is interrupted, the next run completes it.
advance() {
  local former
  [ -d next ] || return 0
  if [ -e tls.pem ]; then
    [ -e crl ] || revocations
    former=former/$(date +%s%N)
    mkdir -p "$former"
    cp host.pub user.pub tls.pem crl "$former/"
  fi
  mv -f next/* .
  rmdir next
}

revoke() {
  outdate "$1"
  [ -d "machines/$1" ] || return 0
  retire "machines/$1"
  revoke_tls 6 "/CN=$1"
  rm -rf "machines/$1" "${PUBLISHED:?}/$1"
}

due() {
  [ "$(cat "$1/sources" 2>/dev/null)" != "$SOURCES" ] ||
    ! openssl x509 -noout -checkend $((DAYS * 86400 * 2 / 3)) -in "$1/tls.pem" >/dev/null
}

renew() {
  local folder name signed
  [ ! -e unpublished ] || revocations
  for folder in machines/*/; do
    name=$(basename "$folder")
    [ -s "$folder/address" ] || continue
    signed=no
    if due "$folder"; then
      sign "$name"
      signed=yes
    fi
    if [ $signed = yes ] || [ -e unpublished ] || [ ! -e "$PUBLISHED/$name" ]; then publish "$name"; fi
  done
  rm -f unpublished
}

# Write the bundle that a machine fetches: everything it gets from the authority. The bundle is signed, because tasks
# run as the same user that serves it. Newer bundles have higher version numbers.
publish() {
  local name=$1 each new=$AUTHORITY/.work/bundle
  [ -s "machines/$name/address" ] || return 0
  [ -e crl ] || revocations
  rm -rf $new
  mkdir $new
  cp "machines/$name/host-cert.pub" revoked $new/
  cp "machines/$name/user-cert.pub" $new/id_ed25519-cert.pub
  cp "machines/$name/tls.pem" $new/certificate.pem
  for each in . next former/*; do
    [ -e "$each/tls.pem" ] || continue
    cat "$each/tls.pem" "$each/crl" >>$new/authority.pem
    cat "$each/user.pub" >>$new/user-authority.pub
    echo "@cert-authority * $(<"$each/host.pub")" >>$new/known_hosts
    echo "authority namespaces=\"daskstack\" $(cut -d' ' -f1,2 "$each/host.pub")" >>$new/authorities
  done
  date +%s%N >$new/version
  tar -C $new --owner=0 --group=0 -c . | base64 >.work/payload
  ssh-keygen -q -Y sign -f host -n daskstack <.work/payload >.work/signature 2>.work/log
  cat .work/signature .work/payload >.work/published
  chmod 0644 .work/published
  mv .work/published "$PUBLISHED/$name"
}

service() {
  cat <<CONF
[Unit]
Description=Renews and publishes the certificates of the Dask cluster

[Service]
Type=oneshot
# Wait a day before revoking replaced keys: after a failed up, a machine may not have its new keys yet.
ExecStart=$PROGRAM settle 1440
TimeoutStartSec=600
PrivateTmp=yes
ProtectHome=yes
ProtectSystem=strict
ReadWritePaths=$AUTHORITY $PUBLISHED
NoNewPrivileges=yes
PrivateNetwork=yes
CONF
}

timer() {
  cat <<CONF
[Unit]
Description=Renews and publishes the certificates of the Dask cluster

[Timer]
OnBootSec=5s
OnUnitActiveSec=6h

[Install]
WantedBy=timers.target
CONF
}

main() {
  if [ "${1:-}" = undo ]; then
    undo
    return
  fi
  need openssl
  need python3
  install -d -m 0755 $ETC $OPT $PUBLISHED
  install -d -m 0700 $AUTHORITY $AUTHORITY/machines $AUTHORITY/replaced
  touch $AUTHORITY/revoked
  # A machine can also connect to itself.
  SOURCES=${NETWORK// /,},127.0.0.0/8,::1/128
  if [ ! -s $AUTHORITY/tls.pem ] || [ "$(cat $AUTHORITY/renewal 2>/dev/null || echo "$RENEWAL")" != "$RENEWAL" ]; then
    make_next
    touch $AUTHORITY/unpublished
  fi
  echo "$RENEWAL" >$AUTHORITY/renewal
  program | put $PROGRAM 0755 root:root
  printf '%s' "$ACCESS" | put $ACCESS_PROGRAM 0755 root:root
  service | put $UNIT.service 0644 root:root
  timer | put $UNIT.timer 0644 root:root
  systemctl daemon-reload
  systemctl -q enable --now dask-authority.timer
  [ -s $AUTHORITY/tls.pem ] || $PROGRAM advance # the first keys
  [ $changed = no ] && [ ! -e $AUTHORITY/unpublished ] || $PROGRAM renew
  # The other machines fetch their bundles in the step `keys`.
  [ ! -d $AUTHORITY/next ] || [ ! -x $OPT/credentials ] || $OPT/credentials ||
    note "could not install the bundle that the authority published for $(hostname); a later step of this up installs it"
}

make_next() {
  local kind new=$AUTHORITY/.new
  rm -rf $new $AUTHORITY/next
  install -d -m 0700 $new $new/.work
  for kind in host user; do
    ssh-keygen -q -t ed25519 -N '' -C "dask-$kind-authority" -f $new/$kind
  done
  tls_config >$new/.work/conf
  # Valid for ten years; certificates that it signs are valid for at most one. The random OU makes each authority's name
  # unique, because certificates and revocation lists refer to the authority by name.
  openssl req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -config $new/.work/conf \
    -subj "/OU=$(openssl rand -hex 8)/CN=dask authority of $CLUSTER" -keyout $new/tls.key -out $new/tls.pem \
    2>$new/.work/log || fatal "$(cat $new/.work/log)"
  chmod 0600 $new/host $new/user $new/tls.key
  touch $new/index
  (cd $new && revocations)
  rm -rf $new/.work
  mv $new $AUTHORITY/next
}

undo() {
  if [ -e $UNIT.timer ]; then
    systemctl -q disable --now dask-authority.timer
    systemctl -q stop dask-authority.service
  fi
  drop $UNIT.timer $UNIT.service $PROGRAM $ACCESS_PROGRAM
  # If the authority moved to another machine, the files of the steps `members` and `check` stayed here.
  drop $ETC/members $ETC/bounds $ETC/fixed $ETC/proven
  rm -rf $AUTHORITY $PUBLISHED
  systemctl daemon-reload
  tidy
}

exclusively main "$@" </dev/null
