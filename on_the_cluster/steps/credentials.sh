# State: the cluster's user can log in from this machine to every other and vice versa, without a password or a prompt.
# Host keys are verified. The machine has its TLS certificate.
#   ADDRESS              this machine's address in the cluster's network
#   SSH_PORT             22
#   TUNNEL               targets of clients' tunnels, e.g. "10.1.0.10:8786 10.1.0.10:8787"; empty except on the
#                        scheduler's machine
#   AUTHORITY_ADDRESS    the authority's machine, from which this one fetches bundles; empty on the authority itself
#   HOST_AUTHORITY       the authority's public key; bundles without its signature are rejected
#   BUNDLE               the bundle that the authority published for this machine
#   NAME                 this machine's name
# Afterwards a timer fetches new bundles: renewed certificates and revocation lists.

SSHD=/etc/ssh/sshd_config.d/60-daskstack.conf
SSH=$ETC/ssh
TLS=$ETC/tls
TUNNEL_USER=dask-tunnel
TUNNEL_HOME=$VAR/tunnel # does not exist
PROGRAM=$OPT/credentials
UNIT=/etc/systemd/system/dask-credentials
FETCHED=$ETC/fetched # the last bundle; readable by root only
NEXT=$ETC/next       # keys that the step `keys` created and that have no certificates yet

ssh_config() {
  cat <<CONF
Host *
    BatchMode yes
    Port $SSH_PORT
    User $CLUSTER_USER
    IdentityFile $SSH/id_ed25519
    IdentitiesOnly yes
    StrictHostKeyChecking yes
    UserKnownHostsFile $SSH/known_hosts
    RevokedHostKeys $SSH/revoked
    GlobalKnownHostsFile none
    HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com
    Ciphers ^aes128-gcm@openssh.com
    ConnectTimeout 10
    ServerAliveInterval 5
    ServerAliveCountMax 2
CONF
}

main() {
  if [ "${1:-}" = undo ]; then
    undo
    return
  fi
  grep -qiE '^ *Include +/etc/ssh/sshd_config\.d/' /etc/ssh/sshd_config ||
    fatal "/etc/ssh/sshd_config does not include /etc/ssh/sshd_config.d/*.conf; make that Include its first line"
  [ -z "$TUNNEL" ] || tunnel_user
  session | put $SSH/session 0755 root:root
  install -d -m 0755 $OPT
  install -d -m 0700 $FETCHED
  exec 8<$FETCHED
  flock --wait 120 8 # the timer may be fetching a bundle
  echo "authority namespaces=\"daskstack\" $HOST_AUTHORITY" | put $SSH/authorities 0644 root:root
  printf '%s' "$BUNDLE" >$FETCHED/given
  take $FETCHED/given
  mv --no-clobber $FETCHED/given $FETCHED/bundle
  rm -f $FETCHED/given
  sshd_config | put $SSHD 0600 root:root
  local sshd_changed=$changed
  ssh_config | put $SSH/config 0644 root:root
  printf '#!/bin/sh\nexec ssh -F %s "$@"\n' $SSH/config | put $SSH/ssh 0755 root:root
  # A plain "ssh ADDRESS" by the cluster's user or a task then uses the same configuration.
  echo "Include $SSH/config" | put $CLUSTER_HOME/.ssh/config 0644 root:root
  if [ "$sshd_changed" = yes ]; then
    sshd -t || { # with an invalid configuration, the next restart of sshd would lock everyone out
      drop $SSHD
      fatal "sshd rejects our settings in combination with /etc/ssh/sshd_config; its error message is above"
    }
    reload_sshd
  fi
  verify_rules $CLUSTER_USER "forcecommand $SSH/session"
  [ -z "$TUNNEL" ] ||
    verify_rules $TUNNEL_USER "disableforwarding no" "allowtcpforwarding local" "allowstreamlocalforwarding no" \
      "permitopen $TUNNEL" "exposeauthinfo yes" "forcecommand /usr/bin/python3 -I $OPT/jobs/jobs_door.py"
  [ -n "$TUNNEL" ] || remove_tunnel_user # after a move of the scheduler
  program | put $PROGRAM 0755 root:root
  service | put $UNIT.service 0644 root:root
  timer | put $UNIT.timer 0644 root:root
  systemctl daemon-reload
  systemctl -q enable --now dask-credentials.timer
  reach 20 "$ADDRESS" "its own machine"
  [ -z "$AUTHORITY_ADDRESS" ] || reach 30 "$AUTHORITY_ADDRESS" "the scheduler's machine"
}

# The program that the timer runs as root.
program() {
  echo '#!/bin/bash'
  echo 'set -euo pipefail'
  echo 'shopt -s lastpipe'
  # This is not a step, so it must not mark anything as unfinished.
  echo 'UNFINISHED=/dev/null changed=no'
  declare -p NAME ADDRESS SSH_PORT AUTHORITY_ADDRESS CLUSTER_USER CLUSTER_HOME ETC SSH TLS FETCHED NEXT
  declare -f fatal printable label put fetch take matches_keys replace_keys move ssh_is_for tls_is_for
  declare -f reload_sshd listening answers wait_for
  echo fetch
}

service() {
  cat <<CONF
[Unit]
Description=Fetches this machine's certificates in the Dask cluster
After=network-online.target
Wants=network-online.target

[Service]
Type=oneshot
ExecStart=$PROGRAM
TimeoutStartSec=120
PrivateTmp=yes
ProtectHome=yes
CONF
}

timer() {
  cat <<CONF
[Unit]
Description=Fetches this machine's certificates in the Dask cluster

[Timer]
OnBootSec=10s
OnUnitActiveSec=5min
RandomizedDelaySec=20s

[Install]
WantedBy=timers.target
CONF
}

undo() {
  if [ -e $UNIT.timer ]; then
    systemctl -q disable --now dask-credentials.timer
    systemctl -q stop dask-credentials.service
  fi
  drop $UNIT.timer $UNIT.service $PROGRAM
  systemctl daemon-reload
  drop $SSHD $SSH/host-cert.pub $SSH/user-authority.pub $SSH/known_hosts $SSH/config $SSH/ssh $SSH/session
  drop $SSH/authorities $SSH/revoked $SSH/id_ed25519-cert.pub $TLS/authority.pem $TLS/certificate.pem
  rm -rf $FETCHED
  drop $CLUSTER_HOME/.ssh/config
  reload_sshd
  remove_tunnel_user
  tidy
}

exclusively main "$@" </dev/null
