#!/usr/bin/env bash
# Registration of COUNT simulated workers, and the scheduler at rest afterwards. Prints seconds until all are registered,
# the scheduler's processor seconds meanwhile, its processor time at rest in percent, and its memory in MB; or `late`.
#   WAY       ours: the scheduler as its unit starts it; bare: the same command without our preloads
#   COUNT, PROCESSES, LIMIT    workers, the processes that simulate them, and seconds to wait for them
#   REST      seconds for which the scheduler is observed at rest
#   PROGRAM   simulated_workers.py

set -euo pipefail
unit=/etc/systemd/system/dask-scheduler.service
override=/run/systemd/system/dask-scheduler.service.d
folder=/run/simulated

main() {
  stop
  trap stop EXIT
  mkdir -p $override $folder
  local command pid before number
  command=$(sed -n 's/^ExecStart=//p' $unit)
  # shellcheck disable=SC2001 # a substitution in bash would match too much
  [ "$WAY" = ours ] || command=$(sed 's/--preload [^ ]*//g' <<<"$command")
  printf '[Service]\nExecStart=\nExecStart=%s\n' "$command" >$override/way.conf
  seq -f 'simulated-%g-1' "$COUNT" >/etc/daskstack/members
  echo "$COUNT $COUNT" >/etc/daskstack/bounds
  systemctl daemon-reload
  systemctl start dask-scheduler
  printf '%s' "$PROGRAM" >$folder/program.py
  for ((number = 0; number < PROCESSES; number++)); do
    systemd-run -q --collect --unit "simulated-$number" -p LimitNOFILE=65536 -E DASK_CONFIG=/etc/daskstack/dask.yaml \
      /opt/daskstack/environment/bin/python $folder/program.py "$(cat /etc/daskstack/scheduler)" $folder \
      $((COUNT * number / PROCESSES + 1)) $((COUNT * (number + 1) / PROCESSES))
  done
  sleep 8 # for their imports, and the scheduler's
  pid=$(systemctl show -P MainPID dask-scheduler)
  before=$(used "$pid")
  local started=$EPOCHREALTIME
  touch $folder/go
  until [ "$(find $folder -name 'joined-*' | wc -l)" = "$PROCESSES" ]; do
    sleep 0.1
    if ((${EPOCHREALTIME%.*} - ${started%.*} > LIMIT)); then
      echo late
      return
    fi
  done
  local spent
  spent=$(($(used "$pid") - before))
  sleep 5 # until the last heartbeats have the interval for so many workers
  before=$(used "$pid")
  sleep "$REST"
  sort -n $folder/joined-* | tail -n 1 | awk -v started="$started" -v spent=$spent -v rest="$REST" \
    -v idle=$(($(used "$pid") - before)) -v ticks="$(getconf CLK_TCK)" \
    -v kib="$(sed -n 's/^VmRSS:\s*\([0-9]*\) kB$/\1/p' "/proc/$pid/status")" \
    '{ print $1 - started, spent / ticks, 100 * idle / ticks / rest, kib * 1024 / 1000000 }'
}

# used PID: the processor time of a process, in ticks.
used() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"; }

stop() {
  systemctl -q stop 'simulated-*' dask-worker@1 dask-scheduler
  rm -rf $folder $override
}

main
