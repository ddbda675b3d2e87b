# The step stops before it changes anything where somebody would be shut out.
# shellcheck shell=bash

check_way_in() {
  local address port
  read -r address _ _ port <<<"$(connection)"
  [ -n "$address" ] || return 0
  [ "$port" = "$SSH_PORT" ] ||
    fatal "this connection came in on port $port, which would be closed: the cluster's SSH port is $SSH_PORT; use that one"
  overlap "$address" "$NETWORK $SSH_SOURCES" ||
    fatal "this connection comes from $address, which would be shut out: SSH stays open to $NETWORK $SSH_SOURCES;" \
      "let it in with  firewall: {ssh: [$address/$([[ $address == *:* ]] && echo 128 || echo 32)]}"
}

# check_bound ZONES: no interface is bound to a zone of its own, where nothing of what is said here would hold.
check_bound() {
  local bound
  bound=$(awk -v ours="$(default_zone)" '
    /^[^ ]/ { zone = $1 }
    $1 == "interfaces:" && zone != ours { for (i = 2; i <= NF; i++) printf "%s (zone %s) ", $i, zone }' <<<"$1")
  [ -z "$bound" ] ||
    fatal "firewalld has network interfaces in other zones than its default one: $bound; release each with firewall-cmd" \
      "--permanent --zone=ZONE --remove-interface=INTERFACE and firewall-cmd --reload (those of NetworkManager with" \
      "nmcli connection modify NAME connection.zone ''), $LEAVE"
}

# firewalld as somebody else has set it up. It will be reloaded, and what is not permanent would be lost.
check_firewalld() {
  local zones sources
  zones=$(firewall-cmd --list-all-zones)
  check_bound "$zones"
  [ "$(plain "$zones")" = "$(plain "$(firewall-cmd --permanent --list-all-zones)")" ] ||
    fatal "firewalld has settings that a reload would drop; keep them (firewall-cmd --runtime-to-permanent) or drop" \
      "them (firewall-cmd --reload)"
  sources=$(sed -n 's/^  sources: //p' <<<"$zones" | xargs)
  ! overlap "$NETWORK" "$sources" ||
    fatal "a zone of firewalld has some of the cluster's network ($NETWORK) among its sources: $sources; take it out" \
      "there, $LEAVE"
}

check_services() {
  local port protocol process opened="" shut=""
  listening | while read -r port protocol process; do
    # shellcheck disable=SC2046,SC2086 # lists of ports
    if [ "$protocol" = tcp ] && listed "$port" "$SSH_PORT" $PORTS $(sed -E 's/=[^ ]+//g' <<<"$OPEN"); then continue; fi
    # shellcheck disable=SC2046
    listed "$port" $(reached "$protocol") || continue
    shut+=$'\n'"  $port/$protocol  $process"
    [ "$protocol" = udp ] || opened+=", {port: $port, sources: [203.0.113.0/24]}"
  done
  if [ -z "$shut" ]; then return; fi
  if [ "$CLOSE_OTHERS" = yes ]; then
    note "closed on $(hostname), to all but this machine itself:$shut"
    return
  fi
  [ -z "$opened" ] || shut+=$'\n'"open TCP to the networks that need it:  firewall: {open: [${opened#, }]}"
  fatal "what listens here would no longer be reached:$shut
close what nobody needs:  firewall: {closeOthers: true}
$LEAVE"
}
