# State: this machine's cluster ports are open to the cluster's network, SSH to who may use it, nothing else to anyone.
#   NETWORK       sources of the cluster's own traffic, separated by blanks:  10.1.0.0/24
#   SSH_PORT      22
#   SSH_SOURCES   further sources that may reach SSH, separated by blanks:    203.0.113.7/32
#   PORTS         the cluster's own TCP ports, separated by blanks:           8786 8787 9000-9005
#   OPEN          further ports, each with one source, separated by blanks:   9100=198.51.100.0/24
#   CLOSE_OTHERS  yes: what else listens here may be closed; no: it stops the step
#   MANAGE        yes; no: firewalls are left alone, and it is said what they must let in
# A guest on machines that people use already: it stops before it changes anything beside another firewall, or where
# somebody would be shut out. A change takes itself back after a minute, unless the step is run with `confirm` by then:
# over a new SSH connection, which is the proof that there still is a way in.

CONF=/etc/firewalld/firewalld.conf
ZONES=/etc/firewalld/zones
INSIDE=dask
OUTSIDE=dask-outside
KEPT=$BEFORE/firewall
# What a change that nobody confirmed goes back to; for the first change a link to KEPT.
FORMER=/run/daskstack-firewall
ROLLBACK=daskstack-firewall-rollback
NEEDED="TCP $SSH_PORT $PORTS to $NETWORK${SSH_SOURCES:+; $SSH_PORT to $SSH_SOURCES}${OPEN:+; ${OPEN//=/ to }}"
LEAVE="or have firewalls left alone (firewall: {manage: false}) and open there yourself: $NEEDED"

manage() {
  local found enabled active
  need nft nftables
  need python3 python3
  if [ -e $FORMER ]; then
    # This run came over a new connection.
    if in_place; then confirm; else take_back; fi
  fi
  found=$(others)
  [ -z "$found" ] || fatal "another firewall is at work:
$found
turn it off, $LEAVE"
  check_way_in
  if in_place; then
    verify
    return
  fi
  if ! running || [ "$(default_zone)" != $OUTSIDE ]; then
    if running; then check_firewalld; fi
    check_services
  fi
  enabled=$(systemctl is-enabled firewalld 2>/dev/null || true)
  enabled=${enabled:-missing}
  active=$(systemctl is-active firewalld || true)
  [ "$enabled" != masked ] || fatal "firewalld is masked here; allow it (systemctl unmask firewalld), $LEAVE"
  if ! command -v firewall-cmd >/dev/null || [ "$enabled" = masked-runtime ]; then
    systemctl -q mask --runtime firewalld # Debian starts what it installs
    need firewall-cmd firewalld
    systemctl -q unmask --runtime firewalld
  fi
  if [ -e $KEPT ]; then
    keep $FORMER "$enabled" "$active"
  else
    keep $KEPT "$enabled" "$active"
    ln -s $KEPT $FORMER
  fi
  arm
  apply
  verify
  at_exit=:
}

leave_alone() {
  local found accepted port shut=""
  undo
  found=$(
    others
    ! running || echo "firewalld is on"
  )
  [ -n "$found" ] || return 0
  accepted=$(open_ports tcp ruleset)
  for port in $SSH_PORT $PORTS; do
    # shellcheck disable=SC2086
    listed "${port%-*}" $accepted || shut+=" $port"
  done
  note "firewalls on $(hostname) are left alone:
$found
they must let in $NEEDED${shut:+"
no rule names TCP$shut: that seems to be turned away"}"
}

main() {
  if [ "${1:-}" = undo ]; then
    undo
  elif [ "$MANAGE" = yes ]; then
    manage
  else
    leave_alone
  fi
}

undo() {
  disarm
  rm -rf $FORMER $FORMER.sh $FORMER.new $KEPT.new
  # An installation that was killed.
  if [ "$(systemctl is-enabled firewalld 2>/dev/null)" = masked-runtime ]; then
    systemctl -q unmask --runtime firewalld
    systemctl -q disable firewalld 2>/dev/null || true
  fi
  if [ -e $KEPT ]; then put_back $KEPT; else tidy; fi
}

# The steps that follow run already: a confirmation must not wait for them.
if [ "${1:-}" = confirm ]; then confirm; else alone main "$@"; fi </dev/null
