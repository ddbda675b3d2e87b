# State (on the authority's machine): only listed workers belong to the cluster. All others hand over their results and
# stop.
#   DRAIN      the Python program that retires workers
#   SCHEDULER  tls://10.1.0.10:8786
#   MEMBERS    names of the cluster's workers, separated by spaces
#   RENEWAL    every machine has the credentials of this renewal, so the former ones are revoked
# This step runs before machines are removed. Their workers do not return unless they are listed again.

LIST=$ETC/members

main() {
  if [ "${1:-}" = undo ]; then
    drop $LIST
    tidy
    return
  fi
  local list
  list=$(tr ' ' '\n' <<<"$MEMBERS")
  # On the first run there are no results to hand over.
  if [ -e $LIST ] && [ "$(<$LIST)" != "$list" ]; then
    # shellcheck disable=SC2086 # split into names
    within=600 in_environment python -c "$DRAIN" "$SCHEDULER" --all-but $MEMBERS ||
      fatal "cannot remove workers without losing results (the cause is above, or it took more than 600 s);" \
        "release the results in the notebooks that use them, or discard them with client.restart(); then run up again"
  fi
  printf '%s\n' "$list" | put $LIST 0644 root:root
  if compgen -G "$ETC/authority/replaced/*" >/dev/null || [ -d $ETC/authority/former ]; then
    note "renewal $RENEWAL: all machines will reject the former keys within minutes"
    sleep 10 # Dask's processes check for new certificates every 5 s
    $OPT/authority settle 0
  fi
}

exclusively main "$@" </dev/null
