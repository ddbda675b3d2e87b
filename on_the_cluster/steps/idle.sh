# State: this machine powers off when the cluster has been idle for LIMIT seconds. The scheduler's machine powers off
# last.
#   LIMIT    seconds
#   ADDRESS  address of the scheduler's machine, which records when Dask last worked; empty on that machine
# Besides Dask's work, these reset the idle time: a boot, and a step on this machine or on the scheduler's. A worker's
# machine that cannot reach the scheduler's for LIMIT seconds also powers off.

PROGRAM=$OPT/idle
UNIT=dask-idle.service
UNIT_FILE=/etc/systemd/system/$UNIT
LOOK=$((LIMIT < 80 ? LIMIT / 4 : 20)) # shortest interval between checks in seconds
PATIENCE=300                          # seconds that the scheduler's machine waits for workers to power off first

# The program that the unit runs as root.
program() {
  echo '#!/bin/bash'
  declare -p LIMIT ADDRESS CLUSTER_USER CLUSTER_HOME ETC STEPPED LOCK LOOK PATIENCE
  declare -f as_cluster_user open_lock ask uptime watch power_off
  echo watch
}

# Ask the scheduler's machine for the seconds since the last work, and for the number of workers on other machines.
ask() {
  local shell=(sh -c)
  [ -z "$ADDRESS" ] || shell=("$ETC/ssh/ssh" "$ADDRESS")
  within=30 as_cluster_user "${shell[@]}" "cd $CLUSTER_HOME && workers=\$(cat worked) &&
    echo \$((\$(date +%s) - \$(stat -c %Y worked $STEPPED 2>/dev/null | sort -n | tail -n 1))) \$workers" </dev/null
}

# A monotonic clock, unlike `date`.
uptime() { cut -d. -f1 /proc/uptime; }

watch() {
  local began heard now age workers stepped left
  began=$(uptime) heard=$began left=$LIMIT
  while sleep $((left / 2 > LOOK ? left / 2 : LOOK)); do
    now=$(uptime)
    # Tasks can forge the answer, and bash would evaluate it as arithmetic.
    if read -r -t 40 age workers < <(ask) && [[ $age =~ ^(0|-?[1-9][0-9]{0,9})$ ]]; then
      heard=$now
      [ "$age" -ge 0 ] || age=0 # the clock was set back since the last work
    else
      age=$((now - heard)) workers=0
    fi
    [ "$age" -le $((now - began)) ] || age=$((now - began))
    stepped=$(($(date +%s) - $(stat -c %Y $STEPPED 2>/dev/null || echo 0)))
    [ "$age" -le $stepped ] || age=$stepped
    left=$((LIMIT - age))
    if [ -n "$ADDRESS" ] || [ "$workers" = 0 ] || [ "$age" -ge $((LIMIT + PATIENCE)) ]; then
      [ $left -gt 0 ] || power_off
    fi
  done
}

# Do not power off while a step is running, and prevent new steps from starting.
power_off() {
  open_lock
  flock --nonblock 9 || return 0
  echo "the cluster was idle for $LIMIT s: powering off"
  systemctl poweroff && sleep 300
  exec 9<&-
}

unit() {
  cat <<CONF
[Unit]
Description=Powers off this machine of the Dask cluster after $LIMIT s without work
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=$PROGRAM
Restart=always
RestartSec=$LOOK
# The program switches to the cluster's user, kills that user's commands on a timeout, and powers off.
CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_KILL CAP_SYS_BOOT
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=/run
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
$([[ $ADDRESS =~ [^0-9.] ]] || printf 'IPAddressDeny=any\nIPAddressAllow=localhost %s\n' "$ADDRESS")
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@resources
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
  install -d -m 0755 $OPT
  program | put $PROGRAM 0755 root:root
  unit | put $UNIT_FILE 0644 root:root
  systemctl daemon-reload
  systemctl -q enable $UNIT
  if [ $changed = yes ]; then systemctl restart $UNIT; else systemctl start $UNIT; fi
}

undo() {
  [ ! -e $UNIT_FILE ] || systemctl -q disable --now $UNIT
  drop $UNIT_FILE $PROGRAM
  systemctl daemon-reload
  tidy
}

exclusively main "$@" </dev/null
