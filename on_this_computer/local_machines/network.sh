#!/usr/bin/env bash
# network.sh up|down|sweep|vpc: the private network of one stack's local machines.
#
#   DIRECTORY   the stack's own folder, e.g. ~/.local/share/daskstack/machines/dev (made, 0700)
#   NAME        the stack's name, for messages
#   BOOT_ID     for `up`: which start of this computer the network is made in; kept in DIRECTORY/boot
#   for `vpc`, with nftables' rules on stdin, in which $machines is the interface that they are behind:
#   CALLER      this computer's address as machines see it, e.g. 203.0.113.7
#   EXTERNAL    the machines' external addresses, this computer's only way to them
#   GATEWAYS    as which machines know the namespace, each with the length of its network, e.g. 10.9.0.1/24
#   PACKAGES    folder of wheels, which gateways show on port 80 (none)
#
# `up` prints {"bridge": NAME, "network": "10.x.y.0/24", "gateway": "10.x.y.1"}. `sweep` is a `down` for what a killed
# run left and the stack's state does not know: it takes machines away too, and says what it found.
#
# `vpc` makes a network like Google's in place of that of `up`: each machine reaches the others by its gateway alone,
# where the rules hold, and this computer is outside. It prints nothing; called again, it changes what differs.
#
# The bridge is in a network namespace of the same name, joined to this computer by a link that carries the
# gateway's address. So nothing that this computer does with bridges, links and firewalls of its own (Docker
# drops what crosses any bridge, NetworkManager configures links that it sees) reaches the machines, and two
# stacks can have machines of the same name. Machines get no route out of their network.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=on_this_computer/local_machines/common.sh
source "$here/common.sh"

main() {
  [[ ${1-} != @(up|vpc) ]] || (umask 077 && mkdir -p "$DIRECTORY") # before becoming root: it is the user's
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
    *) fatal "expected 'up' or 'down', got '${1-}'" ;;
  esac
}

# Not the file that steps lock on a machine. Every user who can open a file can hold its lock, so it is root's alone.
lock() {
  local file=/run/daskstack-network.lock
  (umask 077 && : >>$file)
  chmod 0600 $file
  exec 9>>$file
  flock -w 60 9 || fatal "waited 60 s for another stack's network (lock: $file)"
}

hash() { printf '%s' "$1" | sha256sum; }

up() {
  local network
  lock # two stacks must not choose the same network
  if ! is_up || [[ ! -s $record ]]; then
    remove_link
    network=$(choose)
    # Renamed, and before the link is up: what is up has its record.
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
  ip -n "$bridge" address replace 35.235.240.1/32 dev lo # from where tunnels of Identity-Aware Proxy come
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

door=169.254.0.1 # the namespace, as this computer sees it

inside() { nsenter --net="/run/netns/$bridge" "$@"; }

# The package index that machines have in place of one outside.
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
    say "Removing machine $machine of stack $NAME, which its state does not know"
    DIRECTORY=$DIRECTORY NAME=$machine BRIDGE=$bridge bash "$here/machine.sh" down </dev/null
  done < <(machines)
  [[ ! -e /sys/class/net/$bridge && ! -e /run/netns/$bridge ]] ||
    say "Removing network $bridge of stack $NAME, which its state does not know"
  down
}

# By their folders, half-made ones too, and by their processes' control groups.
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

# make_link ADDRESS [master BRIDGE]: this computer's address on it, and where the other end is.
make_link() {
  if ! ip -n "$bridge" link show lo >/dev/null 2>&1; then
    [[ ! -e /run/netns/$bridge ]] || ip netns delete "$bridge"
    ip netns add "$bridge"
  fi
  # Machines that still run are on this bridge: it stays where only the link to it was lost.
  # With an address of its own: else it has that of one of its machines, and another when that one goes.
  ip -n "$bridge" link show "$bridge" >/dev/null 2>&1 ||
    ip -n "$bridge" link add "$bridge" address "02:$(hash "$DIRECTORY" | sed 's/../&:/g' | cut -c 1-14)" up type bridge
  ip link add "$bridge" type veth peer name host netns "$bridge"
  ip -n "$bridge" link set host "${@:2}" up
  ip address add "$1" dev "$bridge"
  ip link set "$bridge" up
}

remove_link() { [[ ! -e /sys/class/net/$bridge ]] || ip link delete "$bridge"; }

# The network that the stack had before, so that addresses outlive a restart of this computer, else a free one.
choose() {
  local network attempt digits
  if [[ -s $record ]]; then
    network=$(<"$record")
    ! taken "$network" || fatal "network $network of stack $NAME is now used by this computer itself:" \
      "$(taken_by "$network")" $'\n' "Disconnect that (a VPN?), or destroy the stack and bring it up again."
    echo "$network"
    return
  fi
  # From the folder's name, so that a stack that is down right now is unlikely to have the same one.
  for attempt in {1..300}; do
    digits=$(hash "$DIRECTORY $attempt")
    case $((attempt % 3)) in # a VPN can take all of 10.0.0.0/8
      1) network=10.$((16#${digits:0:2})).$((16#${digits:2:2})).0/24 ;;
      2) network=172.$((16 + 16#${digits:0:1})).$((16#${digits:2:2})).0/24 ;;
      0) network=192.168.$((16#${digits:2:2})).0/24 ;;
    esac
    if ! taken "$network"; then
      echo "$network"
      return
    fi
  done
  fatal "found no free private /24 network: every one tried meets a route in 'ip route show table all'"
}

taken() { [[ -n $(taken_by "$1") ]]; }

# Routes within NETWORK and routes that cover it, in any table. A default route covers everything and is not
# meant, nor are the halves and quarters that VPNs set in its place.
taken_by() {
  { ip -4 route show table all root "$1" && ip -4 route show table all match "$1"; } |
    grep -Ev '^([a-z]+ )?(default|[0-9.]+/[1-7]) ' || true
}

main "$@"
