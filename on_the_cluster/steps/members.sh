# State (on the authority's machine): only listed workers belong to the cluster. All others hand over their results and
# stop.
#   DRAIN      the Python program that retires workers
#   SCHEDULER  tls://10.1.0.10:8786
#   MEMBERS    names of the cluster's workers, separated by spaces
#   BOUNDS     the smallest and the largest number of them that run and, if their machines stop with them, the seconds
#              to start one (elastic.py); empty: all run
#   FIXED      names of those, separated by spaces, that always run and do not count for BOUNDS
#   RENEWAL    every machine has the credentials of this renewal, so the former ones are revoked
# This step runs before machines are removed. Their workers do not return unless they are listed again.

LIST=$ETC/members
LIMITS=$ETC/bounds
ALWAYS=$ETC/fixed

main() {
  if [ "${1:-}" = undo ]; then
    drop $LIST $LIMITS $ALWAYS
    tidy
    return
  fi
  local list before
  list=$(tr ' ' '\n' <<<"$MEMBERS")
  before=$(cat $LIST 2>/dev/null || true)
  # The scheduler reads the other files after the list.
  if [ -n "$FIXED" ]; then tr ' ' '\n' <<<"$FIXED" | put $ALWAYS 0644 root:root; else drop $ALWAYS; fi
  if [ -n "$BOUNDS" ]; then printf '%s\n' "$BOUNDS" | put $LIMITS 0644 root:root; else drop $LIMITS; fi
  # The first run has no results to hand over. With bounds, the scheduler first starts others instead of those that leave.
  # A run that was killed then may have written the list already.
  [ -z "$BOUNDS" ] || write_list "$list"
  if [ -n "$before" ] && { [ -n "$BOUNDS" ] || [ "$before" != "$list" ]; }; then
    # shellcheck disable=SC2086 # split into names
    within=600 in_environment python -c "$DRAIN" "$SCHEDULER" --all-but $MEMBERS || {
      write_list "$before"
      fatal "cannot remove workers without losing results (the cause is above, or it took more than 600 s);" \
        "release the results in the notebooks that use them, or discard them with client.restart(); then run up again"
    }
  fi
  write_list "$list"
  if compgen -G "$ETC/authority/replaced/*" >/dev/null || [ -d $ETC/authority/former ]; then
    note "renewal $RENEWAL: all machines will reject the former keys within minutes"
    sleep 10 # Dask's processes check for new certificates every 5 s
    $OPT/authority settle 0
  fi
}

write_list() { printf '%s\n' "$1" | put $LIST 0644 root:root; }

exclusively main "$@" </dev/null
