# State: Dask runs on this machine, as services that come back after a failure and a reboot.
#   ROLES           scheduler, worker, or both
#   NAME, ADDRESS   this machine
#   SCHEDULER       where workers find the scheduler:  tls://10.1.0.10:8786
#   SCHEDULER_PORT, DASHBOARD_PORT, WORKERS_PORT       the last: first of a block of three for each worker process
#   WORKERS         worker processes on this machine
#   THREADS         threads of each; empty: the machine's processors shared out
#   MEMORY          memory limit of each; empty: the machine's memory shared out
#   SPILL           folder on this machine's own disk
#   DATA_PATH       the shared directory
#   CONFIG          Dask's configuration, YAML
#   SCHEDULER_ARGS, WORKER_ARGS    further arguments, quoted for systemd
#   ENVIRONMENT     names the installed environment: when it changes, services restart

UNITS=/etc/systemd/system
DASK=$OPT/environment/bin/dask

# As many open files as the machine lets a service have, up to what a large cluster's scheduler needs.
open_files() { awk '/^Max open files/ {print ($5 == "unlimited" || $5 > 65536) ? 65536 : $5}' /proc/1/limits; }

unit() {
  local private_tmp=yes protect_home=yes
  case $DATA_PATH:$SPILL in /tmp/* | /var/tmp/* | *:/tmp/* | *:/var/tmp/*) private_tmp=no ;; esac
  case $DATA_PATH:$SPILL in /home/* | /root/* | *:/home/* | *:/root/*) protect_home=no ;; esac
  cat <<UNIT
[Unit]
Description=$1
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
User=$CLUSTER_USER
Group=$CLUSTER_USER
WorkingDirectory=$CLUSTER_HOME
Environment=DASK_CONFIG=$ETC/dask.yaml PATH=$OPT/environment/bin:/usr/local/bin:/usr/bin:/bin
# The environment is root's, so Python could not keep its compiled files beside the sources.
Environment=PYTHONPYCACHEPREFIX=$CLUSTER_HOME/.cache/pycache
$2
Restart=always
RestartSec=2
TimeoutStopSec=60
UMask=0007
LimitNOFILE=$(open_files)
NoNewPrivileges=yes
PrivateTmp=$private_tmp
ProtectHome=$protect_home
ProtectSystem=full
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
CapabilityBoundingSet=

[Install]
WantedBy=multi-user.target
UNIT
}

scheduler_unit() {
  unit "Dask scheduler" "ExecStart=$DASK scheduler --host $ADDRESS --port $SCHEDULER_PORT \
--dashboard-address $ADDRESS:$DASHBOARD_PORT $SCHEDULER_ARGS"
}

worker_unit() {
  unit "Dask worker %i" "EnvironmentFile=$ETC/worker-%i.env
ExecStart=$DASK worker $SCHEDULER --name $NAME-%i --host $ADDRESS --worker-port \${WORKER_PORT} \
--nanny-port \${NANNY_PORT} --dashboard-address $ADDRESS:\${DASHBOARD_PORT} --nthreads \${THREADS} \
--memory-limit \${MEMORY} --local-directory $SPILL $WORKER_ARGS"
}

worker_environment() {
  local port=$((WORKERS_PORT + 3 * ($1 - 1))) threads=$THREADS memory=$MEMORY processors
  processors=$(nproc)
  [ -n "$threads" ] || threads=$((processors > WORKERS ? processors / WORKERS : 1))
  [ -n "$memory" ] || memory=$(awk -v share="$WORKERS" '/^MemTotal/ {printf "%d", $2 * 1024 / share}' /proc/meminfo)
  printf 'WORKER_PORT=%s\nNANNY_PORT=%s\nDASHBOARD_PORT=%s\nTHREADS=%s\nMEMORY=%s\n' \
    $port $((port + 1)) $((port + 2)) "$threads" "$memory"
}

answers() { (exec 3<>"/dev/tcp/$ADDRESS/$1"); }

# run UNIT PORT: UNIT is enabled, runs what is installed now, and answers on PORT.
run() {
  local unit=$1 port=$2 end=$((SECONDS + 60))
  systemctl -q enable "$unit"
  if [ $changed = yes ]; then systemctl restart "$unit"; else systemctl start "$unit"; fi
  until answers "$port" 2>/dev/null; do
    [ $SECONDS -lt $end ] ||
      fatal "$unit does not answer on port $port after 60 s: $(journalctl -u "$unit" -n 15 --no-pager -o cat)"
    sleep 0.2
  done
}

# Units of worker processes from NUMBER on are not wanted any more.
stop_workers_from() {
  local file number
  for file in "$ETC"/worker-*.env; do
    number=${file##*/worker-}
    number=${number%.env}
    [ -e "$file" ] && [ "$number" -ge "$1" ] || continue
    systemctl -q disable --now "dask-worker@$number"
    rm -f "$file"
  done
}

has() { case " $ROLES " in *" $1 "*) ;; *) return 1 ;; esac }

main() {
  if [ "${1:-}" = undo ]; then
    undo
    return
  fi
  install -d -m 0755 "$(dirname "$SPILL")"
  install -d -m 0700 -o $CLUSTER_USER -g $CLUSTER_USER "$SPILL"
  printf '%s\n' "$ENVIRONMENT" | put $ETC/service 0644 root:root
  printf '%s\n' "$CONFIG" | put $ETC/dask.yaml 0644 root:root
  local number common=$changed
  if has scheduler; then
    scheduler_unit | put $UNITS/dask-scheduler.service 0644 root:root
    systemctl daemon-reload
    run dask-scheduler "$SCHEDULER_PORT"
  fi
  if has worker; then
    changed=$common
    worker_unit | put $UNITS/dask-worker@.service 0644 root:root
    common=$changed
    systemctl daemon-reload
    stop_workers_from $((WORKERS + 1))
    for ((number = 1; number <= WORKERS; number++)); do
      changed=$common
      worker_environment $number | put $ETC/worker-$number.env 0644 root:root
      run "dask-worker@$number" $((WORKERS_PORT + 3 * (number - 1)))
    done
  fi
}

undo() {
  stop_workers_from 1
  systemctl -q disable --now dask-scheduler 2>/dev/null || true
  rm -f $UNITS/dask-scheduler.service $UNITS/dask-worker@.service $ETC/dask.yaml $ETC/service
  systemctl daemon-reload
  rm -rf "$SPILL"
  tidy
}

main "$@" </dev/null
