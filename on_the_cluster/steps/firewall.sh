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

inside() {
  local source port
  echo '<?xml version="1.0" encoding="utf-8"?>'
  echo '<zone>'
  echo '  <short>Dask cluster</short>'
  for source in $NETWORK; do echo "  <source address=\"$source\"/>"; done
  for port in $SSH_PORT $PORTS; do echo "  <port port=\"$port\" protocol=\"tcp\"/>"; done
  echo '</zone>'
}

rule() {
  local family=ipv4
  case $2 in *:*) family=ipv6 ;; esac
  echo "  <rule family=\"$family\"><source address=\"$2\"/><port port=\"$1\" protocol=\"tcp\"/><accept/></rule>"
}

outside() {
  local source open
  echo '<?xml version="1.0" encoding="utf-8"?>'
  echo '<zone>'
  echo '  <short>Outside the Dask cluster</short>'
  for source in $SSH_SOURCES; do rule "$SSH_PORT" "$source"; done
  for open in $OPEN; do rule "${open%%=*}" "${open#*=}"; done
  echo '</zone>'
}

default_zone() { sed -n 's/^DefaultZone=//p' $CONF 2>/dev/null || true; }

set_default_zone() { sed -i "s/^DefaultZone=.*/DefaultZone=$1/" $CONF; }

running() { systemctl -q is-active firewalld; }

in_place() {
  running && systemctl -q is-enabled firewalld && [ "$(default_zone)" = $OUTSIDE ] &&
    inside | cmp -s - $ZONES/$INSIDE.xml && outside | cmp -s - $ZONES/$OUTSIDE.xml
}

# Other firewalls, a line each. Rules that only translate addresses shut nobody out, and fail2ban's shut out few.
others() {
  local unit
  if grep -qs '^ENABLED=yes' /etc/ufw/ufw.conf; then echo "ufw is on; turn it off: ufw disable"; fi
  for unit in nftables iptables ip6tables netfilter-persistent; do
    if systemctl -q is-enabled $unit 2>/dev/null || systemctl -q is-active $unit; then
      echo "$unit.service loads rules; turn it off: systemctl disable --now $unit"
    fi
  done
  if command -v nft >/dev/null; then
    nft -s list ruleset | awk '
      $1 == "table" { table = $2 " " $3; whose = "" }
      $1 == "chain" { chain = $2; if (chain ~ /^DOCKER/) whose = " of Docker"; if (chain ~ /^ufw/) whose = " of ufw" }
      /(^|[[:space:]"])(drop|reject|DROP|REJECT)([[:space:];"]|$)/ && table !~ / (firewalld|daskstack)$/ && chain !~ /^f2b-/ { rules[table] = 1 }
      { owner[table] = owner[table] ? owner[table] : whose }
      END { for (each in rules) printf "nftables table %s has rules%s\n", each, owner[each] }' | sort
  fi
  if { iptables-legacy-save && ip6tables-legacy-save; } 2>/dev/null | grep -v ' f2b-' | grep -E ' (DROP|REJECT)\b' >/dev/null; then
    echo "iptables (legacy) has rules"
  fi
}

# overlap NETWORKS NETWORKS: whether they have an address in common. What is no network (an ipset) has none.
overlap() {
  python3 - "$@" <<'END'
import contextlib, ipaddress, sys
networks = [[], []]
for found, text in zip(networks, sys.argv[1:]):
    for each in text.split():
        with contextlib.suppress(ValueError):
            found.append(ipaddress.ip_network(each.partition("%")[0], strict=False))
sys.exit(not any(a.version == b.version and a.overlaps(b) for a in networks[0] for b in networks[1]))
END
}

# The SSH connection over which this runs: "CLIENT PORT SERVER PORT". sudo drops the variable, its parents have it.
connection() {
  local pid=$$
  while [ "$pid" -gt 1 ]; do
    tr '\0' '\n' <"/proc/$pid/environ" | sed -n 's/^SSH_CONNECTION=//p' | grep . && return
    pid=$(sed -n 's/^PPid:\t//p' "/proc/$pid/status")
  done
}

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

plain() { sed -E 's/^([^ ]+) \(.*/\1/; /^  interfaces:/d' <<<"$1"; }

# open_ports PROTOCOL NFT-WORDS...: ports and ranges that rules accept.
open_ports() {
  local protocol=$1
  shift
  nft list "$@" | sed -nE "s/.*\b$protocol dport (\{ )?([0-9, -]*[0-9]).* accept.*/\2/p" | tr -d ' ' | tr ',' '\n'
}

# Ports that others reach now: all, or where firewalld runs those of its default zone.
reached() {
  local zone
  zone=filter_IN_$(default_zone)
  if running && ! nft list chain inet firewalld "$zone" | grep '^[[:space:]]*accept$' >/dev/null; then
    open_ports "$1" chain inet firewalld "${zone}_allow"
  else
    echo 0-65535
  fi
}

