# firewalld zones for the cluster.
# shellcheck shell=bash

inside_zone() {
  local source port open
  echo '<?xml version="1.0" encoding="utf-8"?>'
  echo '<zone>'
  echo '  <short>Dask cluster</short>'
  for source in $NETWORK; do echo "  <source address=\"$source\"/>"; done
  for port in $CLUSTER_PORTS; do echo "  <port port=\"$port\" protocol=\"tcp\"/>"; done
  # Their sources may be in the cluster's network, whose packets reach no other zone.
  for open in $OPEN; do rule "${open%%=*}" "${open#*=}"; done
  echo '</zone>'
}

rule() {
  local family=ipv4
  case $2 in *:*) family=ipv6 ;; esac
  echo "  <rule family=\"$family\"><source address=\"$2\"/><port port=\"$1\" protocol=\"tcp\"/><accept/></rule>"
}

outside_zone() {
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

is_applied() {
  running && systemctl -q is-enabled firewalld && [ "$(default_zone)" = $OUTSIDE ] &&
    inside_zone | cmp -s - $ZONES/$INSIDE.xml && outside_zone | cmp -s - $ZONES/$OUTSIDE.xml
}

apply() {
  local was_running=no
  if running; then was_running=yes; fi
  outside_zone | put $ZONES/$OUTSIDE.xml 0644 root:root
  inside_zone | put $ZONES/$INSIDE.xml 0644 root:root
  set_default_zone $OUTSIDE
  systemctl -q enable --now firewalld ||
    fatal "firewalld does not start: $(journalctl -u firewalld -n 5 --no-pager -o cat)"
  if [ $was_running = yes ]; then firewall-cmd -q --reload; fi
}

verify() {
  local zones port want have
  # On a busy machine, firewalld is active before it answers.
  wait_for 20 "firewalld to answer; see journalctl -u firewalld" firewall-cmd --state
  zones=$(firewall-cmd --list-all-zones)
  want=$(for port in $CLUSTER_PORTS; do echo "$port/tcp"; done | sort)
  have=$(sed -n "/^$INSIDE (active)/,/^$/s/^  ports: //p" <<<"$zones" | tr ' ' '\n' | sort)
  [ "$want" = "$have" ] ||
    fatal "firewalld opened the ports '${have//$'\n'/ }' to the cluster instead of '${want//$'\n'/ }'; see journalctl -u firewalld"
  check_bound "$zones"
}
