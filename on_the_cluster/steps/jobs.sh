# State (on the scheduler's machine): root can start jobs here. A job is a script with its modules, which runs next to
# the scheduler under its own user, and goes on without the user's computer.
#   JOBS            the Python program that starts, lists and stops jobs
#   DOOR            the Python program that hands sessions of the tunnels' user to JOBS
#   RUN_JOB         the Python program that a job's unit runs
#   USER_CODE       the Python module that makes a job's modules importable on the workers
#   SCHEDULER       the scheduler's address
#   DATA_PATH       the shared directory
#   HOMES           yes: jobs see /home, read-only; no: it is empty for them
#   TLS             yes: jobs get this machine's TLS key
# Jobs can submit tasks, so they can do whatever tasks can. Tasks cannot read a job's files or signal it.

JOBS_USER=dask-jobs
JOBS_HOME=$VAR/jobs
PROGRAMS=$OPT/jobs
UNITS=/etc/systemd/system
UNIT=$UNITS/dask-job@.service
SOCKET=dask-jobs.socket
SERVER=dask-jobs@.service

is_ours() { [ "$(getent passwd $JOBS_USER | cut -d: -f6)" = $JOBS_HOME ]; }

# The cluster's group gives access to the shared directory.
jobs_user() {
  if ! id $JOBS_USER >/dev/null 2>&1; then
    useradd --system --gid $CLUSTER_USER --no-create-home --home-dir $JOBS_HOME --shell /usr/sbin/nologin \
      --comment "Jobs of the Dask cluster" $JOBS_USER
  elif ! is_ours; then
    fatal "user '$JOBS_USER' already exists and does not belong to this cluster; rename it or use another machine"
  fi
  install -d -m 0711 $JOBS_HOME
}

unit() {
  local key=$ETC/tls/key.pem python=$OPT/environment/bin/python
  cat <<CONF
[Unit]
Description=Job %i of the Dask cluster
# At a shutdown, stop this service before the scheduler, the network and the shared directory.
After=network-online.target remote-fs.target dask-scheduler.service
Wants=network-online.target
# systemd forgets a job that has failed; its record stays.
CollectMode=inactive-or-failed

[Service]
User=$JOBS_USER
Group=$CLUSTER_USER
WorkingDirectory=$JOBS_HOME/%i/code
EnvironmentFile=$ETC/secret.env
Environment=HOME=$JOBS_HOME/%i/code PATH=$OPT/environment/bin:/usr/local/bin:/usr/bin:/bin
Environment=PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$OPT/modules DASKSTACK_DATA=$DATA_PATH
Environment=DASK_CONFIG=$ETC/dask.yaml DASK_SCHEDULER_ADDRESS=$SCHEDULER
LoadCredential=job:$JOBS_HOME/%i/job.json
$([ "$TLS" != yes ] || echo "LoadCredential=key.pem:$key")
ExecStart=/bin/sh -c 'DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY=\$CREDENTIALS_DIRECTORY/key.pem exec $python $PROGRAMS/run_job.py'
ExecStopPost=+$python -I $PROGRAMS/jobs.py ended %i
StandardOutput=append:$JOBS_HOME/%i/output
StandardError=inherit
TimeoutStopSec=20
KillMode=mixed
InaccessiblePaths=$CLUSTER_HOME
$(protection "$DATA_PATH")

[Install]
WantedBy=multi-user.target
CONF
}

socket() {
  cat <<CONF
[Unit]
Description=Requests for jobs of the Dask cluster

[Socket]
ListenSequentialPacket=/run/dask-jobs.sock
SocketUser=dask-tunnel
SocketMode=0600
RemoveOnStop=yes
Accept=yes
MaxConnections=200

[Install]
WantedBy=sockets.target
CONF
}

server() {
  cat <<CONF
[Unit]
Description=A request for jobs of the Dask cluster
CollectMode=inactive-or-failed

[Service]
ExecStart=$OPT/environment/bin/python -I $PROGRAMS/jobs.py serve
StandardInput=socket
StandardOutput=journal
StandardError=journal
ProtectHome=yes
PrivateTmp=yes
CONF
}

main() {
  if [ "${1:-}" = undo ]; then
    undo
    return
  fi
  jobs_user
  install -d -m 0755 $OPT $PROGRAMS $PROGRAMS/daskstack
  printf '%s' "$JOBS" | put $PROGRAMS/jobs.py 0644 root:root
  printf '%s' "$DOOR" | put $PROGRAMS/jobs_door.py 0644 root:root
  printf '%s' "$RUN_JOB" | put $PROGRAMS/run_job.py 0644 root:root
  printf '%s' "$USER_CODE" | put $PROGRAMS/daskstack/user_code.py 0644 root:root
  unit | put $UNIT 0644 root:root
  server | put $UNITS/$SERVER 0644 root:root
  changed=no
  socket | put $UNITS/$SOCKET 0644 root:root
  systemctl daemon-reload
  if [ $changed = yes ]; then systemctl restart $SOCKET; fi
  systemctl -q enable --now $SOCKET
}

undo() {
  local link
  [ ! -e $UNITS/$SOCKET ] || systemctl -q disable --now $SOCKET
  drop $UNITS/$SOCKET $UNITS/$SERVER
  for link in /etc/systemd/system/multi-user.target.wants/dask-job@*.service; do
    [ -L "$link" ] || continue
    rm -f "$link"
    systemctl -q stop "$(basename "$link")"
  done
  drop $UNIT
  systemctl daemon-reload
  (CLUSTER_USER=$JOBS_USER CLUSTER_HOME=$JOBS_HOME && end_cluster_user)
  ! is_ours || userdel $JOBS_USER
  rm -rf $JOBS_HOME $PROGRAMS
  tidy
}

exclusively main "$@" </dev/null
