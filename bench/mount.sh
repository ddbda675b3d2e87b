#!/usr/bin/env bash
# Files through the shared directory and over plain SSH, as the cluster's user has both; runs on a machine that mounts.
#   ACTION     prepare, finish, or one of the transfers below, whose seconds are printed
#   HEAD       address of the machine that holds the files
#   MEGABYTES  size of the big file, in MiB
#   COUNT      of the small files, of 4 KB each
set -euo pipefail

disk=/var/lib/daskstack/data # there
data=/srv/daskdata           # the same, here
memory=/dev/shm/bench

as_user() { setpriv --reuid dask --regid dask --init-groups "$@"; }

# Over a connection that is open already, as the mount's is.
there() { as_user /etc/daskstack/ssh/ssh -S $memory/control "$HEAD" "$1"; }

prepare() {
  mkdir -p $memory/small
  chown dask $memory
  head -c "${MEGABYTES}M" /dev/urandom >$memory/big
  head -c "$((COUNT * 4))K" /dev/urandom | split -b 4K -a 4 - $memory/small/
  as_user /etc/daskstack/ssh/ssh -M -N -f -S $memory/control "$HEAD" >/dev/null
}

finish() {
  as_user ssh -S $memory/control -q -O exit "$HEAD"
  rm -rf $memory $data/{big-,}{raw,mount}
}

big_write_raw() { there "cat >$disk/big-raw" <$memory/big; }
big_write_mount() { cp $memory/big $data/big-mount; }
# Each reads what went the other way, so that no memory of this machine has it.
big_read_raw() { there "cat $disk/big-mount" >/dev/null; }
big_read_mount() { cat $data/big-raw >/dev/null; }
small_write_raw() { tar -C $memory/small -c . | there "mkdir $disk/raw && tar -C $disk/raw -x"; }
small_write_mount() { cp -r $memory/small $data/mount; }
small_read_raw() { there "tar -C $disk/mount -c ." | tar -xO >/dev/null; }
small_read_mount() { find $data/raw -type f -exec cat {} + >/dev/null; }

main() {
  local start=$EPOCHREALTIME
  "$ACTION"
  awk "BEGIN { print $EPOCHREALTIME - $start }"
}

main "$@"
