# What sshd allows the cluster's user and the tunnels of clients.
# shellcheck shell=bash

# accepts USER: the machine's own AllowUsers, AllowGroups and AuthenticationMethods would reject the user, and USER has a
# group with the same name.
accepts() {
  cat <<CONF
AllowUsers $1
    AllowGroups $1
    PubkeyAuthentication yes
    PubkeyAcceptedAlgorithms ssh-ed25519-cert-v01@openssh.com
    CASignatureAlgorithms ssh-ed25519
    AuthenticationMethods publickey
CONF
}

sshd_config() {
  cat <<CONF
HostCertificate $SSH/host-cert.pub
# Many machines connect at the same time when they mount the shared directory.
MaxStartups 300:30:600
# Only for this user: a certificate must not allow logins as anyone else.
Match User $CLUSTER_USER
    $(accepts $CLUSTER_USER)
    TrustedUserCAKeys $SSH/user-authority.pub
    RevokedKeys $SSH/revoked
    AuthorizedKeysFile none
    AuthorizedKeysCommand none
    PasswordAuthentication no
    KbdInteractiveAuthentication no
    GSSAPIAuthentication no
    HostbasedAuthentication no
    # Sessions must have no more privileges than Dask's systemd units.
    ForceCommand $SSH/session
    PermitUserRC no
    PermitTunnel no
    AllowAgentForwarding no
    X11Forwarding no
Match all
CONF
  [ -z "$TUNNEL" ] || cat <<CONF
# Clients can open tunnels to Dask. Their sessions can only manage jobs.
Match User $TUNNEL_USER
    $(accepts $TUNNEL_USER)
    TrustedUserCAKeys $SSH/user-authority.pub
    RevokedKeys $SSH/revoked
    AuthorizedKeysFile none
    PasswordAuthentication no
    KbdInteractiveAuthentication no
    AuthorizedKeysCommand none
    GSSAPIAuthentication no
    HostbasedAuthentication no
    DisableForwarding no
    AllowTcpForwarding local
    PermitOpen $TUNNEL
    PermitListen none
    AllowStreamLocalForwarding no
    AllowAgentForwarding no
    X11Forwarding no
    PermitTunnel no
    PermitTTY no
    PermitUserRC no
    ExposeAuthInfo yes
    ForceCommand /usr/bin/python3 -I $OPT/jobs/jobs_door.py
    # Access that is revoked ends tunnels, which it finds by this log.
    LogLevel INFO
Match all
CONF
}

# verify_rules USER RULE...: for each rule, sshd uses the first that it finds, and another can precede ours.
verify_rules() {
  local user=$1 rules rule
  rules=$(sshd -T -C "user=$user,host=$(hostname),addr=$ADDRESS")
  shift
  for rule; do
    grep -qixF "$rule" <<<"$rules" ||
      fatal "another rule of sshd precedes ours for the user $user: '$(grep -i "^${rule%% *} " <<<"$rules")' instead of" \
        "'$rule'; in /etc/ssh/sshd_config and in the files before $SSHD, except $user from it or move it to their end"
  done
}

# reach SECONDS ADDRESS MACHINE: wait until the cluster's user can log in at ADDRESS.
reach() {
  local end=$((SECONDS + $1)) said
  until said=$(within=15 as_cluster_user $SSH/ssh "$2" true 2>&1); do
    [ "$SECONDS" -lt "$end" ] ||
      fatal "user $CLUSTER_USER cannot log in to $3 after $1 s; try: sudo -u $CLUSTER_USER ssh $2\
${said:+$'\n'"ssh: "${said##*$'\n'}}$([ "$2" != "$ADDRESS" ] || what_sshd_said)"
    sleep 0.5
  done
}

what_sshd_said() {
  journalctl --sync || true
  { journalctl -q -o cat --since=-30s -t sshd -t sshd-session || true; } | grep -F "$CLUSTER_USER" |
    grep -vE '^(Connection|Disconnected|Received)' | tail -n 2 | sed "s/^/\nsshd: /" || true
}

tunnel_user_is_ours() { [ "$(getent passwd $TUNNEL_USER | cut -d: -f6)" = $TUNNEL_HOME ]; }

tunnel_user() {
  if ! id $TUNNEL_USER >/dev/null 2>&1; then
    useradd --system --user-group --no-create-home --home-dir $TUNNEL_HOME --shell /bin/sh --password '*' \
      --comment "Tunnels to Dask" $TUNNEL_USER
  elif ! tunnel_user_is_ours; then
    fatal "user '$TUNNEL_USER' already exists and does not belong to this cluster; rename it or use another machine"
  fi
  # sshd runs ForceCommand with the shell.
  [ "$(getent passwd $TUNNEL_USER | cut -d: -f7)" = /bin/sh ] || usermod --shell /bin/sh $TUNNEL_USER
}

remove_tunnel_user() {
  tunnel_user_is_ours || return 0
  usermod --expiredate 1 $TUNNEL_USER # rejects new connections
  wait_for 20 "connections of user $TUNNEL_USER to end" end_tunnels
  userdel $TUNNEL_USER
}

end_tunnels() { ! pkill -KILL -U $TUNNEL_USER; }

# The program that sshd runs for each session. No set-user-ID program can raise the session's privileges.
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

# The unit is `ssh` on Debian and Ubuntu, and `sshd` elsewhere. A socket-activated sshd reads its configuration on every
# start. A reload begins after a short delay, and sshd then briefly does not listen, so wait: the next step has to
# connect.
reload_sshd() {
  local unit before
  before=$(listening)
  for unit in ssh sshd; do
    if systemctl is-active -q $unit; then
      systemctl reload $unit
      for _ in {1..15}; do # a socket that systemd owns does not change
        [ "$(listening)" = "$before" ] || break
        sleep 0.2
      done
      wait_for 20 "sshd to answer on $ADDRESS after its reload; see journalctl -u $unit" answers
      return
    fi
  done
}

listening() { ss -Hltne "sport = :$SSH_PORT" | grep -o 'ino:[0-9]*' || true; } 2>/dev/null

answers() { (exec 3<>"/dev/tcp/$ADDRESS/$SSH_PORT"); }
