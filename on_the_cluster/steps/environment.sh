# State: the lock's packages, and no others, are installed on this machine's own disk, and what runs here runs on them.
#   LOCK_SHA256    of the lock, as the authority's machine hands it out
#   PYTHON         minor version, the same on every machine:  3.11
#   SOURCE         index: packages come from the machine's own package index; wheelhouse: from the authority's machine
#   UV, UV_SHA256  file name and checksum of the wheel that brings uv
#   AUTHORITY_ADDRESS  of the machine that hands out lock and wheels, and that lets workers restart on one machine at a
#                  time; empty on that machine

FILES=$OPT/files
ENVIRONMENT=$OPT/environment
INSTALLED=$OPT/installed
OWN=$OPT/own # root's copies

UV_BIN=$OPT/uv/${UV%.whl}/bin/uv
FILES_LIMIT=1200 # seconds that the files of the authority's machine are mounted
UV_LIMIT=1800    # seconds for uv, once
UV_SILENCE=30    # seconds that a package index may be silent, before uv tries it again

files=$FILES

# On the others: only what is not installed yet crosses the network, so it is mounted and not copied. The cluster's user
# hands it out, so whatever root reads there may be something else the next time, and may never arrive.
reach_files() {
  need sshfs sshfs fuse-sshfs
  files=/run/daskstack-files
  let_go
  mkdir -p $files
  at_exit=let_go
  # Whoever still reads from it at the end gets an error.
  timeout -s KILL $FILES_LIMIT \
    sshfs -f -o "ro,ssh_command=$ETC/ssh/ssh" "$CLUSTER_USER@$AUTHORITY_ADDRESS:$FILES" $files </dev/null >/dev/null 9>&- &
  mounting=$!
  disown # bash reports its end otherwise
  until findmnt -n $files >/dev/null; do
    kill -0 $mounting 2>/dev/null || fatal "lock and wheels cannot be read from $AUTHORITY_ADDRESS"
    sleep 0.05
  done
}

mounting=
let_go() {
  [ -z "$mounting" ] || kill -KILL -- "-$mounting" 2>/dev/null || true
  if findmnt -n $files >/dev/null; then umount -l $files; fi
  [ $files = $FILES ] || [ ! -d $files ] || rmdir $files
}

# take FILE SHA256: root's own copy of it in $OWN, which is as `up` knows it.
take() {
  install -d -m 0700 $OWN
  head -c 500M "$files/$1" >"$OWN/$1" || fatal "$1 cannot be read from ${AUTHORITY_ADDRESS:-$FILES}"
  [ "$(sha256sum <"$OWN/$1" | cut -d' ' -f1)" = "$2" ] ||
    fatal "$1${AUTHORITY_ADDRESS:+ from $AUTHORITY_ADDRESS} is not what up copied: a task may have changed what that" \
      "machine hands out, or the copy is an old one; run up again"
}

install_uv() {
  [ -x "$UV_BIN" ] && return
  take "$UV" "$UV_SHA256"
  need python3 python3
  rm -rf $OPT/uv
  mkdir -p "$(dirname "$UV_BIN")"
  python3 -I -m zipfile -e "$OWN/$UV" $OPT/uv/unpacked
  install -m 0755 $OPT/uv/unpacked/uv-*.data/scripts/uv "$UV_BIN"
  rm -rf $OPT/uv/unpacked
}

# The machine's own package index is named in uv's configuration there: /etc/uv/uv.toml.
uv() {
  local configured=(UV_SYSTEM_CERTS=1) status=0 # without any it fails, even where it fetches nothing
  [ "$SOURCE" = index ] || configured=(UV_NO_CONFIG=1)
  timeout $UV_LIMIT env "${configured[@]}" UV_CACHE_DIR=$OPT/cache UV_PYTHON_INSTALL_DIR=$OPT/python UV_NO_PROGRESS=1 \
    UV_HTTP_TIMEOUT=$UV_SILENCE "$UV_BIN" "$@" || status=$?
  [ $status != 124 ] || note "uv had not ended after $UV_LIMIT s on $(hostname)"
  return $status
}

has_python() { [ "$("$ENVIRONMENT/bin/python" -I -c "$version" 2>/dev/null)" = "$PYTHON" ]; }

version='import sys; print("%d.%d" % sys.version_info[:2])'

