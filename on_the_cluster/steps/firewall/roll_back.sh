# A change rolls back after one minute unless it is confirmed.
# shellcheck shell=bash

# save_state FOLDER ENABLED ACTIVE: save what `restore` needs.
save_state() {
  local zone
  rm -rf "$1" "$1.new"
  install -d -m 0755 $VAR
  install -d -m 0700 "$BEFORE" "$1.new"
  echo "$2 $3 $(default_zone)" >"$1.new/state"
  for zone in $INSIDE $OUTSIDE; do
    if [ -e "$ZONES/$zone.xml" ]; then cp -p "$ZONES/$zone.xml" "$1.new"; fi
  done
  mv "$1.new" "$1"
}

# restore FOLDER: restore firewalld's state from FOLDER, and delete FOLDER.
restore() {
  local folder enabled active default zone
  folder=$(readlink -f "$1")
  read -r enabled active default <"$folder/state" || return 0
  for zone in $INSIDE $OUTSIDE; do
    drop "$ZONES/$zone.xml"
    if [ -e "$folder/$zone.xml" ]; then cp -p "$folder/$zone.xml" $ZONES; fi
  done
  if [ -e $CONF ]; then set_default_zone "$default"; fi
  if command -v firewall-cmd >/dev/null; then
    if [ "$enabled" = enabled ]; then systemctl -q enable firewalld; else systemctl -q disable firewalld; fi
    if [ "$active" != active ]; then
      systemctl stop firewalld
    elif running; then
      firewall-cmd -q --reload
    else
      systemctl start firewalld
    fi
  fi
  rm -rf "$folder" $PREVIOUS $PREVIOUS.sh
  tidy
}

# Roll back the next change after one minute, or at once if the step fails.
schedule_rollback() {
  {
    declare -p CONF ZONES INSIDE OUTSIDE PREVIOUS BEFORE VAR ETC OPT
    declare -f restore set_default_zone running drop tidy
    echo "restore $PREVIOUS"
  } >$PREVIOUS.sh
  systemd-run -q --collect --on-active=60 --timer-property=AccuracySec=1 --unit=$ROLLBACK bash "$PREVIOUS.sh"
  at_exit=roll_back
}

roll_back() {
  cancel_rollback
  restore $PREVIOUS
}

cancel_rollback() {
  systemctl stop $ROLLBACK.timer 2>/dev/null || true
  while systemctl -q is-active $ROLLBACK.service; do sleep 0.2; done
}

confirm() {
  cancel_rollback
  if ! is_applied; then
    note "the firewall of $(hostname) differs from what this step applied: it rolled back after a minute, or was changed"
    exit 3
  fi
  rm -rf $PREVIOUS $PREVIOUS.sh
}
