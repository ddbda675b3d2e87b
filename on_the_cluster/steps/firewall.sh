# State: the cluster's ports are open to the cluster's network, SSH is open to the listed networks, and every other port
# is closed.
#   NETWORK       sources of the cluster's own traffic, separated by spaces:       10.1.0.0/24
#   SSH_PORT      22
#   SSH_SOURCES   additional sources that may reach SSH, separated by spaces:      203.0.113.7/32
#   PORTS         TCP ports of Dask's services, separated by spaces:               8786 8787 9000-9005
#   LIBRARY_PORTS TCP ports for libraries that talk among workers; empty: closed:  32768-60999
#   OPEN          additional ports, each with one source, separated by spaces:     9100=198.51.100.0/24
#   CLOSE_OTHERS  yes: close ports on which other services listen; no: fail if there are any
#   MANAGE        yes; no: do not change firewalls, and report the ports that they must open
# This step never overrides an existing firewall, and fails before it would lock anyone out. A change rolls back after
# one minute unless the step runs again with `confirm` over a new SSH connection, which proves that SSH still works.

manage() {
  local enabled active
  need nft
  need python3
  if [ -e $PREVIOUS ]; then
    # This run uses a new connection, which confirms the previous change.
    if is_applied; then confirm; else roll_back; fi
  fi
  refuse
  if is_applied; then
    verify
    return
  fi
  enabled=$(systemctl is-enabled firewalld 2>/dev/null || true)
  enabled=${enabled:-missing}
  active=$(systemctl is-active firewalld || true)
  if ! command -v firewall-cmd >/dev/null || [ "$enabled" = masked-runtime ]; then
    systemctl -q mask --runtime firewalld # Debian starts services when it installs them
    need firewall-cmd
    systemctl -q unmask --runtime firewalld
  fi
  if [ -e $ORIGINAL ]; then
    save_state $PREVIOUS "$enabled" "$active"
  else
    save_state $ORIGINAL "$enabled" "$active"
    ln -s $ORIGINAL $PREVIOUS
  fi
  schedule_rollback
  apply
  verify
  at_exit=:
}

report_needed_ports() {
  local found accepted port closed=""
  undo
  found=$(
    other_firewalls
    ! running || echo "firewalld is active"
  )
  [ -n "$found" ] || return 0
  accepted=$(open_ports tcp ruleset)
  for port in $CLUSTER_PORTS; do
    # shellcheck disable=SC2086
    port_in "${port%-*}" $accepted || closed+=" $port"
  done
  note "not changing the firewalls on $(hostname):
$found
they must accept $NEEDED${closed:+"
found no rule that accepts TCP$closed"}"
}

main() {
  if [ "${1:-}" = undo ]; then
    undo
  elif [ "$MANAGE" = yes ]; then
    manage
  else
    report_needed_ports
  fi
}

undo() {
  cancel_rollback
  rm -rf $PREVIOUS $PREVIOUS.sh $PREVIOUS.new $ORIGINAL.new
  # An interrupted installation leaves firewalld masked.
  if [ "$(systemctl is-enabled firewalld 2>/dev/null)" = masked-runtime ]; then
    systemctl -q unmask --runtime firewalld
    systemctl -q disable firewalld 2>/dev/null || true
  fi
  if [ -e $ORIGINAL ]; then restore $ORIGINAL; else tidy; fi
}

# The next steps are already running, and a confirmation must not wait for them.
if [ "${1:-}" = confirm ]; then confirm; else exclusively main "$@"; fi </dev/null
