# State: the lock's packages, and no others, are installed on this machine's own disk, and what runs here runs on them.
#   LOCK_SHA256    of the lock, as the authority's machine hands it out
#   PYTHON         minor version, the same on every machine:  3.11
#   SOURCE         index: packages come from the machine's own package index; wheelhouse: from the authority's machine
#   UV, UV_SHA256  file name and checksum of the wheel that brings uv
#   AUTHORITY_ADDRESS  of the machine that hands out lock and wheels, and that lets workers restart on one machine at a
#                  time; empty on that machine
#   LOGIN_USER     the user whose home they were copied to, on the authority's machine

FILES=$OPT/files
ENVIRONMENT=$OPT/environment
INSTALLED=$OPT/installed

files=$FILES

# On the authority's machine: takes what up copied, as a whole.
take_over() {
  local upload
  upload=$(getent passwd "$LOGIN_USER" | cut -d: -f6)/daskstack-files
  if [ -d "$upload" ]; then
    rm -rf $FILES.new
    cp -R --no-preserve=mode,ownership "$upload" $FILES.new
    rm -rf $FILES
    mv $FILES.new $FILES
    rm -rf "$upload"
  fi
}

# After a first run that failed: up sends them only once, and the next run looks for them where up put them.
hand_back() {
  local upload
  upload=$(getent passwd "$LOGIN_USER" | cut -d: -f6)/daskstack-files
  if [ ! -d $FILES ] || [ -e "$upload" ]; then return; fi
  mv $FILES "$upload"
  chown -hR "$LOGIN_USER:" "$upload"
}

# On the others: only what is not installed yet crosses the network, so it is mounted and not copied.
reach_files() {
  need sshfs sshfs fuse-sshfs
  files=/run/daskstack-files
  mkdir -p $files
  let_go
  at_exit=let_go
  sshfs -o "ro,ssh_command=$ETC/ssh/ssh" "$CLUSTER_USER@$AUTHORITY_ADDRESS:$FILES" $files ||
    fatal "lock and wheels cannot be read from $AUTHORITY_ADDRESS"
}

let_go() { if findmnt -n $files >/dev/null; then umount -l $files; fi; }

checksum() { [ "$(sha256sum <"$1" | cut -d' ' -f1)" = "$2" ] || fatal "$1 is not what up copied; run up again"; }

install_uv() {
  [ -x "$OPT/uv/${UV%.whl}/bin/uv" ] && return
  checksum "$files/$UV" "$UV_SHA256"
  need python3 python3
  rm -rf $OPT/uv
  mkdir -p "$OPT/uv/${UV%.whl}/bin"
  python3 -m zipfile -e "$files/$UV" $OPT/uv/unpacked
  install -m 0755 $OPT/uv/unpacked/uv-*.data/scripts/uv "$OPT/uv/${UV%.whl}/bin/uv"
  rm -rf $OPT/uv/unpacked
}

# The machine's own package index is named in uv's configuration there: /etc/uv/uv.toml.
uv() {
  local configured=()
  [ "$SOURCE" = index ] || configured=(UV_NO_CONFIG=1)
  env "${configured[@]}" UV_CACHE_DIR=$OPT/cache UV_PYTHON_INSTALL_DIR=$OPT/python UV_NO_PROGRESS=1 UV_SYSTEM_CERTS=1 \
    "$OPT/uv/${UV%.whl}/bin/uv" "$@"
}

has_python() { [ "$("$ENVIRONMENT/bin/python" -c "$version" 2>/dev/null)" = "$PYTHON" ]; }

version='import sys; print("%d.%d" % sys.version_info[:2])'

# The machine's own Python where it has the right one; else one of uv's, if this machine may fetch it.
make_environment() {
  if has_python; then return; fi
  local downloads=never
  [ "$SOURCE" = wheelhouse ] || downloads=automatic
  uv venv -q --clear --python "$PYTHON" --python-preference system --no-python-downloads $ENVIRONMENT 2>/dev/null && return
  [ $downloads = automatic ] && uv venv -q --clear --python "$PYTHON" $ENVIRONMENT && return
  fatal "this machine has no Python $PYTHON (it has $(python3 -c "$version" 2>/dev/null || echo none)):" \
    "install python$PYTHON here, or set environment.python to what every machine has and make the lock for it"
}

sync_packages() {
  local from=()
  [ "$SOURCE" = index ] || from=(--no-index --find-links "$files/wheels")
  uv pip sync "$@" --require-hashes "${from[@]}" --python $ENVIRONMENT/bin/python "$files/environment.lock"
}

install_packages() {
  sync_packages -q || fatal "uv could not install the lock; its words are above"
  rm -rf $OPT/cache
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
    if [ $undo_on_failure = yes ] && [ -z "$AUTHORITY_ADDRESS" ]; then hand_back; fi
    rmdir /run/daskstack-files 2>/dev/null || true
    rm -rf $FILES $FILES.new $ENVIRONMENT $OPT/uv $OPT/python $OPT/cache $INSTALLED
    tidy
    return
  fi
  [ "$(uname -m)" = x86_64 ] || fatal "this machine is $(uname -m); lock and wheels are for x86_64"
  install -d -m 0755 $OPT
  [ -n "$AUTHORITY_ADDRESS" ] || take_over
  [ "$(cat $INSTALLED 2>/dev/null)" = "$LOCK_SHA256 $PYTHON" ] && return
  [ -z "$AUTHORITY_ADDRESS" ] || reach_files
  checksum "$files/environment.lock" "$LOCK_SHA256"
  install_uv
  rm -f $INSTALLED
  stop_what_is_affected
  make_environment
  install_packages
  start_services
  printf '%s\n' "$LOCK_SHA256 $PYTHON" | put $INSTALLED 0644 root:root
}

alone main "$@" </dev/null
