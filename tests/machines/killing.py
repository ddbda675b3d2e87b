"""Kills a step at its n-th line, like a power failure or the kernel's OOM killer."""

from rehearsal.machines import Machine

# Prepended to the step. All its processes are in one control group, so that none survives the kill. Subshells
# continue the count, so a line has the same number in every run that starts from the same state.
TRAP = r"""
counted=0
killed_here() {
  printf '%s\n' "$BASH_COMMAND" >/run/killed-at
  echo 1 >"/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/cgroup.kill"
  sleep 60
}
trap 'if ((++counted == KILL_AT)); then killed_here; else echo $counted >/run/counted; fi' DEBUG
set -o functrace
"""
# Not on standard error, because bash prints the entire step when it reports the kill.
RUN = r"""
rm -f /run/killed-at /run/counted
{ systemd-run -q --scope bash -s -- $ARGUMENTS </run/step >/run/said 2>&1; status=$?; } 2>/dev/null
case $status in 0) cat /run/counted ;; 137) cat /run/killed-at ;; *) cat /run/said ;; esac
rm -f /run/killed-at /run/counted /run/step /run/said
exit $status
"""


def lines(machine: Machine, step: str, *arguments: str) -> int:
    """Runs the step to its end and returns the number of lines it ran."""
    status, printed = _run(0, machine, step, *arguments)
    assert status == 0, printed
    return int(printed)


def kill_at(line: int, machine: Machine, step: str, *arguments: str) -> str | None:
    """Kills the step before its LINE-th line and returns that line; None if the step ended first."""
    status, printed = _run(line, machine, step, *arguments)
    assert status in (0, 137), printed
    return printed if status else None


def _run(line: int, machine: Machine, step: str, *arguments: str) -> tuple[int, str]:
    text = f"KILL_AT={line}\n{TRAP}{step}"
    run = f"cat >/run/step <<'END OF STEP'\n{text}\nEND OF STEP\n{RUN}"
    done = machine.run(run, {"ARGUMENTS": " ".join(arguments)}, check=False)
    return done.returncode, done.stdout.strip()
