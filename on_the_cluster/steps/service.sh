# State: Dask runs on this machine as systemd services, which restart after a failure or a reboot.
#   ROLES           scheduler, worker, or both
#   NAME, ADDRESS   this machine's name and address
#   SCHEDULER       the scheduler's address for workers, e.g. tls://10.1.0.10:8786
#   SCHEDULER_PORT, DASHBOARD_PORT, WORKERS_PORT       WORKERS_PORT is the first; each worker process uses three
#   WORKERS         number of worker processes on this machine
#   THREADS         threads per worker; empty: CPUs divided by WORKERS
#   MEMORY          memory limit per worker; empty: memory divided by WORKERS
#   GPU_EACH        yes: each worker process uses only its own GPU of this machine, of which there are WORKERS
#   SPILL           folder on this machine's own disk; workers only use the subfolder daskstack
#   SSDS            block devices to mount at SPILL, which can be empty after a boot; empty: SPILL is a folder
#   DATA_PATH       the shared directory
#   HOMES           yes: tasks see /home, read-only; no: it is empty for them
#   CONFIG          Dask's configuration, YAML
#   SECRET_ENV      environment variables of scheduler and workers in systemd's format; only root can read the file
#   SCHEDULER_ARGS, WORKER_ARGS    additional arguments, quoted for systemd
#   DRAIN           the Python program that retires workers
#   RETIRED         the Python program that keeps retired workers stopped until the step `members` lists them again
#   ELASTIC, SCALING   the scheduler's Python preload that sets the number of workers, and its module; empty: all run
#   GRACE           seconds that workers have to hand over results when they or this machine stop
#   WORKED          the scheduler's Python preload that records when it last worked; empty: none
#   RELOAD          the Python preload that loads new certificates while Dask runs; empty without TLS
#   PEOPLE          the scheduler's Python preload that knows the people behind connections; empty without TLS
#   CREDENTIALS     changes when the authority's machine is replaced
#   FIREWALL        yes: Dask runs only while firewalld runs
#   AUTHORITY_ADDRESS  address of the machine that holds the lock for restarts of workers; empty on that machine
# A service restarts if its own files have changed since it started. The step `environment` handles changed packages.

UNITS=/etc/systemd/system
DASK=$OPT/environment/bin/dask
DRAIN_PROGRAM=$OPT/drain.py
RECORD=$OPT/worked.py
RELOADER=$OPT/reload_tls.py
PEOPLE_PRELOAD=$OPT/people.py
RETIRED_PROGRAM=$OPT/stay_retired.py
ELASTIC_PROGRAM=$OPT/elastic.py
SCALING_MODULE=$OPT/scaling.py
ELASTIC_FILE=$CLUSTER_HOME/elastic.json
PYTHON_PROGRAM=$OPT/bin/python
# One line per spill folder in use: SPILL, and the topmost folder that was created for it, or -.
SPILLS=$ETC/spill
COMMON_FILES=("$ETC/dask.yaml" "$ETC/secret.env") # running services load new certificates without a restart

unit() {
  cat <<UNIT
[Unit]
Description=$1
# At a shutdown, stop this service before the network and the shared directory.
After=network-online.target remote-fs.target${SSDS:+ $SSD_UNIT}
Wants=network-online.target
$([ "$FIREWALL" != yes ] || echo After=firewalld.service)
StartLimitIntervalSec=0

[Service]
User=$CLUSTER_USER
Group=$CLUSTER_USER
WorkingDirectory=$CLUSTER_HOME
Environment=DASK_CONFIG=$ETC/dask.yaml PATH=$OPT/environment/bin:/usr/local/bin:/usr/bin:/bin
# Only root can write to the environment, so Python must store compiled files elsewhere.
Environment=PYTHONPYCACHEPREFIX=$CLUSTER_HOME/.cache/pycache
Environment=PYTHONPATH=$OPT/modules DASKSTACK_DATA=$DATA_PATH
EnvironmentFile=$ETC/secret.env
# Without firewalld, dashboards would be open to the network. Do not use Requires=: restarting firewalld would stop
# Dask.
$([ "$FIREWALL" != yes ] || echo "ExecStartPre=systemctl is-active firewalld")
$2
Restart=always
RestartSec=2
TimeoutStopSec=$((GRACE + 10))
# With other modes, systemd would kill the worker process before its nanny can close it.
KillMode=mixed
$(protection "$DATA_PATH" "$SPILL")

[Install]
WantedBy=multi-user.target
UNIT
}

