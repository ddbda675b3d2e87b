# State: exactly the lock's packages are installed on this machine's own disk, and Dask's processes use them.
#   LOCK_SHA256    checksum of the lock that the authority's machine serves
#   PYTHON         Python's minor version, the same on every machine, e.g. 3.11
#   SOURCE         index: packages come from the machine's package index; wheelhouse: from the authority's machine
#   UV, UV_SHA256  file name and checksum of the wheel that contains uv
#   AUTHORITY_ADDRESS  address of the machine that serves the lock and the wheels, and that holds the lock for restarts of
#                  workers; empty on that machine

FILES=$OPT/files
ENVIRONMENT=$OPT/environment
INSTALLED=$OPT/installed
OWN=$OPT/own # copies that only root can write

UV_BIN=$OPT/uv/${UV%.whl}/bin/uv
FILES_LIMIT=1200 # seconds after which the mount of the authority's files ends
UV_LIMIT=1800    # timeout in seconds for each run of uv
UV_SILENCE=30    # seconds without data from a package index before uv retries

files=$FILES

# Mount the files of the authority's machine instead of copying them, so that only missing packages are transferred. The
# cluster's user serves them: a file may change between two reads, and a read may never return.
mount_files() {
  need sshfs sshfs fuse-sshfs
  files=/run/daskstack-files
  unmount_files
  mkdir -p $files
  at_exit=unmount_files
  # When the time limit is reached, pending reads fail.
  timeout -s KILL $FILES_LIMIT \
    sshfs -f -o "ro,ssh_command=$ETC/ssh/ssh" "$CLUSTER_USER@$AUTHORITY_ADDRESS:$FILES" $files </dev/null >/dev/null 9>&- &
  mounting=$!
  disown # otherwise bash reports when it ends
  until findmnt -n $files >/dev/null; do
    kill -0 $mounting 2>/dev/null || fatal "cannot read the lock and the wheels from $AUTHORITY_ADDRESS"
    sleep 0.05
  done
}

mounting=
unmount_files() {
  [ -z "$mounting" ] || kill -KILL -- "-$mounting" 2>/dev/null || true
  if findmnt -n $files >/dev/null; then umount -l $files; fi
  [ $files = $FILES ] || [ ! -d $files ] || rmdir $files
}

# copy_verified FILE SHA256: copy FILE to $OWN, where only root can change it, and verify its checksum.
copy_verified() {
  install -d -m 0700 $OWN
  head -c 500M "$files/$1" >"$OWN/$1" || fatal "cannot read $1 from ${AUTHORITY_ADDRESS:-$FILES}"
  [ "$(sha256sum <"$OWN/$1" | cut -d' ' -f1)" = "$2" ] ||
    fatal "$1${AUTHORITY_ADDRESS:+ from $AUTHORITY_ADDRESS} differs from the file that up copied there: a task may have" \
      "changed it, or it is an old copy; run up again"
}

install_uv() {
  [ -x "$UV_BIN" ] && return
  copy_verified "$UV" "$UV_SHA256"
  need python3 python3
  rm -rf $OPT/uv
  mkdir -p "$(dirname "$UV_BIN")"
  python3 -I -m zipfile -e "$OWN/$UV" $OPT/uv/unpacked
  install -m 0755 $OPT/uv/unpacked/uv-*.data/scripts/uv "$UV_BIN"
  rm -rf $OPT/uv/unpacked
}

# With SOURCE=index, uv reads the machine's package index from /etc/uv/uv.toml.
uv() {
  local configured=(UV_SYSTEM_CERTS=1) status=0 # on a machine without certificates uv fails, even if it downloads nothing
  [ "$SOURCE" = index ] || configured=(UV_NO_CONFIG=1)
  timeout $UV_LIMIT env "${configured[@]}" UV_CACHE_DIR=$OPT/cache UV_PYTHON_INSTALL_DIR=$OPT/python UV_NO_PROGRESS=1 \
    UV_HTTP_TIMEOUT=$UV_SILENCE "$UV_BIN" "$@" || status=$?
  [ $status != 124 ] || note "uv timed out after $UV_LIMIT s on $(hostname)"
  return $status
}

