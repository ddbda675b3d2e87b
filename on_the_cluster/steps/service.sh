# State: Dask runs on this machine, as services that come back after a failure and a reboot.
#   ROLES           scheduler, worker, or both
#   NAME, ADDRESS   this machine
#   SCHEDULER       where workers find the scheduler:  tls://10.1.0.10:8786
#   SCHEDULER_PORT, DASHBOARD_PORT, WORKERS_PORT       the last: first of a block of three for each worker process
#   WORKERS         worker processes on this machine
#   THREADS         threads of each; empty: the machine's processors shared out
#   MEMORY          memory limit of each; empty: the machine's memory shared out
#   SPILL           folder on this machine's own disk, which may be somebody's: workers use a folder of ours in it
#   DATA_PATH       the shared directory
#   CONFIG          Dask's configuration, YAML
#   SECRET_ENV      variables of scheduler and workers, in systemd's form; only root reads the file, and systemd as root
#   SCHEDULER_ARGS, WORKER_ARGS    further arguments, quoted for systemd
#   DRAIN           the program that lets workers leave, Python
#   GRACE           seconds that they have to leave, when they or this machine are stopped
#   WORKED          the scheduler's preload that records when it last worked, Python; empty: none
#   RELOAD          the preload that takes up new certificates while Dask runs, Python; empty without TLS
#   CREDENTIALS     changes when the authority's machine was made anew
#   FIREWALL        yes: Dask runs only where firewalld runs
#   AUTHORITY_ADDRESS  of the machine that lets workers restart on one machine at a time; empty on that machine
# What runs restarts where its own files have changed since it began; changed packages are the step environment's.

UNITS=/etc/systemd/system
DASK=$OPT/environment/bin/dask
LEAVE=$OPT/drain.py
RECORD=$OPT/worked.py
RELOADER=$OPT/reload_tls.py
RETIRED=$CLUSTER_HOME/retired
# One line per spill folder in use: SPILL, and the topmost folder that was created for it, or -.
SPILLS=$ETC/spill
COMMON_FILES=("$ETC/dask.yaml" "$ETC/secret.env") # new certificates are taken up by what runs

# As many open files as the machine lets a service have, up to what a large cluster's scheduler needs.
open_files() { awk '/^Max open files/ {print ($5 == "unlimited" || $5 > 65536) ? 65536 : $5}' /proc/1/limits; }

