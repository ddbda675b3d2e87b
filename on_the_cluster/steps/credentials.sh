# State: from this machine the cluster's user reaches every other machine, and is reached from it, without a password
# or a prompt; host keys are verified; the machine has its TLS certificate.
#   ADDRESS              this machine's address in the cluster's network
#   SSH_PORT             22
#   TUNNEL               what clients may reach through this machine, such as "10.1.0.10:8786 10.1.0.10:8787"; empty on
#                        all machines but the scheduler's
#   AUTHORITY_ADDRESS    the authority's machine, from which this one fetches; empty on the authority itself
#   HOST_AUTHORITY       the authority's public key: what it did not sign is not installed
#   BUNDLE               what it has signed and published for this machine
#   NAME                 this machine
# From then on a timer fetches what the authority publishes: renewed certificates, and what is revoked.

SSHD=/etc/ssh/sshd_config.d/60-daskstack.conf
SSH=$ETC/ssh
TLS=$ETC/tls
TUNNEL_USER=dask-tunnel
TUNNEL_HOME=$VAR/tunnel # it does not exist
PROGRAM=$OPT/credentials
UNIT=/etc/systemd/system/dask-credentials
FETCHED=$ETC/fetched # root's alone: what was fetched last
NEXT=$ETC/next       # keys of the step `keys` that wait for their certificates

sshd_config() {
  cat <<CONF
HostCertificate $SSH/host-cert.pub
# Many machines meet one at once, when they mount from it.
MaxStartups 100:30:300
# Only here: a certificate must open no other user's door.
Match User $CLUSTER_USER
    TrustedUserCAKeys $SSH/user-authority.pub
    RevokedKeys $SSH/revoked
    AuthorizedKeysFile none
    AuthorizedKeysCommand none
    PasswordAuthentication no
    KbdInteractiveAuthentication no
    GSSAPIAuthentication no
    HostbasedAuthentication no
    # A session must not be a way out of what the units of Dask forbid.
    ForceCommand $SSH/session
    PermitUserRC no
    PermitTunnel no
    AllowAgentForwarding no
    X11Forwarding no
Match all
CONF
  [ -z "$TUNNEL" ] || cat <<CONF
# Clients get connections to Dask, and no session.
Match User $TUNNEL_USER
    TrustedUserCAKeys $SSH/user-authority.pub
    RevokedKeys $SSH/revoked
    AuthorizedKeysFile none
    PasswordAuthentication no
    KbdInteractiveAuthentication no
    AuthorizedKeysCommand none
    GSSAPIAuthentication no
    HostbasedAuthentication no
    AllowTcpForwarding local
    PermitOpen $TUNNEL
    PermitListen none
    AllowStreamLocalForwarding no
    AllowAgentForwarding no
    X11Forwarding no
    PermitTunnel no
    PermitTTY no
    PermitUserRC no
    MaxSessions 0
    ForceCommand /bin/false
Match all
CONF
}

tunnel_user_is_ours() { [ "$(getent passwd $TUNNEL_USER | cut -d: -f6)" = $TUNNEL_HOME ]; }

tunnel_user() {
  if ! id $TUNNEL_USER >/dev/null 2>&1; then
    useradd --system --user-group --no-create-home --home-dir $TUNNEL_HOME --shell /usr/sbin/nologin \
      --comment "Tunnels to Dask" $TUNNEL_USER
  elif ! tunnel_user_is_ours; then
    fatal "a user '$TUNNEL_USER' exists already and is not the cluster's; rename it or use another machine"
  fi
}

remove_tunnel_user() {
  tunnel_user_is_ours || return 0
  usermod --expiredate 1 $TUNNEL_USER # no new connection from here on
  wait_for 20 "connections of user $TUNNEL_USER end" tunnels_end
  userdel $TUNNEL_USER
}

tunnels_end() { ! pkill -KILL -U $TUNNEL_USER; }

