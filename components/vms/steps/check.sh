# State: the cluster does what it is for. Prints a table of what was seen.
#   CHECK    the program that looks, Python
#   EXPECT   what it should see, JSON
#   CONFIRMS names all that the check depends on: when it changes, the check runs again

main() {
  [ "${1:-}" = undo ] && return
  cd $CLUSTER_HOME
  in_environment timeout 240 python -c "$CHECK" "$EXPECT"
}

main "$@" </dev/null