# GPUs and fast network cards, whose devices a worker would not see in a /dev of its own.
uses_devices() {
  compgen -G '/dev/nvidia*' || compgen -G '/dev/dri/render*' || ls -d /dev/kfd || ls -d /dev/infiniband ||
    grep -qx 0x10de /sys/bus/pci/devices/*/vendor
} >/dev/null 2>&1

unit() {
  local private_tmp=yes protect_home=yes private_devices=yes
  case $DATA_PATH:$SPILL in /tmp/* | /var/tmp/* | *:/tmp/* | *:/var/tmp/*) private_tmp=no ;; esac
  case $DATA_PATH:$SPILL in /home/* | /root/* | *:/home/* | *:/root/*) protect_home=no ;; esac
  if uses_devices; then private_devices=no; fi
  cat <<UNIT
[Unit]
Description=$1
# At a shutdown it stops while network and shared directory are still there.
After=network-online.target remote-fs.target
Wants=network-online.target
$([ "$FIREWALL" != yes ] || echo After=firewalld.service)
StartLimitIntervalSec=0

[Service]
User=$CLUSTER_USER
Group=$CLUSTER_USER
WorkingDirectory=$CLUSTER_HOME
Environment=DASK_CONFIG=$ETC/dask.yaml PATH=$OPT/environment/bin:/usr/local/bin:/usr/bin:/bin
# The environment is root's, so Python could not keep its compiled files beside the sources.
Environment=PYTHONPYCACHEPREFIX=$CLUSTER_HOME/.cache/pycache
EnvironmentFile=$ETC/secret.env
# Without it dashboards would be open to the network. Not Requires=: a restart of firewalld must not end Dask.
$([ "$FIREWALL" != yes ] || echo "ExecStartPre=systemctl is-active firewalld")
$2
Restart=always
RestartSec=2
TimeoutStopSec=$((GRACE + 10))
# Else the process that a nanny minds would die before the nanny closes it.
KillMode=mixed
UMask=0007
LimitNOFILE=$(open_files)
NoNewPrivileges=yes
PrivateTmp=$private_tmp
ProtectHome=$protect_home
# Not strict: what you mount for tasks would be read-only, and a dead mount of the shared directory would stay.
ProtectSystem=full
PrivateDevices=$private_devices
PrivateMounts=yes
ProtectClock=$private_devices
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectHostname=yes
ProtectProc=invisible
LockPersonality=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
CapabilityBoundingSet=

[Install]
WantedBy=multi-user.target
UNIT
}

scheduler_unit() {
  unit "Dask scheduler" "ExecStart=$DASK scheduler --host $ADDRESS --port $SCHEDULER_PORT \
--dashboard-address $ADDRESS:$DASHBOARD_PORT ${RELOAD:+--preload $RELOADER }${WORKED:+--preload $RECORD }$SCHEDULER_ARGS"
}

worker_unit() {
  local host=${SCHEDULER#*://}
  unit "Dask worker %i" "EnvironmentFile=$ETC/worker-%i.env
# Retired by the step members: it comes back when it is on that step's list again.
ExecStartPre=/bin/sh -c 'while [ -e $RETIRED-$NAME-%i ]; do $ETC/ssh/ssh ${host%:*} grep -qx $NAME-%i $ETC/members && rm $RETIRED-$NAME-%i || sleep 5; done'
TimeoutStartSec=infinity
ExecStart=$DASK worker $SCHEDULER --name $NAME-%i --host $ADDRESS --worker-port \${WORKER_PORT} \
--nanny-port \${NANNY_PORT} --dashboard-address $ADDRESS:\${DASHBOARD_PORT} --nthreads \${THREADS} \
--memory-limit \${MEMORY} --local-directory $SPILL/daskstack \
${RELOAD:+--preload $RELOADER --preload-nanny $RELOADER }$WORKER_ARGS
ExecStop=-timeout $GRACE $OPT/environment/bin/python $LEAVE $SCHEDULER --within $GRACE $NAME-%i"
}

worker_environment() {
  local port=$((WORKERS_PORT + 3 * ($1 - 1))) threads=$THREADS memory=$MEMORY processors
  processors=$(nproc)
  [ -n "$threads" ] || threads=$((processors > WORKERS ? processors / WORKERS : 1))
  [ -n "$memory" ] || memory=$(awk -v share="$WORKERS" '/^MemTotal/ {printf "%d", $2 * 1024 / share}' /proc/meminfo)
  printf 'ADDRESS=%s\nWORKER_PORT=%s\nNANNY_PORT=%s\nDASHBOARD_PORT=%s\nTHREADS=%s\nMEMORY="%s"\n' \
    "$ADDRESS" $port $((port + 1)) $((port + 2)) "$threads" "$memory"
}

# outdated UNIT FILE...: UNIT runs, and one of the files that it began with has changed since.
outdated() {
  local since file
  systemctl is-active -q "$1" || return
  since=$(systemctl show --timestamp=unix -p ActiveEnterTimestamp --value "$1")
  shift
  for file in "$@"; do
    [ "$(stat -c %Y "$file")" -le "${since#@}" ] || return 0
  done
  return 1
}

# Units of worker processes from NUMBER on are not wanted any more.
stop_workers_from() {
  local file number
  for file in "$ETC"/worker-*.env; do
    number=${file##*/worker-}
    number=${number%.env}
    [ -e "$file" ] && [ "$number" -ge "$1" ] || continue
    systemctl -q disable --now "dask-worker@$number"
    drop "$file"
  done
}

stop_scheduler() {
  [ ! -e $UNITS/dask-scheduler.service ] || systemctl -q disable --now dask-scheduler
  drop $UNITS/dask-scheduler.service $RECORD
}

has() { case " $ROLES " in *" $1 "*) ;; *) return 1 ;; esac }

main() {
  if [ "${1:-}" = undo ]; then
    undo
    return
  fi
  make_spill
  printf '%s\n' "$CONFIG" | put $ETC/dask.yaml 0644 root:root
  printf '%s\n' "$SECRET_ENV" | put $ETC/secret.env 0600 root:root
  printf '%s\n' "$SCHEDULER" | put $ETC/scheduler 0644 root:root
  if [ -n "$RELOAD" ]; then printf '%s' "$RELOAD" | put $RELOADER 0644 root:root; else drop $RELOADER; fi
  # What moved to another machine stops here.
  if has scheduler; then run_scheduler; else stop_scheduler; fi
  if has worker; then run_workers; else stop_workers_from 1; fi
  leave_spills "$SPILL"
}

