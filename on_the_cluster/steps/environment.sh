# State: exactly the lock's packages are installed on this machine's own disk, and Dask's processes use them.
#   LOCK_SHA256    checksum of the lock that the authority's machine serves
#   PYTHON         Python's minor version, the same on every machine, e.g. 3.11
#   SOURCE         index: packages come from the machine's package index; wheelhouse: from the authority's machine;
#                  archive: the lock is that of an archive on the authority's machine, which contains the environment
#   ARCHIVE_SHA256, ARCHIVE_SIZE   checksum of the archive, and its size in bytes
#   SYSTEM         Debian or Red Hat packages that Python packages need, separated by spaces, e.g. libgl1
#   UV, UV_SHA256  file name and checksum of the wheel that contains uv
#   UV_ENV         variables for uv as shell code, such as the package index with its password, or a proxy; may be empty
#   CERTIFICATES   certificates (PEM) of authorities that uv and tasks trust, in addition to the system's; may be empty
#   CHECK, IMPORTS a Python program that imports packages, and their names as its argument; IMPORTS is empty if there are none
#   AUTHORITY_ADDRESS  address of the machine that serves the lock and the wheels, and that holds the lock for restarts of
#                  workers; empty on that machine

FILES=$OPT/files
ENVIRONMENT=$OPT/environment
INSTALLED=$OPT/installed
AUTHORITIES=$OPT/authorities.crt # UV_ENV and the services name this file
OWN=$OPT/own                     # copies that only root can write

UV_BIN=$OPT/uv/${UV%.whl}/bin/uv
FILES_LIMIT=1200 # seconds after which the mount of the authority's files ends

files=$FILES