# The machine's own Python where it has the right one; else one of uv's, if this machine may fetch it.
make_environment() {
  if has_python; then return; fi
  local downloads=never
  [ "$SOURCE" = wheelhouse ] || downloads=automatic
  uv venv -q --clear --python "$PYTHON" --python-preference system --no-python-downloads $ENVIRONMENT 2>/dev/null && return
  [ $downloads = automatic ] && uv venv -q --clear --python "$PYTHON" $ENVIRONMENT && return
  fatal "this machine has no Python $PYTHON (it has $(python3 -I -c "$version" 2>/dev/null || echo none)):" \
    "install python$PYTHON here, or set environment.python to what every machine has and make the lock for it"
}

# Wheels alone: building a source package runs its code as root. uv hashes a wheel while it unpacks it, so that wheels
# need no copy of root's own.
sync_packages() {
  local from=()
  [ "$SOURCE" = index ] || from=(--no-index --find-links "$files/wheels")
  uv pip sync "$@" --no-build --require-hashes "${from[@]}" --python $ENVIRONMENT/bin/python $OWN/environment.lock
}

install_packages() {
  sync_packages -q || fatal "uv could not install the lock; its words are above"
  rm -rf $OPT/cache $OWN
}

# services PATTERN: the units of that name that are to run here.
services() {
  find /etc/systemd/system/multi-user.target.wants -name "dask-$1.service" -printf '%f\n' | sed 's/\.service$//'
}

# Sets `stopped` to what runs here and cannot go on during the change. A process reads its packages as it needs them:
# those that are new do it no harm, those that change or go do.
stop_what_is_affected() {
  local gone workers scheduler
  mapfile -t workers < <(services 'worker@*')
  scheduler=$(services scheduler)
  [ ${#workers[@]} -gt 0 ] || [ -n "$scheduler" ] || return 0
  if has_python; then
    gone=$(sync_packages --dry-run 2>&1) || fatal "uv cannot install the lock: $gone"
    gone=$(sed -n 's/^ [-~] \([^=@ ]*\).*/\1/p' <<<"$gone")
    [ -n "$gone" ] || return 0
    # shellcheck disable=SC2086 # the names are words
    if [ -n "$scheduler" ] && ! scheduler_is_without $gone; then stopped+=("$scheduler"); fi
  elif [ -n "$scheduler" ]; then
    stopped+=("$scheduler")
  fi
  if [ ${#workers[@]} -gt 0 ]; then
    one_at_a_time "$AUTHORITY_ADDRESS"
    stopped+=("${workers[@]}")
  fi
  [ ${#stopped[@]} -eq 0 ] || systemctl stop "${stopped[@]}"
}

stopped=()

# Whether the scheduler has loaded nothing of these packages.
scheduler_is_without() {
  in_environment timeout 30 python -c "$loaded" "$(<$ETC/scheduler)" "$@" 2>/dev/null
}

loaded='
import importlib.metadata, re, sys
from distributed import Client

def modules():
    return {name.partition(".")[0] for name in list(sys.modules)}

owners = importlib.metadata.packages_distributions()
with Client(sys.argv[1], timeout=10) as client:
    names = {name for module in client.run_on_scheduler(modules) for name in owners.get(module, ())}
sys.exit(any(re.sub("[-_.]+", "-", name).lower() in sys.argv[2:] for name in names))
'

# Also what an earlier run stopped and could not start again.
start_services() {
  local workers scheduler
  mapfile -t workers < <(services 'worker@*')
  scheduler=$(services scheduler)
  [ -z "$scheduler" ] || systemctl start "$scheduler"
  [ ${#workers[@]} -eq 0 ] || start_workers "${workers[@]}"
}

main() {
  if [ "${1:-}" = undo ]; then
    rmdir /run/daskstack-files 2>/dev/null || true
    rm -rf $ENVIRONMENT $OPT/uv $OPT/python $OPT/cache $OWN
    drop $INSTALLED
    tidy
    return
  fi
  [ "$(uname -m)" = x86_64 ] || fatal "this machine is $(uname -m); lock and wheels are for x86_64"
  install -d -m 0755 $OPT
  [ "$(cat $INSTALLED 2>/dev/null)" = "$LOCK_SHA256 $PYTHON" ] && return
  [ -z "$AUTHORITY_ADDRESS" ] || reach_files
  take environment.lock "$LOCK_SHA256"
  install_uv
  rm -f $INSTALLED
  stop_what_is_affected
  make_environment
  install_packages
  start_services
  printf '%s\n' "$LOCK_SHA256 $PYTHON" | put $INSTALLED 0644 root:root
}

alone main "$@" </dev/null
