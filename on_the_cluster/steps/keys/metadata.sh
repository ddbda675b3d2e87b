# The firewall rule that blocks tasks from the cloud's metadata server.
# shellcheck shell=bash

GUARD=dask-metadata
TABLE=daskstack

# The users of notebooks and jobs have the cluster's group. Use a separate table, which survives a reload of firewalld.
# On Google Cloud, the metadata server is also the DNS server.
metadata_rules() {
  cat <<RULES
table inet $TABLE
delete table inet $TABLE
table inet $TABLE {
  chain output {
    type filter hook output priority filter; policy accept;
    meta skuid $CLUSTER_USER jump tasks
    meta skgid $CLUSTER_USER jump tasks
  }
  chain tasks {
    ip daddr 169.254.169.254 meta l4proto { tcp, udp } th dport 53 accept
    ip daddr 169.254.169.254 reject with icmpx type admin-prohibited
    ip6 daddr { fd00:ec2::254, fd20:ce::254 } reject with icmpx type admin-prohibited
  }
}
RULES
}

metadata_unit() {
  cat <<UNIT
[Unit]
Description=Blocks Dask tasks, notebooks and jobs from the cloud's metadata server
After=nftables.service
Before=network-pre.target
Wants=network-pre.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=$(command -v nft) -f $ETC/metadata.nft

[Install]
WantedBy=multi-user.target
# Dask does not start without the rule.
RequiredBy=dask-scheduler.service dask-worker@.service dask-jupyter.service dask-job@.service
UNIT
}

block_metadata() {
  need nft
  metadata_rules | put $ETC/metadata.nft 0644 root:root
  metadata_unit | put $UNITS/$GUARD.service 0644 root:root
  systemctl daemon-reload
  nft -f $ETC/metadata.nft || fatal "cannot load the rule that blocks the metadata server; the error is above"
  systemctl -q enable --now $GUARD # do not restart it, because that would restart Dask
}

allow_metadata() {
  if [ -e $UNITS/$GUARD.service ]; then
    systemctl -q disable $GUARD
    drop $UNITS/$GUARD.service
    systemctl daemon-reload # before the stop, or Dask would stop, too
    systemctl stop $GUARD
  fi
  drop $UNITS/$GUARD.service $ETC/metadata.nft
  ! nft list table inet $TABLE >/dev/null 2>&1 || nft delete table inet $TABLE
}