# Parents keep their owners and modes, and what else is in them is left alone.
make_spill() {
  local folder=$SPILL/daskstack parent=$SPILL made=-
  while [ ! -e "$parent" ]; do made=$parent parent=$(dirname "$parent"); done
  as_cluster_user test -d "$parent/." ||
    fatal "workers.spill $SPILL cannot be used: user $CLUSTER_USER may not enter $parent on this machine, or it is no" \
      "folder; open it (chmod o+x) or choose another, e.g. $VAR/spill"
  if ! cut -d ' ' -f 1 $SPILLS 2>/dev/null | grep -qxF "$SPILL"; then
    if [ -e "$folder" ] || [ -L "$folder" ]; then
      fatal "$folder exists already and is not this cluster's; move it away, or choose another workers.spill"
    fi
    {
      cat $SPILLS 2>/dev/null || true
      echo "$SPILL $made"
    } | put $SPILLS 0644 root:root
  fi
  mkdir -p "$SPILL"
  [ -d "$folder" ] || mkdir -m 0700 "$folder"
  case $(stat -c %U:%F "$folder") in
    root:directory | "$CLUSTER_USER:directory") chown -h $CLUSTER_USER:$CLUSTER_USER "$folder" ;;
    *) fatal "$folder is not this cluster's any more; move it away, or choose another workers.spill" ;;
  esac
}

# leave_spills SPILL: removes the folders of former settings; of all, where SPILL is empty.
leave_spills() {
  local spill made kept=''
  if [ ! -e $SPILLS ]; then
    drop $SPILLS
    return
  fi
  while read -r spill made; do
    if [ "$spill" = "$1" ]; then
      kept="$spill $made"
      continue
    fi
    rm -rf "$spill/daskstack"
    [ "$made" = - ] || remove_made "$made" "$spill"
  done <$SPILLS
  if [ -n "$kept" ]; then echo "$kept" | put $SPILLS 0644 root:root; else drop $SPILLS; fi
}

run_scheduler() {
  local files=("$UNITS/dask-scheduler.service" "${COMMON_FILES[@]}")
  if [ -n "$WORKED" ]; then
    printf '%s' "$WORKED" | put $RECORD 0644 root:root
    files+=("$RECORD")
  else
    drop $RECORD
  fi
  scheduler_unit | put $UNITS/dask-scheduler.service 0644 root:root
  systemctl daemon-reload
  if outdated dask-scheduler "${files[@]}"; then systemctl stop dask-scheduler; fi
  systemctl -q enable --now dask-scheduler
  until_it_answers dask-scheduler "$ADDRESS" "$SCHEDULER_PORT"
}

run_workers() {
  local number workers=() restart=()
  printf '%s' "$DRAIN" | put $LEAVE 0644 root:root
  worker_unit | put $UNITS/dask-worker@.service 0644 root:root
  systemctl daemon-reload
  forget_retired
  stop_workers_from $((WORKERS + 1))
  for ((number = 1; number <= WORKERS; number++)); do
    worker_environment $number | put $ETC/worker-$number.env 0644 root:root
    workers+=("dask-worker@$number")
    if outdated "dask-worker@$number" $UNITS/dask-worker@.service $ETC/worker-$number.env "${COMMON_FILES[@]}"; then
      restart+=("dask-worker@$number")
    fi
  done
  if [ ${#restart[@]} -gt 0 ]; then
    one_at_a_time "$AUTHORITY_ADDRESS"
    systemctl stop "${restart[@]}"
  fi
  systemctl -q enable "${workers[@]}"
  start_workers "${workers[@]}"
}

# What has such a name may be a task's, of any kind and number.
forget_retired() { find $CLUSTER_HOME -maxdepth 1 -name 'retired-*' -exec rm -rf {} + 2>/dev/null || true; }

undo() {
  stop_workers_from 1
  stop_scheduler
  rm -f $ETC/worker-*.env.new
  drop $UNITS/dask-worker@.service $ETC/dask.yaml $ETC/secret.env $ETC/scheduler $LEAVE $RELOADER
  systemctl daemon-reload
  # When only this step has failed, others' connections to this machine go on.
  [ $undo_on_failure = yes ] || end_processes
  leave_spills ''
  tidy
}

alone main "$@" </dev/null
