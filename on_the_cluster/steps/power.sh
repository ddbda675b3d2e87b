# State (on the scheduler's machine): a service starts the workers' machines that the cluster needs, and stops the others.
#   POWER     the service's Python program
#   MACHINES  its settings, JSON
#   PORT      the last port on which it listens

PROGRAM=$OPT/power.py
SETTINGS=$ETC/power.json
UNIT=dask-power.service
UNIT_FILE=/etc/systemd/system/$UNIT

unit() {
  cat <<CONF
[Unit]
Description=Starts and stops the machines of Dask's workers
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart=$(command -v python3) -I $PROGRAM $SETTINGS
Restart=always
RestartSec=5
# The cluster's user cannot reach the metadata server, so the program runs as root. It reads files of that user.
CapabilityBoundingSet=CAP_DAC_READ_SEARCH
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateMounts=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
CONF
}

main() {
  if [ "${1:-}" = undo ]; then
    undo
    return
  fi
  need python3
  install -d -m 0755 $OPT $ETC
  printf '%s' "$POWER" | put $PROGRAM 0644 root:root
  printf '%s\n' "$MACHINES" | put $SETTINGS 0644 root:root
  unit | put $UNIT_FILE 0644 root:root
  systemctl daemon-reload
  systemctl -q enable $UNIT
  if [ $changed = yes ]; then systemctl restart $UNIT; else systemctl start $UNIT; fi
  wait_for 20 "$UNIT to listen on port $PORT; see journalctl -u $UNIT" listens
}

# A connection would start the machine.
listens() { [ -n "$(ss -Hltn "sport = :$PORT")" ]; }

undo() {
  [ ! -e $UNIT_FILE ] || systemctl -q disable --now $UNIT
  drop $UNIT_FILE $PROGRAM $SETTINGS
  systemctl daemon-reload
  tidy
}

exclusively main "$@" </dev/null