scheduler_unit() {
  unit "Dask scheduler" "ExecStart=$DASK scheduler --host $ADDRESS --port $SCHEDULER_PORT \
--dashboard-address $ADDRESS:$DASHBOARD_PORT ${RELOAD:+--preload $RELOADER }\
${PEOPLE:+--preload $PEOPLE_PRELOAD }${WORKED:+--preload $RECORD }\
${ELASTIC:+--preload $ELASTIC_PROGRAM }$SCHEDULER_ARGS"
}

worker_unit() {
  local host=${SCHEDULER#*://}
  unit "Dask worker %i" "EnvironmentFile=$ETC/worker-%i.env${SSDS:+
# Not Requires=, which would not try again after a failure.
ExecStartPre=+systemctl start $SSD_UNIT}
ExecStartPre=$OPT/environment/bin/python $RETIRED_PROGRAM $NAME-%i $ETC/members \"${ELASTIC:+$ELASTIC_FILE}\" \
$ETC/ssh/ssh ${host%:*}
TimeoutStartSec=infinity
ExecStart=$DASK worker $SCHEDULER --name $NAME-%i --host $ADDRESS --worker-port \${WORKER_PORT} \
--nanny-port \${NANNY_PORT} --dashboard-address $ADDRESS:\${DASHBOARD_PORT} --nthreads \${THREADS} \
--memory-limit \${MEMORY} --local-directory $SPILL/daskstack \
${RELOAD:+--preload $RELOADER --preload-nanny $RELOADER }$WORKER_ARGS
ExecStop=-timeout $GRACE $OPT/environment/bin/python $DRAIN_PROGRAM $SCHEDULER --within $GRACE $NAME-%i"
}

worker_environment() {
  local port=$((WORKERS_PORT + 3 * ($1 - 1))) threads=$THREADS memory=$MEMORY processors kib
  processors=$(nproc)
  [ -n "$threads" ] || threads=$((processors > WORKERS ? processors / WORKERS : 1))
  kib=$(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
  [ -n "$memory" ] || memory=$((kib * 1024 / WORKERS)) # in bash, because Debian's awk writes at most 2147483647
  printf 'ADDRESS=%s\nWORKER_PORT=%s\nNANNY_PORT=%s\nDASHBOARD_PORT=%s\nTHREADS=%s\nMEMORY="%s"\n' \
    "$ADDRESS" $port $((port + 1)) $((port + 2)) "$threads" "$memory"
  [ "$GPU_EACH" != yes ] || echo "CUDA_VISIBLE_DEVICES=$(($1 - 1))"
}

# stop_workers_from NUMBER: stop and remove the units of workers with this number or a higher one.
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
  drop $UNITS/dask-scheduler.service $RECORD $PEOPLE_PRELOAD $ELASTIC_PROGRAM $SCALING_MODULE $PYTHON_PROGRAM
  rmdir $OPT/bin 2>/dev/null || true
}

# The login user runs Python scripts that use the cluster with this program. Dask unpickles results, so tasks can act as
# the user of a client. The login user can become root, so clients run as the cluster's user, without the caller's
# terminal, where they could type commands.
python_program() {
  cat <<PROGRAM
#!/bin/sh
# Runs Python with the cluster's packages, as user $CLUSTER_USER. A bare Client() connects to the cluster.
[ "\$(id -u)" = 0 ] || exec sudo -n -- $PYTHON_PROGRAM "\$@"
as_user="setpriv --reuid $CLUSTER_USER --regid $CLUSTER_USER --init-groups --no-new-privs"
case \${1-} in
  '' | -*) ;;
  *) \$as_user test -r "\$1" || {
    echo "error: user $CLUSTER_USER, which runs Python here, cannot read \$1: move it to $DATA_PATH," \\
      "or write $PYTHON_PROGRAM - <\$1" >&2
    exit 1
  } ;;
esac
set -- env -i HOME=$CLUSTER_HOME PATH=$OPT/environment/bin:/usr/local/bin:/usr/bin:/bin TERM="\${TERM-}" \\
  PYTHONPYCACHEPREFIX=$CLUSTER_HOME/.cache/pycache DASK_CONFIG=$ETC/dask.yaml DASK_SCHEDULER_ADDRESS=$SCHEDULER \\
  PYTHONPATH=$OPT/modules DASKSTACK_DATA=$DATA_PATH $OPT/environment/bin/python "\$@"
[ ! -t 0 ] || exec runuser --pty -u $CLUSTER_USER -- setpriv --no-new-privs "\$@"
exec 3<&0 # otherwise commands in the background read /dev/null
setsid \$as_user "\$@" <&3 3<&- &
trap 'kill \$!' INT TERM
wait \$!
PROGRAM
}

has_role() { case " $ROLES " in *" $1 "*) ;; *) return 1 ;; esac }

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
  # Stop a role that moved to another machine.
  if has_role scheduler; then run_scheduler; else stop_scheduler; fi
  if has_role worker; then run_workers; else stop_workers_from 1; fi
  remove_other_spills "$SPILL"
}

