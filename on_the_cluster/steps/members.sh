# State (on the authority's machine): only the cluster's own workers work; others hand over what they have, and end.
#   DRAIN      the program that lets workers leave, Python
#   SCHEDULER  tls://10.1.0.10:8786
#   MEMBERS    names of the cluster's workers, separated by blanks
#   RENEWAL    of the credentials: every machine has its new ones now, and the former ones are not accepted any more
# This runs while a machine that is to go is still there; its workers stay away until it is stopped, or on the list again.

LIST=$ETC/members

main() {
  if [ "${1:-}" = undo ]; then
    drop $LIST
    tidy
    return
  fi
  local list
  list=$(tr ' ' '\n' <<<"$MEMBERS")
  # The first workers of a cluster have nothing to hand over.
  if [ -e $LIST ] && [ "$(<$LIST)" != "$list" ]; then
    # shellcheck disable=SC2086 # the names are words
    within=600 in_environment python -c "$DRAIN" "$SCHEDULER" --all-but $MEMBERS ||
      fatal "workers could not be taken out without a loss (above is why, or it took 600 s)." \
        "Release what they hold in the notebooks that use it, or give it up with client.restart(); then run up again"
  fi
  printf '%s\n' "$list" | put $LIST 0644 root:root
  if compgen -G "$ETC/authority/replaced/*" >/dev/null || [ -d $ETC/authority/former ]; then
    note "renewal $RENEWAL: the former keys are refused when machines have fetched that, within minutes"
    sleep 10 # Dask's processes look for new certificates every 5 s
    $OPT/authority settle 0
  fi
}

alone main "$@" </dev/null
