# State: the cluster works. Prints a table of results.
#   CHECK    the Python program that checks the cluster
#   EXPECT   the expected results, JSON
#   CONFIRMS identities of everything that the check depends on; a change runs the check again

CHECK_LIMIT=240 # seconds

main() {
  [ "${1:-}" = undo ] && return
  { within=$CHECK_LIMIT in_environment python -c "$CHECK" "$EXPECT" 2>&1 >&3 | printable >&2; } 3>&1 | printable || {
    [ $? != 124 ] || fatal "the check timed out after $CHECK_LIMIT s, because the scheduler or workers do not answer;" \
      "run make status and make logs"
    exit 1
  }
}

main "$@" </dev/null