# listed PORT PORT-OR-RANGE...
listed() {
  local port=$1 each
  shift
  for each; do
    if [ "$port" -ge "${each%-*}" ] && [ "$port" -le "${each#*-}" ]; then return; fi
  done
  return 1
}

# What listens to others, "PORT PROTOCOL PROCESS" each. DHCP clients and programs that wait for an answer to what they
# sent (UDP, on a port that the kernel chose) need no open port.
listening() {
  local first last
  read -r first last </proc/sys/net/ipv4/ip_local_port_range
  ss -Hltnup | awk -v first="$first" -v last="$last" '
    { address = port = $5; sub(/:[^:]*$/, "", address); sub(/.*:/, "", port); port += 0 }
    { process = match($0, /\(\("[^"]+/) ? substr($0, RSTART + 3, RLENGTH - 3) : "the-kernel" }
    address ~ /^127\.|^\[::1\]|^\[::ffff:127\.|%lo$/ { next }
    $1 == "udp" && (port == 68 || port == 546) { next }
    $1 == "udp" && process != "the-kernel" && port >= first && port <= last { next }
    { print port, $1, process }' | sort -k 1,1n -k 2,3 -u
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

# keep FOLDER ENABLED ACTIVE: what put_back needs.
keep() {
  local zone
  rm -rf "$1" "$1.new"
  install -d -m 0755 $VAR
  install -d -m 0700 "$BEFORE" "$1.new"
  echo "$2 $3 $(default_zone)" >"$1.new/state"
  for zone in $INSIDE $OUTSIDE; do
    if [ -e "$ZONES/$zone.xml" ]; then cp -p "$ZONES/$zone.xml" "$1.new"; fi
  done
  mv "$1.new" "$1"
}

# put_back FOLDER: firewalld is as it was when FOLDER was made, which goes.
put_back() {
  local folder enabled active default zone
  folder=$(readlink -f "$1")
  read -r enabled active default <"$folder/state" || return 0
  for zone in $INSIDE $OUTSIDE; do
    drop "$ZONES/$zone.xml"
    if [ -e "$folder/$zone.xml" ]; then cp -p "$folder/$zone.xml" $ZONES; fi
  done
  if [ -e $CONF ]; then set_default_zone "$default"; fi
  if command -v firewall-cmd >/dev/null; then
    if [ "$enabled" = enabled ]; then systemctl -q enable firewalld; else systemctl -q disable firewalld; fi
    if [ "$active" != active ]; then
      systemctl stop firewalld
    elif running; then
      firewall-cmd -q --reload
    else
      systemctl start firewalld
    fi
  fi
  rm -rf "$folder" $FORMER $FORMER.sh
  tidy
}

# The change that follows goes back in a minute, and at once where the step fails.
arm() {
  {
    declare -p CONF ZONES INSIDE OUTSIDE FORMER BEFORE VAR ETC OPT
    declare -f put_back set_default_zone running drop tidy
    echo "put_back $FORMER"
  } >$FORMER.sh
  systemd-run -q --collect --on-active=60 --timer-property=AccuracySec=1 --unit=$ROLLBACK bash "$FORMER.sh"
  at_exit=take_back
}

take_back() {
  disarm
  put_back $FORMER
}

disarm() {
  systemctl stop $ROLLBACK.timer 2>/dev/null || true
  while systemctl -q is-active $ROLLBACK.service; do sleep 0.2; done
}

apply() {
  local was_running=no
  if running; then was_running=yes; fi
  outside | put $ZONES/$OUTSIDE.xml 0644 root:root
  inside | put $ZONES/$INSIDE.xml 0644 root:root
  set_default_zone $OUTSIDE
  systemctl -q enable --now firewalld ||
    fatal "firewalld does not start: $(journalctl -u firewalld -n 5 --no-pager -o cat)"
  if [ $was_running = yes ]; then firewall-cmd -q --reload; fi
}

verify() {
  local zones port want have
  # On a busy machine it is running before it can be asked.
  wait_for 20 "firewalld answers; see journalctl -u firewalld" firewall-cmd --state
  zones=$(firewall-cmd --list-all-zones)
  want=$(for port in $SSH_PORT $PORTS; do echo "$port/tcp"; done | sort)
  have=$(sed -n "/^$INSIDE (active)/,/^$/s/^  ports: //p" <<<"$zones" | tr ' ' '\n' | sort)
  [ "$want" = "$have" ] ||
    fatal "firewalld has the ports '${have//$'\n'/ }' open to the cluster, not '${want//$'\n'/ }'; see journalctl -u firewalld"
  check_bound "$zones"
}

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

confirm() {
  disarm
  if ! in_place; then
    note "the firewall of $(hostname) is not as this step made it: taken back after a minute, or changed since"
    exit 3
  fi
  rm -rf $FORMER $FORMER.sh
}

leave_alone() {
  local found accepted port shut=""
  undo
  found=$(others; ! running || echo "firewalld is on")
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