# Mount the files of the authority's machine instead of copying them, so that only missing packages are transferred. The
# cluster's user serves them: a file may change between two reads, and a read may never return.
mount_files() {
  need sshfs
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

# copy_verified FILE SHA256 [SIZE]: copy FILE to $OWN, where only root can change it, and verify its checksum.
copy_verified() {
  install -d -m 0700 $OWN
  head -c "${3:-500M}" "$files/$1" >"$OWN/$1" || fatal "cannot read $1 from ${AUTHORITY_ADDRESS:-$FILES}"
  [ "$(sha256sum <"$OWN/$1" | cut -d' ' -f1)" = "$2" ] ||
    fatal "$1${AUTHORITY_ADDRESS:+ from $AUTHORITY_ADDRESS} differs from the file that up copied there: a task may have" \
      "changed it, or it is an old copy; run up again"
}

# Debian has the first of these files, Red Hat the second.
system_authorities() { cat /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt 2>/dev/null || true; }

trust_authorities() {
  if [ -n "$CERTIFICATES" ]; then
    (system_authorities && printf '%s\n' "$CERTIFICATES") | put $AUTHORITIES 0644 root:root
  else
    drop $AUTHORITIES
  fi
}

install_uv() {
  [ -x "$UV_BIN" ] && return
  copy_verified "$UV" "$UV_SHA256"
  need python3
  rm -rf $OPT/uv
  mkdir -p "$(dirname "$UV_BIN")"
  python3 -I -m zipfile -e "$OWN/$UV" $OPT/uv/unpacked
  install -m 0755 $OPT/uv/unpacked/uv-*.data/scripts/uv "$UV_BIN"
  rm -rf $OPT/uv/unpacked
}

# Python's wheels do not contain every library that they load: lightgbm needs GNU's OpenMP.
install_system_packages() {
  local package
  ldconfig -p | grep -F libgomp.so.1 >/dev/null || install_package "$(package_of libgomp.so.1)" ||
    note "libgomp could not be installed on $(hostname), so LightGBM cannot run"
  for package in $SYSTEM; do
    has_package "$package" || install_package "$package" ||
      fatal "cannot install $package of environment.system; check its name and this machine's package sources"
  done
}

has_package() {
  if command -v dpkg-query >/dev/null; then
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
  else
    rpm -q "$1" >/dev/null 2>&1
  fi
}

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

# Pulumi's user chose the archive, so root can run the program in it that corrects the paths of conda's packages.
unpack_archive() {
  local new=$ENVIRONMENT.new
  rm -rf $new
  install -d -m 0755 $new
  tar --extract --no-same-owner --file $OWN/environment.tar.gz --directory $new || fatal "cannot unpack the archive"
  chmod -R u=rwX,go=rX $new
  touch $new/.archive
  rm -rf $ENVIRONMENT $OWN
  mv $new $ENVIRONMENT
  [ ! -e $ENVIRONMENT/bin/conda-unpack ] || $ENVIRONMENT/bin/python $ENVIRONMENT/bin/conda-unpack >&2
  as_cluster_user $ENVIRONMENT/bin/python -I -c 'import distributed' >&2 ||
    fatal "Dask does not run in the archive's environment; its error is above. An archive of venv-pack needs the same" \
      "Python at the same path as on the computer where it was packed"
}

install_packages() {
  sync_packages -q $OWN/environment.lock >&2
  rm -rf $OPT/cache $OWN
}

# services PATTERN: the enabled Dask units whose names match.
services() {
  find /etc/systemd/system/multi-user.target.wants -name "dask-$1.service" -printf '%f\n' | sed 's/\.service$//'
}

# Stop the services that must not run during the change, and list them in `stopped`. Processes load modules lazily, so
# they can keep running while packages are added, but not while packages that they use change or disappear.
stop_affected_services() {
  local changing workers scheduler
  mapfile -t workers < <(services 'worker@*')
  scheduler=$(services scheduler)
  [ ${#workers[@]} -gt 0 ] || [ -n "$scheduler" ] || return 0
  if [ "$SOURCE" != archive ] && has_python; then
    changing=$(changing_packages $OWN/environment.lock)
    [ -n "$changing" ] || return 0
    refuse_running_jobs
    # shellcheck disable=SC2086 # split into names
    if [ -n "$scheduler" ] && ! scheduler_is_unaffected $changing; then stopped+=("$scheduler"); fi
  elif [ -n "$scheduler" ]; then
    refuse_running_jobs
    stopped+=("$scheduler")
  fi
  if [ ${#workers[@]} -gt 0 ]; then
    lock_restarts "$AUTHORITY_ADDRESS"
    stopped+=("${workers[@]}")
  fi
  [ ${#stopped[@]} -eq 0 ] || systemctl stop "${stopped[@]}"
}

stopped=()

refuse_running_jobs() {
  local program=$OPT/jobs/jobs.py jobs
  [ -e "$program" ] || return 0
  mapfile -t jobs < <(/usr/bin/python3 -I "$program" busy)
  [ ${#jobs[@]} -eq 0 ] || fatal "this change replaces packages that jobs use; wait for ${jobs[*]} (daskstack jobs" \
    "wait NUMBER), or stop them (daskstack jobs stop NUMBER), then run up again"
}

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
    rm -rf $ENVIRONMENT $ENVIRONMENT.new $OPT/uv $OPT/python $OPT/cache $OWN
    drop $INSTALLED $AUTHORITIES
    tidy
    return
  fi
  [ "$(uname -m)" = x86_64 ] || fatal "this machine's architecture is $(uname -m), but the wheels are for x86_64"
  install -d -m 0755 $OPT
  install_system_packages
  trust_authorities
  [ "$(cat $INSTALLED 2>/dev/null)" = "$LOCK_SHA256 $PYTHON" ] || install_environment
  import_packages
}

install_environment() {
  [ -z "$AUTHORITY_ADDRESS" ] || mount_files
  copy_verified environment.lock "$LOCK_SHA256"
  if [ "$SOURCE" = archive ]; then copy_verified environment.tar.gz "$ARCHIVE_SHA256" "$ARCHIVE_SIZE"; else install_uv; fi
  rm -f $INSTALLED
  stop_affected_services
  if [ "$SOURCE" = archive ]; then
    unpack_archive
  else
    make_environment
    install_packages
  fi
  label $OPT
  start_services
  printf '%s\n' "$LOCK_SHA256 $PYTHON" | put $INSTALLED 0644 root:root
}

# A system library that a package needs can be missing on one machine alone.
import_packages() {
  [ -z "$IMPORTS" ] || within=180 in_environment python -c "$CHECK" "$IMPORTS" 2>&1 >/dev/null | printable >&2
}

exclusively main "$@" </dev/null
