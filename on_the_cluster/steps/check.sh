# State: the cluster works. Prints a table of results.
#   CHECK    the Python program that checks the cluster
#   EXPECT   the expected results, JSON
#   NOTEBOOK the same for the environment of the notebook server; empty: there is none
#   CONFIRMS identities of everything that the check depends on; a change runs the check again
#   PROVES   identities of what the job and the notebooks' imports prove; as long as they are the same, both run once
#   BOOT     seconds for workers' machines to boot, if they start with their workers; empty: 0
# With the argument `again`, all parts run.

CHECK_LIMIT=240    # seconds
PROVEN=$ETC/proven # PROVES at the last job, and its result

main() {
  local earlier='' table job
  if [ "${1:-}" = undo ]; then
    drop $PROVEN
    tidy
    return
  fi
  CHECK_LIMIT=$((CHECK_LIMIT + ${BOOT:-0}))
  if [ "${1:-}" != again ] && [ -e $PROVEN ] && [ "$(head -n 1 $PROVEN)" = "$PROVES" ]; then
    earlier=$(tail -n 1 $PROVEN)
  fi
  table=$(check python "$EXPECT" "$earlier") || {
    [ $? != 124 ] || fatal "the check timed out after $CHECK_LIMIT s, because the scheduler or workers do not answer;" \
      "run make status and make logs"
    exit 1
  }
  printf '%s\n' "$table"
  [ -z "$earlier" ] || return 0
  [ -z "$NOTEBOOK" ] || check $OPT/jupyter/environment/bin/python "$NOTEBOOK"
  job=$(sed -n 's/^job *//p' <<<"$table")
  [ -z "$job" ] || exclusively keep "$job" # last: what failed runs again
}

keep() { printf '%s\n%s\n' "$PROVES" "$1" | put $PROVEN 0600 root:root; }

check() {
  { within=$CHECK_LIMIT in_environment "$1" -c "$CHECK" "${@:2}" 2>&1 >&3 | printable >&2; } 3>&1 | printable
}

main "$@" </dev/null
