# Workers restart on one machine at a time.
# shellcheck shell=bash

# lock_restarts AUTHORITY_ADDRESS: until this step ends, no other machine of the cluster stops its workers. The lock is
# on the authority's machine (this one if the address is empty). It is released with the connection, after 300 s at the
# latest. Tasks can also hold or break the lock; the workers then restart anyway.
lock_restarts() {
  local shell=(sh -c) patience=600
  local lock="exec 9>$CLUSTER_HOME/stopping.lock && flock -w $patience 9 && echo held && timeout 300 cat"
  [ -z "$1" ] || shell=("$ETC/ssh/ssh" "$1")
  coproc RESTARTS { within=$((patience + 360)) as_cluster_user "${shell[@]}" "$lock" 2>/dev/null; }
  # If the command has already ended, bash has unset RESTARTS.
  { read -r -t $((patience + 30)) _ <&"${RESTARTS[0]:-}"; } 2>/dev/null ||
    note "could not lock restarts of workers on ${1:-this machine}: no answer, or none within $patience s; restarting" \
      "those of $(hostname) anyway"
}

# start_workers UNIT...: start the worker units, and wait until each answers. A worker that the cluster does not want now
# leaves a mark, and stays stopped (stay_retired.py).
start_workers() {
  local unit
  # --no-block, because tasks can delay a start forever.
  systemctl start --no-block "$@"
  for unit in "$@"; do
    # shellcheck source=/dev/null
    (source "$ETC/worker-${unit#*@}.env" &&
      wait_for_service "$unit" "$ADDRESS" "$WORKER_PORT" "$CLUSTER_HOME/retired-*-${unit#*@}")
  done
}

# wait_for_service UNIT ADDRESS PORT [MARK]: MARK is a pattern of files, one of which ends the wait.
wait_for_service() {
  local end=$((SECONDS + 60))
  until compgen -G "${4:-/dev/null/}" >/dev/null || (exec 3<>"/dev/tcp/$2/$3") 2>/dev/null; do
    [ $SECONDS -lt $end ] ||
      fatal "$1 does not answer on port $3 after 60 s: $(journalctl -u "$1" -n 15 --no-pager -o cat)"
    sleep 0.2
  done
}
