# State: the cluster works. Prints a table of results.
#   CHECK    the Python program that checks the cluster
#   EXPECT   the expected results, JSON
#   NOTEBOOK the same for the environment of the notebook server; empty: there is none
#   CONFIRMS identities of everything that the check depends on; a change runs the check again
#   BOOT     seconds for workers' machines to boot, if they start with their workers; empty: 0

CHECK_LIMIT=240 # seconds

main() {
  [ "${1:-}" = undo ] && return
  CHECK_LIMIT=$((CHECK_LIMIT + ${BOOT:-0}))
  check python "$EXPECT" || {
    [ $? != 124 ] || fatal "the check timed out after $CHECK_LIMIT s, because the scheduler or workers do not answer;" \
      "run make status and make logs"
    exit 1
  }
  [ -z "$NOTEBOOK" ] || check $OPT/jupyter/environment/bin/python "$NOTEBOOK"
}

check() {
  { within=$CHECK_LIMIT in_environment "$1" -c "$CHECK" "$2" 2>&1 >&3 | printable >&2; } 3>&1 | printable
}

main "$@" </dev/null
