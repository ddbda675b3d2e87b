# State (on the scheduler's machine): a notebook server runs under its own user, on the loopback interface. Clients reach
# it through the tunnel.
#   PORT            its port
#   CONFIG          Dask's configuration for notebooks, YAML
#   SERVER          the server's configuration, JSON; with the password's hash
#   PANELS          default settings of JupyterLab's extensions, JSON
#   DATA_PATH       the shared directory; notebooks are in its folder notebooks
#   HOMES           yes: notebooks see /home, read-only; no: it is empty for them
#   TLS             yes: notebooks get this machine's TLS key
#   RENEWAL         a new value replaces that key
#   SECRET_ENV      a new value restarts the server
#   LOCK_SHA256, JUPYTER_SHA256, PYTHON, SOURCE, UV, UV_ENV    as in the step `environment`; the second is the hash of the
#                   lock of Jupyter's packages
# Notebooks can submit tasks, so they can do whatever tasks can. Tasks cannot read the server's files or signal it.

JUPYTER_USER=dask-jupyter
JUPYTER_HOME=$VAR/jupyter
JUPYTER=$ETC/jupyter
UNIT=/etc/systemd/system/dask-jupyter.service
ENVIRONMENT=$OPT/jupyter/environment # Dask's own environment stays exactly as locked
INSTALLED=$OPT/jupyter/installed
UV_BIN=$OPT/uv/${UV%.whl}/bin/uv
files=$OPT/files

is_ours() { [ "$(getent passwd $JUPYTER_USER | cut -d: -f6)" = $JUPYTER_HOME ]; }

# The cluster's group gives access to the shared directory.
jupyter_user() {
  if ! id $JUPYTER_USER >/dev/null 2>&1; then
    useradd --system --gid $CLUSTER_USER --no-create-home --home-dir $JUPYTER_HOME --shell /usr/sbin/nologin \
      --comment "Notebooks of the Dask cluster" $JUPYTER_USER
  elif ! is_ours; then
    fatal "user '$JUPYTER_USER' already exists and does not belong to this cluster; rename it, or write" \
      "jupyter: {enabled: false}"
  fi
  install -d -m 0700 -o $JUPYTER_USER -g $CLUSTER_USER $JUPYTER_HOME
}

refuse_used_port() {
  local listener
  listener=$(ss -Hltnp "sport = :$PORT")
  [ -z "$listener" ] || [[ $listener == *"pid=$(systemctl show -P MainPID dask-jupyter),"* ]] ||
    fatal "another program on this machine uses port $PORT: ${listener##*users:}; write another port as" \
      "dask.ports.jupyter, or jupyter: {enabled: false}"
}

# Adding packages does not disturb running notebooks. Replacing or removing them would.
install_packages() {
  local wanted="$LOCK_SHA256 $JUPYTER_SHA256 $PYTHON" locks=("$files/environment.lock" "$files/jupyter.lock") changing
  [ "$(cat $INSTALLED 2>/dev/null)" != "$wanted" ] || return 0
  rm -f $INSTALLED
  if has_python; then
    changing=$(changing_packages "${locks[@]}")
    [ -z "$changing" ] || stop
  else
    stop
    install -d -m 0755 $OPT/jupyter
    uv venv -q --clear --python $OPT/environment/bin/python $ENVIRONMENT
  fi
  sync_packages -q "${locks[@]}" >&2
  rm -rf $OPT/cache
  label $OPT
  printf '%s\n' "$wanted" | put $INSTALLED 0644 root:root
}

unit() {
  cat <<CONF
[Unit]
Description=Notebook server of the Dask cluster
# At a shutdown, stop this service before the network and the shared directory.
After=network-online.target remote-fs.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
User=$JUPYTER_USER
Group=$CLUSTER_USER
WorkingDirectory=$JUPYTER_HOME
RuntimeDirectory=dask-jupyter
RuntimeDirectoryMode=0700
EnvironmentFile=$ETC/secret.env
Environment=HOME=$JUPYTER_HOME SHELL=/bin/bash PATH=$ENVIRONMENT/bin:/usr/local/bin:/usr/bin:/bin
Environment=DASK_CONFIG=$JUPYTER/dask.yaml PYTHONPYCACHEPREFIX=$JUPYTER_HOME/.cache/pycache
Environment=PYTHONPATH=$OPT/modules DASKSTACK_DATA=$DATA_PATH
Environment=JUPYTER_CONFIG_PATH=$JUPYTER JUPYTER_RUNTIME_DIR=/run/dask-jupyter
ExecStartPre=mkdir -p $DATA_PATH/notebooks
ExecStart=$ENVIRONMENT/bin/jupyter-lab
Restart=always
RestartSec=2
TimeoutStopSec=20
InaccessiblePaths=$CLUSTER_HOME
$(protection "$DATA_PATH")

[Install]
WantedBy=multi-user.target
CONF
}

stop() { [ ! -e $UNIT ] || systemctl -q stop dask-jupyter; }

main() {
  if [ "${1:-}" = undo ]; then
    undo
    return
  fi
  refuse_used_port
  jupyter_user
  install_packages
  install -d -m 0755 $JUPYTER $JUPYTER/labconfig
  printf '%s\n' "$CONFIG" | put $JUPYTER/dask.yaml 0644 root:root
  printf '%s\n' "$SERVER" | put $JUPYTER/jupyter_server_config.json 0400 $JUPYTER_USER:root
  printf '%s\n' "$PANELS" | put $JUPYTER/labconfig/default_setting_overrides.json 0644 root:root
  if [ "$TLS" = yes ]; then put $JUPYTER/key.pem 0400 $JUPYTER_USER:root <$ETC/tls/key.pem; else drop $JUPYTER/key.pem; fi
  unit | put $UNIT 0644 root:root
  systemctl daemon-reload
  # Kernels read Dask's configuration and key when they start.
  if outdated dask-jupyter $UNIT $ETC/secret.env $JUPYTER/jupyter_server_config.json \
    $JUPYTER/labconfig/default_setting_overrides.json; then stop; fi
  systemctl -q enable --now dask-jupyter
  wait_for_service dask-jupyter 127.0.0.1 "$PORT"
}

undo() {
  [ ! -e $UNIT ] || systemctl -q disable --now dask-jupyter
  drop $UNIT
  systemctl daemon-reload
  (CLUSTER_USER=$JUPYTER_USER CLUSTER_HOME=$JUPYTER_HOME && end_cluster_user)
  ! is_ours || userdel $JUPYTER_USER
  rm -rf $OPT/jupyter $JUPYTER $JUPYTER_HOME
  tidy
}

exclusively main "$@" </dev/null