# What sshd runs for each session: no set-user-id program gives more rights than the cluster's user has.
session() {
  cat <<PROGRAM
#!/bin/sh
case \${SSH_ORIGINAL_COMMAND-} in
  '') set -- /bin/bash -l ;;
  internal-sftp*)
    for program in /usr/lib/openssh /usr/libexec/openssh /usr/lib/ssh; do
      [ ! -x \$program/sftp-server ] || set -- \$program/sftp-server
    done
    ;;
  *) set -- /bin/sh -c "\$SSH_ORIGINAL_COMMAND" ;;
esac
exec /usr/bin/setpriv --no-new-privs "\$@"
PROGRAM
}

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

reaches() { within=15 as_cluster_user $SSH/ssh "$1" true; }

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
  flock --wait 120 8 # the timer's own fetch
  echo "authority namespaces=\"daskstack\" $HOST_AUTHORITY" | put $SSH/authorities 0644 root:root
  printf '%s' "$BUNDLE" >$FETCHED/given
  take $FETCHED/given
  mv --no-clobber $FETCHED/given $FETCHED/bundle
  rm -f $FETCHED/given
  sshd_config | put $SSHD 0600 root:root
  local sshd_changed=$changed
  ssh_config | put $SSH/config 0644 root:root
  printf '#!/bin/sh\nexec ssh -F %s "$@"\n' $SSH/config | put $SSH/ssh 0755 root:root
  # So that a plain "ssh ADDRESS" of the cluster's user, a task's too, does the same.
  echo "Include $SSH/config" | put $CLUSTER_HOME/.ssh/config 0644 root:root
  if [ "$sshd_changed" = yes ]; then
    sshd -t || { # or the next restart of sshd would close the machine's door
      drop $SSHD
      fatal "sshd does not take our settings together with /etc/ssh/sshd_config; its complaint is above"
    }
    reload_sshd
  fi
  [ -n "$TUNNEL" ] || remove_tunnel_user # after a move of the scheduler
  program | put $PROGRAM 0755 root:root
  service | put $UNIT.service 0644 root:root
  timer | put $UNIT.timer 0644 root:root
  systemctl daemon-reload
  systemctl -q enable --now dask-credentials.timer
  wait_for 20 "the cluster's user reaches its own machine; try: sudo -u $CLUSTER_USER ssh $ADDRESS" reaches "$ADDRESS"
  [ -z "$AUTHORITY_ADDRESS" ] ||
    wait_for 30 "the cluster's user reaches the authority; try: sudo -u $CLUSTER_USER ssh $AUTHORITY_ADDRESS" \
      reaches "$AUTHORITY_ADDRESS"
}

# Runs by itself, as root.
program() {
  echo '#!/bin/bash'
  echo 'set -euo pipefail'
  echo 'shopt -s lastpipe'
  # Not a step: it leaves nothing unfinished for the next one.
  echo 'UNFINISHED=/dev/null changed=no'
  declare -p NAME ADDRESS SSH_PORT AUTHORITY_ADDRESS CLUSTER_USER CLUSTER_HOME ETC SSH TLS FETCHED NEXT
  declare -f fatal printable put fetch take belongs replace_keys move ssh_is_for tls_is_for
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

# The unit is ssh on Debian and Ubuntu, sshd elsewhere; an sshd that a socket starts reads its config every time.
# It takes a moment before it even begins to, and then does not listen: the next step must not meet a closed door.
reload_sshd() {
  local unit before
  before=$(listening)
  for unit in ssh sshd; do
    if systemctl is-active -q $unit; then
      systemctl reload $unit
      for _ in {1..15}; do # a socket that systemd holds stays the same
        [ "$(listening)" = "$before" ] || break
        sleep 0.2
      done
      wait_for 20 "sshd answers on $ADDRESS again after its reload; see: journalctl -u $unit" answers
      return
    fi
  done
}

listening() { ss -Hltne "sport = :$SSH_PORT" | grep -o 'ino:[0-9]*' || true; } 2>/dev/null

answers() { (exec 3<>"/dev/tcp/$ADDRESS/$SSH_PORT"); }

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

alone main "$@" </dev/null