# Create the spill folder without changing its parents or their contents.
make_spill() {
  local folder=$SPILL/daskstack parent=$SPILL made=-
  while [ ! -e "$parent" ]; do made=$parent parent=$(dirname "$parent"); done
  as_cluster_user test -d "$parent/." ||
    fatal "cannot use workers.spill $SPILL: user $CLUSTER_USER has no access to $parent on this machine, or it is not a" \
      "folder; grant access (chmod o+x) or use another folder, e.g. $VAR/spill"
  if ! cut -d ' ' -f 1 $SPILLS 2>/dev/null | grep -qxF "$SPILL"; then
    if [ -e "$folder" ] || [ -L "$folder" ]; then
      fatal "$folder already exists and does not belong to this cluster; move it away, or use another workers.spill"
    fi
    {
      cat $SPILLS 2>/dev/null || true
      echo "$SPILL $made"
    } | put $SPILLS 0644 root:root
  fi
  mkdir -p "$SPILL"
  if [ -n "$SSDS" ]; then use_ssds; else drop_ssds; fi
  [ -d "$folder" ] || mkdir -m 0700 "$folder"
  case $(stat -c %U:%F "$folder") in
    root:directory | "$CLUSTER_USER:directory") chown -h $CLUSTER_USER:$CLUSTER_USER "$folder" ;;
    *) fatal "$folder was replaced and no longer belongs to this cluster; move it away, or use another workers.spill" ;;
  esac
}

# remove_other_spills SPILL: remove the spill folders of earlier settings, or all of them if SPILL is empty.
remove_other_spills() {
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
  if [ -n "$PEOPLE" ]; then
    printf '%s' "$PEOPLE" | put $PEOPLE_PRELOAD 0644 root:root
    files+=("$PEOPLE_PRELOAD")
  else
    drop $PEOPLE_PRELOAD
  fi
  if [ -n "$ELASTIC" ]; then
    printf '%s' "$DRAIN" | put $DRAIN_PROGRAM 0644 root:root
    printf '%s' "$ELASTIC" | put $ELASTIC_PROGRAM 0644 root:root
    printf '%s' "$SCALING" | put $SCALING_MODULE 0644 root:root
    files+=("$ELASTIC_PROGRAM" "$SCALING_MODULE")
  else
    drop $ELASTIC_PROGRAM $SCALING_MODULE
    rm -rf $ELASTIC_FILE
  fi
  install -d -m 0755 $OPT/bin
  python_program | put $PYTHON_PROGRAM 0755 root:root
  scheduler_unit | put $UNITS/dask-scheduler.service 0644 root:root
  systemctl daemon-reload
  if outdated dask-scheduler "${files[@]}"; then systemctl stop dask-scheduler; fi
  systemctl -q enable --now dask-scheduler
  wait_for_service dask-scheduler "$ADDRESS" "$SCHEDULER_PORT"
}

run_workers() {
  local number workers=() restart=()
  printf '%s' "$DRAIN" | put $DRAIN_PROGRAM 0644 root:root
  printf '%s' "$RETIRED" | put $RETIRED_PROGRAM 0644 root:root
  worker_unit | put $UNITS/dask-worker@.service 0644 root:root
  systemctl daemon-reload
  stop_waiting_workers
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
    lock_restarts "$AUTHORITY_ADDRESS"
    systemctl stop "${restart[@]}"
  fi
  systemctl -q enable "${workers[@]}"
  start_workers "${workers[@]}"
}

# Stop the programs that keep workers stopped, so that new ones with the new settings replace them.
stop_waiting_workers() {
  local waiting
  mapfile -t waiting < <(systemctl list-units --plain --no-legend --state=activating 'dask-worker@*' | cut -d ' ' -f 1)
  [ ${#waiting[@]} -eq 0 ] || systemctl stop "${waiting[@]}"
}

# Tasks can create files, folders or links with such names, in any number.
forget_retired() { find $CLUSTER_HOME -maxdepth 1 -name 'retired-*' -exec rm -rf {} + 2>/dev/null || true; }

undo() {
  stop_workers_from 1
  stop_scheduler
  rm -f $ETC/worker-*.env.new
  drop $UNITS/dask-worker@.service $ETC/dask.yaml $ETC/secret.env $ETC/scheduler $DRAIN_PROGRAM $RETIRED_PROGRAM $RELOADER
  # If only this step failed, keep the connections of other machines.
  [ $undo_on_failure = yes ] || end_processes
  drop_ssds
  systemctl daemon-reload
  remove_other_spills ''
  tidy
}

exclusively main "$@" </dev/null
