# State: the lock's packages, and no others, are installed on this machine's own disk.
#   LOCK_SHA256    of the lock, as the authority's machine hands it out
#   PYTHON         minor version, the same on every machine:  3.11
#   SOURCE         index: packages come from the machine's own package index; wheelhouse: from the authority's machine
#   UV, UV_SHA256  file name and checksum of the wheel that brings uv
#   FILES_ADDRESS  address of the authority's machine, which hands out lock and wheels; empty on that machine
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

# On the others: only what is not installed yet crosses the network, so it is mounted and not copied.
reach_files() {
  need sshfs sshfs fuse-sshfs
  files=/run/daskstack-files
  mkdir -p $files
  let_go
  trap let_go EXIT
  sshfs -o "ro,ssh_command=$ETC/ssh/ssh" "$CLUSTER_USER@$FILES_ADDRESS:$FILES" $files ||
    fatal "lock and wheels cannot be read from $FILES_ADDRESS"
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

uv() {
  env UV_NO_CONFIG=1 UV_CACHE_DIR=$OPT/cache UV_PYTHON_INSTALL_DIR=$OPT/python UV_NO_PROGRESS=1 UV_SYSTEM_CERTS=1 \
    "$OPT/uv/${UV%.whl}/bin/uv" "$@"
}

# The machine's own Python where it has the right one; else one of uv's, if this machine may fetch it.
make_environment() {
  [ "$("$ENVIRONMENT/bin/python" -c "$version" 2>/dev/null)" = "$PYTHON" ] && return
  local downloads=never
  [ "$SOURCE" = wheelhouse ] || downloads=automatic
  uv venv -q --clear --python "$PYTHON" --python-preference system --no-python-downloads $ENVIRONMENT 2>/dev/null && return
  [ $downloads = automatic ] && uv venv -q --clear --python "$PYTHON" $ENVIRONMENT && return
  fatal "this machine has no Python $PYTHON (it has $(python3 -c "$version" 2>/dev/null || echo none)):" \
    "install python$PYTHON here, or set environment.python to what every machine has and make the lock for it"
}

version='import sys; print("%d.%d" % sys.version_info[:2])'

install_packages() {
  local from=()
  [ "$SOURCE" = index ] || from=(--no-index --find-links "$files/wheels")
  uv pip sync -q --require-hashes "${from[@]}" --python $ENVIRONMENT/bin/python "$files/environment.lock" ||
    fatal "uv could not install the lock; its words are above"
  rm -rf $OPT/cache
}

main() {
  if [ "${1:-}" = undo ]; then
    rm -rf $FILES $ENVIRONMENT $OPT/uv $OPT/python $OPT/cache $INSTALLED
    tidy
    return
  fi
  [ "$(uname -m)" = x86_64 ] || fatal "this machine is $(uname -m); lock and wheels are for x86_64"
  install -d -m 0755 $OPT
  [ -n "$FILES_ADDRESS" ] || take_over
  [ "$(cat $INSTALLED 2>/dev/null)" = "$LOCK_SHA256 $PYTHON" ] && return
  [ -z "$FILES_ADDRESS" ] || reach_files
  checksum "$files/environment.lock" "$LOCK_SHA256"
  install_uv
  rm -f $INSTALLED
  make_environment
  install_packages
  printf '%s\n' "$LOCK_SHA256 $PYTHON" | put $INSTALLED 0644 root:root
}

main "$@" </dev/null
