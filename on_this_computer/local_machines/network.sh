#!/usr/bin/env bash
# network.sh up|down|sweep|vpc: the private network of one stack's local machines.
#
#   DIRECTORY   the stack's folder, e.g. ~/.local/share/daskstack/machines/dev (created with mode 0700)
#   NAME        the stack's name, for messages
#   BOOT_ID     for `up`: identifies this computer's current boot; stored in DIRECTORY/boot
#   for `vpc`, with nftables rules on stdin that refer to the machines' interface as $machines:
#   CALLER      this computer's address as seen by the machines, e.g. 203.0.113.7
#   EXTERNAL    the machines' external addresses, the only ones at which this computer reaches them
#   GATEWAYS    the namespace's addresses in the machines' networks, with prefix lengths, e.g. 10.9.0.1/24
#   PACKAGES    folder of wheels that gateways serve on port 80 (none)
#
# `up` prints {"bridge": NAME, "network": "10.x.y.0/24", "gateway": "10.x.y.1"}. `sweep` is a `down` for leftovers of a
# killed run that are not in the stack's state: it also removes machines, and reports what it found.
#
# `vpc` creates a network like Google's instead of the one that `up` creates: machines reach each other only through the
# gateway, which applies the rules, and this computer is outside the network. It prints nothing. Called again, it
# changes only what differs.
#
# The bridge is in a network namespace of the same name, which is connected to this computer by a link with the
# gateway's address. This isolates the machines from this computer's own bridges, links and firewalls: Docker drops
# traffic across any bridge, and NetworkManager configures every link that it sees. Two stacks can have machines of the
# same name. Machines have no route out of their network.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=on_this_computer/local_machines/common.sh
source "$here/common.sh"

