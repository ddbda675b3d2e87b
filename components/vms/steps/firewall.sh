# State: this machine's cluster ports are open to the cluster's network, SSH to who may use it, nothing else to anyone.
#   NETWORK      sources of the cluster's own traffic, separated by blanks:  10.1.0.0/24
#   SSH_PORT     22
#   SSH_SOURCES  further sources that may reach SSH, separated by blanks:    203.0.113.7/32
#   PORTS        the cluster's own TCP ports, separated by blanks:           8786 8787 9000-9005
#   OPEN         further ports, each with one source, separated by blanks:   9100=198.51.100.0/24

ZONES=/etc/firewalld/zones
INSIDE=dask
OUTSIDE=dask-outside

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

default_zone() { sed -n 's/^DefaultZone=//p' /etc/firewalld/firewalld.conf; }

set_default_zone() { sed -i "s/^DefaultZone=.*/DefaultZone=$1/" /etc/firewalld/firewalld.conf; }

verify() {
  local want have
  want=$(for port in $SSH_PORT $PORTS; do echo "$port/tcp"; done | sort)
  have=$(firewall-cmd --zone=$INSIDE --list-ports | tr ' ' '\n' | sort)
  [ "$want" = "$have" ] || fatal "firewalld has the ports '${have//$'\n'/ }' open to the cluster, not '${want//$'\n'/ }'"
  have=$(firewall-cmd --get-default-zone)
  [ "$have" = $OUTSIDE ] || fatal "firewalld's default zone is '$have', not '$OUTSIDE'"
}

main() {
  if [ "${1:-}" = undo ]; then
    undo
    return
  fi
  need firewall-cmd firewalld
  remember firewalld <<<"$(systemctl is-enabled firewalld 2>/dev/null || true) $(default_zone)"
  inside | put $ZONES/$INSIDE.xml 0644 root:root
  outside | put $ZONES/$OUTSIDE.xml 0644 root:root
  if [ "$(default_zone)" != $OUTSIDE ]; then
    set_default_zone $OUTSIDE
    changed=yes
  fi
  systemctl is-enabled -q firewalld || systemctl -q enable firewalld
  if ! systemctl is-active -q firewalld; then
    systemctl start firewalld || fatal "firewalld does not start: $(journalctl -u firewalld -n 5 --no-pager -o cat)"
  elif [ $changed = yes ]; then
    firewall-cmd -q --reload
  fi
  verify
}

undo() {
  [ -e $BEFORE/firewalld ] || return 0
  local enabled zone
  read -r enabled zone <$BEFORE/firewalld
  set_default_zone "$zone"
  rm -f $ZONES/$INSIDE.xml $ZONES/$OUTSIDE.xml
  if [ "$enabled" = enabled ]; then
    firewall-cmd -q --reload
  else
    systemctl -q disable --now firewalld
  fi
  forget firewalld
}

main "$@" </dev/null
