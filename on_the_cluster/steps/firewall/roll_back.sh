# A change goes back after a minute, unless it is confirmed by then.
# shellcheck shell=bash

# keep FOLDER ENABLED ACTIVE: what put_back needs.
keep() {
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

# put_back FOLDER: firewalld is as it was when FOLDER was made, which goes.
put_back() {
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
  rm -rf "$folder" $FORMER $FORMER.sh
  tidy
}

# The change that follows goes back in a minute, and at once where the step fails.
arm() {
  {
    declare -p CONF ZONES INSIDE OUTSIDE FORMER BEFORE VAR ETC OPT
    declare -f put_back set_default_zone running drop tidy
    echo "put_back $FORMER"
  } >$FORMER.sh
  systemd-run -q --collect --on-active=60 --timer-property=AccuracySec=1 --unit=$ROLLBACK bash "$FORMER.sh"
  at_exit=take_back
}

take_back() {
  disarm
  put_back $FORMER
}

disarm() {
  systemctl stop $ROLLBACK.timer 2>/dev/null || true
  while systemctl -q is-active $ROLLBACK.service; do sleep 0.2; done
}

confirm() {
  disarm
  if ! in_place; then
    note "the firewall of $(hostname) is not as this step made it: taken back after a minute, or changed since"
    exit 3
  fi
  rm -rf $FORMER $FORMER.sh
}