main() {
  [[ ${1-} != @(up|vpc) ]] || (umask 077 && mkdir -p "$DIRECTORY") # before becoming root, so that the user owns it
  become_root "DIRECTORY NAME BOOT_ID CALLER EXTERNAL GATEWAYS PACKAGES" "$@"
  need ip=iproute2 flock=util-linux
  [[ $DIRECTORY == /* ]] || fatal "DIRECTORY '$DIRECTORY' must be an absolute path"
  bridge=dask-$(hash "$DIRECTORY" | cut -c 1-8)
  record=$DIRECTORY/network
  case ${1-} in
    up) up ;;
    down) down ;;
    sweep) sweep ;;
    vpc) vpc ;;
    *) fatal "expected up, down, sweep or vpc, got '${1-}'" ;;
  esac
}

# This is a different lock from that of the steps. Any user who can open a file can lock it, so only root may open this
# one.
lock() {
  local file=/run/daskstack-network.lock
  (umask 077 && : >>$file)
  chmod 0600 $file
  exec 9>>$file
  flock -w 60 9 || fatal "timed out after 60 s waiting for another stack's network (lock: $file)"
}

hash() { printf '%s' "$1" | sha256sum; }

up() {
  local network
  lock # so that two stacks do not choose the same network
  if ! is_up || [[ ! -s $record ]]; then
    remove_link
    network=$(choose)
    # Write the record before the link is up, so that every network that is up has one.
    echo "$network" >"$record.partial"
    mv "$record.partial" "$record"
    make_link "${network%.0/24}.1/24" master "$bridge"
  fi
  network=$(<"$record")
  echo "${BOOT_ID-}" >"$DIRECTORY/boot"
  printf '{"bridge": "%s", "network": "%s", "gateway": "%s"}\n' "$bridge" "$network" "${network%.0/24}.1"
}

vpc() {
  local address
  need nft=nftables ss=iproute2
  lock
  if ! is_up; then
    remove_link
    make_link "$CALLER/32"
  fi
  ip -n "$bridge" address replace $door/32 dev host
  ip -n "$bridge" route replace "$CALLER" dev host
  ip -n "$bridge" address replace 35.235.240.1/32 dev lo # the source address of Identity-Aware Proxy tunnels
  ip -n "$bridge" link set lo up
  for address in $GATEWAYS; do ip -n "$bridge" address replace "$address" dev "$bridge"; done
  # shellcheck disable=SC2016 # the inner shell expands it
  inside sh -c 'cd /proc/sys/net/ipv4 && echo 1 >ip_forward && echo 1 >conf/all/rp_filter &&
        for each in conf/*/send_redirects; do echo 0 >"$each"; done'
  { echo "define machines = $bridge" && cat; } | inside nft -f -
  serve
  for address in $(ip route show dev "$bridge" | cut -d ' ' -f 1); do
    [[ " $EXTERNAL " == *" $address "* ]] || ip route delete "$address" dev "$bridge"
  done
  for address in $EXTERNAL; do
    [[ -n $(ip route show "$address" dev "$bridge") ]] ||
      ip route add "$address" via $door dev "$bridge" onlink src "$CALLER"
  done
}

door=169.254.0.1 # the namespace's address for this computer

inside() { nsenter --net="/run/netns/$bridge" "$@"; }

# Serve a package index, because machines cannot reach one on the internet.
serve() {
  [[ -n ${PACKAGES-} && -z $(inside ss -Hltn 'sport = 80') ]] || return 0
  inside setsid python3 -m http.server 80 --directory "$PACKAGES" </dev/null >/dev/null 2>&1 9>&- &
}

down() {
  remove_link
  end_processes
  [[ ! -e /run/netns/$bridge ]] || ip netns delete "$bridge"
  rm -f "$record" "$record.partial" "$DIRECTORY/boot"
  [[ ! -d $DIRECTORY ]] || rmdir --ignore-fail-on-non-empty "$DIRECTORY"
}

sweep() {
  local machine
  while read -r machine; do
    say "Removing machine $machine of stack $NAME, which is not in the stack's state"
    DIRECTORY=$DIRECTORY NAME=$machine BRIDGE=$bridge bash "$here/machine.sh" down </dev/null
  done < <(machines)
  [[ ! -e /sys/class/net/$bridge && ! -e /run/netns/$bridge ]] ||
    say "Removing network $bridge of stack $NAME, which is not in the stack's state"
  down
}

# List machines by their folders, including incomplete ones, and by the control groups of their processes.
machines() {
  {
    find "$DIRECTORY" -mindepth 1 -maxdepth 1 -type d -printf '%f\n' 2>/dev/null | sed 's/^\.//' || true
    find "$(findmnt -rn -o TARGET -t cgroup2 | head -n 1)" -maxdepth 1 -name "$bridge-*" -printf '%f\n' |
      sed "s/^$bridge-//"
  } | sort -u
}

is_up() { [[ -n $(ip link show dev "$bridge" up 2>/dev/null) ]]; }

end_processes() {
  local pids
  mapfile -t pids < <(ip netns pids "$bridge" 2>/dev/null)
  ((${#pids[@]} == 0)) || kill -s KILL "${pids[@]}" 2>/dev/null || true
}

# make_link ADDRESS [master BRIDGE]: create the link with this computer's ADDRESS, and attach its other end to BRIDGE.
make_link() {
  if ! ip -n "$bridge" link show lo >/dev/null 2>&1; then
    [[ ! -e /run/netns/$bridge ]] || ip netns delete "$bridge"
    ip netns add "$bridge"
  fi
  # If only the link was lost, running machines still use the bridge, so keep it. Give it a fixed MAC address: by
  # default it takes one of its machines', which changes when that machine stops.
  ip -n "$bridge" link show "$bridge" >/dev/null 2>&1 ||
    ip -n "$bridge" link add "$bridge" address "02:$(hash "$DIRECTORY" | sed 's/../&:/g' | cut -c 1-14)" up type bridge
  ip link add "$bridge" type veth peer name host netns "$bridge"
  ip -n "$bridge" link set host "${@:2}" up
  ip address add "$1" dev "$bridge"
  ip link set "$bridge" up
}

remove_link() { [[ ! -e /sys/class/net/$bridge ]] || ip link delete "$bridge"; }

# Print the stack's previous network, so that addresses survive a restart of this computer, or else a free one.
choose() {
  local network attempt digits
  if [[ -s $record ]]; then
    network=$(<"$record")
    ! taken "$network" || fatal "this computer now uses network $network of stack $NAME for something else:" \
      "$(taken_by "$network")" $'\n' "Disconnect it (a VPN?), or destroy the stack and bring it up again."
    echo "$network"
    return
  fi
  # Derive the network from the folder's name, so that it rarely collides with that of a stack that is down now.
  for attempt in {1..300}; do
    digits=$(hash "$DIRECTORY $attempt")
    case $((attempt % 3)) in # a VPN can occupy all of 10.0.0.0/8
      1) network=10.$((16#${digits:0:2})).$((16#${digits:2:2})).0/24 ;;
      2) network=172.$((16 + 16#${digits:0:1})).$((16#${digits:2:2})).0/24 ;;
      0) network=192.168.$((16#${digits:2:2})).0/24 ;;
    esac
    if ! taken "$network"; then
      echo "$network"
      return
    fi
  done
  fatal "found no free private /24 network: every candidate overlaps a route in 'ip route show table all'"
}

taken() { [[ -n $(taken_by "$1") ]]; }

# taken_by NETWORK: routes within NETWORK and routes that cover it, in any table. Ignore default routes, and the halves
# and quarters of the address space that VPNs use instead.
taken_by() {
  { ip -4 route show table all root "$1" && ip -4 route show table all match "$1"; } |
    grep -Ev '^([a-z]+ )?(default|[0-9.]+/[1-7]) ' || true
}

main "$@"
