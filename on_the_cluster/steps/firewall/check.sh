# Checks that fail before the step changes anything, if the change would lock someone out.
# shellcheck shell=bash

refuse() {
  local found
  found=$(other_firewalls)
  [ -z "$found" ] || fatal "another firewall is active:
$found
turn it off, $UNMANAGED"
  check_ssh_access
  if is_applied; then return; fi
  if ! running || [ "$(default_zone)" != $OUTSIDE ]; then
    if running; then check_firewalld; fi
    check_services
  fi
  [ "$(systemctl is-enabled firewalld 2>/dev/null)" != masked ] ||
    fatal "firewalld is masked; unmask it (systemctl unmask firewalld), $UNMANAGED"
}

check_ssh_access() {
  local address port
  read -r address _ _ port <<<"$(connection)"
  [ -n "$address" ] || return 0
  [ "$port" = "$SSH_PORT" ] ||
    fatal "this connection uses port $port, which would be closed; connect to the cluster's SSH port, $SSH_PORT"
  overlap "$address" "$NETWORK $SSH_SOURCES" ||
    fatal "this connection comes from $address, which would be locked out: SSH will be open to $NETWORK $SSH_SOURCES;" \
      "allow it with  firewall: {ssh: [$address/$([[ $address == *:* ]] && echo 128 || echo 32)]}"
}

# check_bound ZONES: no interface may be bound to another zone, where our rules would not apply.
check_bound() {
  local bound
  bound=$(awk -v ours="$(default_zone)" '
    /^[^ ]/ { zone = $1 }
    $1 == "interfaces:" && zone != ours { for (i = 2; i <= NF; i++) printf "%s (zone %s) ", $i, zone }' <<<"$1")
  [ -z "$bound" ] ||
    fatal "firewalld has network interfaces outside its default zone: $bound; release each with firewall-cmd" \
      "--permanent --zone=ZONE --remove-interface=INTERFACE and firewall-cmd --reload (those of NetworkManager with" \
      "nmcli connection modify NAME connection.zone ''), $UNMANAGED"
}

# Check a firewalld that someone else configured. This step reloads it, which drops settings that are not permanent.
check_firewalld() {
  local zones sources
  zones=$(firewall-cmd --list-all-zones)
  check_bound "$zones"
  [ "$(permanent_part "$zones")" = "$(permanent_part "$(firewall-cmd --permanent --list-all-zones)")" ] ||
    fatal "firewalld has settings that a reload would drop; make them permanent (firewall-cmd --runtime-to-permanent)" \
      "or drop them (firewall-cmd --reload)"
  sources=$(sed -n 's/^  sources: //p' <<<"$zones" | xargs)
  ! overlap "$NETWORK" "$sources" ||
    fatal "a firewalld zone already has sources in the cluster's network ($NETWORK): $sources; remove them there," \
      "$UNMANAGED"
}

check_services() {
  local port protocol process opened="" closed=""
  listening | while read -r port protocol process; do
    # shellcheck disable=SC2046,SC2086 # lists of ports
    if [ "$protocol" = tcp ] && port_in "$port" "$SSH_PORT" $PORTS $(sed -E 's/=[^ ]+//g' <<<"$OPEN"); then continue; fi
    # shellcheck disable=SC2046
    port_in "$port" $(reachable_ports "$protocol") || continue
    closed+=$'\n'"  $port/$protocol  $process"
    [ "$protocol" = udp ] || opened+=", {port: $port, sources: [203.0.113.0/24]}"
  done
  if [ -z "$closed" ]; then return; fi
  if [ "$CLOSE_OTHERS" = yes ]; then
    note "closed on $(hostname), except to the machine itself:$closed"
    return
  fi
  [ -z "$opened" ] || closed+=$'\n'"open TCP ports to the networks that need them:  firewall: {open: [${opened#, }]}"
  fatal "these services would no longer be reachable:$closed
close those that nobody needs:  firewall: {closeOthers: true}
$UNMANAGED"
}
