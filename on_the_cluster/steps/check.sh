# State: the cluster does what it is for. Prints a table of what was seen.
#   CHECK    the program that looks, Python
#   EXPECT   what it should see, JSON
#   CONFIRMS names all that the check depends on: when it changes, the check runs again

CHECK_LIMIT=240 # seconds

main() {
  [ "${1:-}" = undo ] && return
  { within=$CHECK_LIMIT in_environment python -c "$CHECK" "$EXPECT" 2>&1 >&3 | printable >&2; } 3>&1 | printable || {
    [ $? != 124 ] || fatal "the check had not ended after $CHECK_LIMIT s: scheduler or workers do not answer;" \
      "look at make status and make logs"
    exit 1
  }
}

main "$@" </dev/null