has_python() { [ "$("$ENVIRONMENT/bin/python" -I -c "$version" 2>/dev/null)" = "$PYTHON" ]; }

version='import sys; print("%d.%d" % sys.version_info[:2])'

# Use the machine's own Python if it has the right version. Otherwise let uv download one, unless SOURCE is wheelhouse.
make_environment() {
  if has_python; then return; fi
  local downloads=never
  [ "$SOURCE" = wheelhouse ] || downloads=automatic
  uv venv -q --clear --python "$PYTHON" --python-preference system --no-python-downloads $ENVIRONMENT 2>/dev/null && return
  [ $downloads = automatic ] && uv venv -q --clear --python "$PYTHON" $ENVIRONMENT && return
  fatal "this machine has no Python $PYTHON (found: $(python3 -I -c "$version" 2>/dev/null || echo none)); install" \
    "python$PYTHON, or set environment.python to a version that every machine has and create the lock for it"
}

# Only wheels, because building a source package would run its code as root. uv verifies a wheel's hash while it unpacks
# it, so wheels need not be copied first.
sync_packages() {
  local from=()
  [ "$SOURCE" = index ] || from=(--no-index --find-links "$files/wheels")
  uv pip sync "$@" --no-build --require-hashes "${from[@]}" --python $ENVIRONMENT/bin/python $OWN/environment.lock
}

install_packages() {
  sync_packages -q || fatal "uv could not install the lock's packages; its error is above"
  rm -rf $OPT/cache $OWN
}

# services PATTERN: the enabled Dask units whose names match.
services() {
  find /etc/systemd/system/multi-user.target.wants -name "dask-$1.service" -printf '%f\n' | sed 's/\.service$//'
}

# Stop the services that must not run during the change, and list them in `stopped`. Processes load modules lazily, so
# they can keep running while packages are added, but not while packages that they use change or disappear.
stop_affected_services() {
  local output changing workers scheduler
  mapfile -t workers < <(services 'worker@*')
  scheduler=$(services scheduler)
  [ ${#workers[@]} -gt 0 ] || [ -n "$scheduler" ] || return 0
  if has_python; then
    output=$(sync_packages --dry-run 2>&1) || fatal "uv cannot install the lock's packages: $output"
    changing=$(sed -n 's/^ [-~] \([^=@ ]*\).*/\1/p' <<<"$output")
    [ -n "$changing" ] || return 0
    # shellcheck disable=SC2086 # split into names
    if [ -n "$scheduler" ] && ! scheduler_is_unaffected $changing; then stopped+=("$scheduler"); fi
  elif [ -n "$scheduler" ]; then
    stopped+=("$scheduler")
  fi
  if [ ${#workers[@]} -gt 0 ]; then
    lock_restarts "$AUTHORITY_ADDRESS"
    stopped+=("${workers[@]}")
  fi
  [ ${#stopped[@]} -eq 0 ] || systemctl stop "${stopped[@]}"
}

stopped=()

# scheduler_is_unaffected PACKAGE...: whether the scheduler has loaded no module of these packages.
scheduler_is_unaffected() {
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

# Start all enabled services, including any that an earlier run stopped and could not restart.
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
  [ "$(uname -m)" = x86_64 ] || fatal "this machine's architecture is $(uname -m), but the wheels are for x86_64"
  install -d -m 0755 $OPT
  [ "$(cat $INSTALLED 2>/dev/null)" = "$LOCK_SHA256 $PYTHON" ] && return
  [ -z "$AUTHORITY_ADDRESS" ] || mount_files
  copy_verified environment.lock "$LOCK_SHA256"
  install_uv
  rm -f $INSTALLED
  stop_affected_services
  make_environment
  install_packages
  start_services
  printf '%s\n' "$LOCK_SHA256 $PYTHON" | put $INSTALLED 0644 root:root
}

exclusively main "$@" </dev/null
