# Functions that read this machine's firewalls and listening services.
# shellcheck shell=bash

# One line for each other firewall. Ignore address translation, which blocks nobody, and fail2ban, which blocks few.
other_firewalls() {
  local unit
  if grep -qs '^ENABLED=yes' /etc/ufw/ufw.conf; then echo "ufw is active; turn it off: ufw disable"; fi
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

# overlap NETWORKS NETWORKS: whether the two lists have an address in common. Entries that are not networks (ipsets) are
# ignored.
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

# The SSH connection that runs this step: "CLIENT PORT SERVER PORT". sudo removes the variable, but its parents have it.
connection() {
  local pid=$$
  while [ "$pid" -gt 1 ]; do
    tr '\0' '\n' <"/proc/$pid/environ" | sed -n 's/^SSH_CONNECTION=//p' | grep . && return
    pid=$(sed -n 's/^PPid:\t//p' "/proc/$pid/status")
  done
}

permanent_part() { sed -E 's/^([^ ]+) \(.*/\1/; /^  interfaces:/d' <<<"$1"; }

# open_ports PROTOCOL NFT-WORDS...: the ports and port ranges that rules accept.
open_ports() {
  local protocol=$1
  shift
  nft list "$@" | sed -nE "s/.*\b$protocol dport (\{ )?([0-9, -]*[0-9]).* accept.*/\2/p" | tr -d ' ' | tr ',' '\n'
}

# reachable_ports PROTOCOL: ports that other machines can reach now: those of firewalld's default zone if it runs, else
# all.
reachable_ports() {
  local zone
  zone=filter_IN_$(default_zone)
  if running && ! nft list chain inet firewalld "$zone" | grep '^[[:space:]]*accept$' >/dev/null; then
    open_ports "$1" chain inet firewalld "${zone}_allow"
  else
    echo 0-65535
  fi
}

# port_in PORT PORT-OR-RANGE...
port_in() {
  local port=$1 each
  shift
  for each; do
    if [ "$port" -ge "${each%-*}" ] && [ "$port" -le "${each#*-}" ]; then return; fi
  done
  return 1
}

# Services that listen to other machines, one "PORT PROTOCOL PROCESS" per line. DHCP clients, and programs that wait for
# replies on an ephemeral UDP port, need no open port.
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
