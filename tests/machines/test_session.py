"""Sessions and units of the cluster user gain no privileges, and leftovers of tasks cannot stop a step."""

import re
import shlex
from collections.abc import Callable

import pytest

from rehearsal.machines import Machine, Stack
from tests.machines.snapshots import changes
from tests.machines.test_steps import Pair
from tests.scripts import script

HOME = "/var/lib/daskstack/home"
NO_NEW_PRIVILEGES = "grep NoNewPrivs /proc/self/status"
COMMON = script("check", {}).partition("# State: ")[0]
UNITS = {
    "ROLES": "scheduler worker", "NAME": "task", "ADDRESS": "10.0.0.1", "SCHEDULER": "tls://10.0.0.1:8786",
    "SCHEDULER_PORT": "8786", "DASHBOARD_PORT": "8787", "WORKERS_PORT": "9000", "WORKERS": "1", "THREADS": "",
    "MEMORY": "", "GPU_EACH": "no", "SPILL": "/var/lib/daskstack/spill", "SSDS": "", "DATA_PATH": "/srv/daskdata",
    "CONFIG": "{}", "GRACE": "80", "SCHEDULER_ARGS": "", "WORKER_ARGS": "", "DRAIN": "", "RETIRED": "", "RELOAD": "",
    "PEOPLE": "", "WORKED": "", "ELASTIC": "", "SCALING": "", "CREDENTIALS": "",
    "AUTHORITY_ADDRESS": "", "FIREWALL": "yes", "LIMIT": "60", "SECRET_ENV": "", "METADATA": "no", "HOMES": "no",
}  # fmt: skip


@pytest.fixture(scope="module")
def fresh(boot: Callable[..., list[Machine]], stack: Stack) -> Pair:
    """A machine with a snapshot from before its credentials were installed."""
    [machine] = boot("task")
    pair = Pair(machine, machine, stack.network)
    pair.credentials(machine)
    return pair


@pytest.fixture
def machine(fresh: Pair) -> Machine:
    return fresh.head


def session(machine: Machine, command: str) -> str:
    """The output of a command in a session that a task opens on its own machine."""
    done = machine.ssh(shlex.join(["sudo", "-u", "dask", "ssh", machine.address, command]), check=False)
    return done.stdout + done.stderr


# Sessions


def test_a_session_of_the_cluster_user_cannot_gain_privileges(machine: Machine) -> None:
    assert session(machine, NO_NEW_PRIVILEGES) == "NoNewPrivs:\t1\n"
    # A process that a session can start without being its parent.
    assert machine.run("systemctl show -P NoNewPrivileges user@$(id -u dask).service").stdout == "yes\n"


def test_logins_and_file_transfers_cannot_gain_privileges(machine: Machine) -> None:
    typed = f"echo {shlex.quote(NO_NEW_PRIVILEGES)} | sudo -iu dask ssh {machine.address}"
    assert "NoNewPrivs:\t1\n" in machine.ssh(typed).stdout
    # Keep the transfer running until its server was inspected.
    transfer = f"sudo -iu dask sftp -S /etc/daskstack/ssh/ssh {machine.address}"
    seen = machine.run(
        f"(echo pwd; timeout 60 sh -c 'until pgrep -u dask sftp-server; do sleep 0.1; done' >/run/server\n"
        f"grep NoNewPrivs /proc/$(head -n 1 /run/server)/status >&2) 2>/run/seen | {transfer}; cat /run/seen"
    ).stdout
    assert "NoNewPrivs:\t1\n" in seen
    assert "Remote working directory: " + HOME in seen


@pytest.mark.parametrize("command", ["sudo -n true", "su -c true", "crontab -l", "at now"])
def test_setuid_programs_grant_no_privileges_in_a_session(machine: Machine, command: str) -> None:
    said = session(machine, f"{command} </dev/null && echo worked")
    assert said
    assert "worked" not in said


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (".bashrc", f"touch {HOME}/owned"),
        (".profile", f"touch {HOME}/owned"),
        (".ssh/rc", f"touch {HOME}/owned"),
        (".ssh/environment", "LD_PRELOAD=/owned"),
        (".pam_environment", "LD_PRELOAD DEFAULT=/owned"),
    ],
)
def test_no_file_in_the_home_runs_before_a_session_is_restricted(machine: Machine, file: str, text: str) -> None:
    machine.run(f"cd {HOME} && sudo -u dask tee {file} <<<{shlex.quote(text)}", check=False)
    seen = session(machine, f"env; ls {HOME}")
    machine.run(f"cd {HOME} && rm -f .bashrc .profile owned")
    assert "SSH_CONNECTION" in seen
    assert "owned" not in seen


def test_the_cluster_user_can_open_sessions_only(machine: Machine) -> None:
    said = machine.run(f"sshd -T -C user=dask,host=x,addr={machine.address}").stdout.splitlines()
    for line in (
        "forcecommand /etc/daskstack/ssh/session", "allowagentforwarding no", "x11forwarding no", "permittunnel no",
        "permituserrc no", "authorizedkeysfile none", "authorizedkeyscommand none", "passwordauthentication no",
        "kbdinteractiveauthentication no", "hostbasedauthentication no",
    ):  # fmt: skip
        assert line in said
    others = machine.run(f"sshd -T -C user=admin,host=x,addr={machine.address}").stdout.splitlines()
    assert "forcecommand none" in others
    assert "trustedusercakeys none" in others


def test_keys_planted_by_a_task_are_rejected(machine: Machine) -> None:
    options = ("IdentitiesOnly=yes", "BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
    plain = f"ssh -F none -i bare {' '.join(f'-o {each}' for each in options)}"
    done = machine.run(
        "folder=$(mktemp -d) && cd $folder && trap 'rm -r $folder' EXIT && ssh-keygen -q -t ed25519 -N '' -f bare\n"
        f"for file in {HOME}/.ssh/authorized_keys {HOME}/authorized_keys; do cp bare.pub $file; done\n"
        f"{plain} dask@{machine.address} true; code=$?; rm -f {HOME}/.ssh/authorized_keys {HOME}/authorized_keys\n"
        "exit $code",
        check=False,
    )
    assert done.returncode == 255
    assert "Permission denied" in done.stderr


# Units


@pytest.mark.parametrize(
    ("state", "function"), [("service", "scheduler_unit"), ("service", "worker_unit"), ("idle", "unit")]
)
def test_systemd_rates_the_units_as_well_protected(machine: Machine, state: str, function: str) -> None:
    """systemd's exposure level must be at most 2.0; the worst is 10, and a service without hardening has 9.6."""
    text = script(state, UNITS).rpartition("exclusively main")[0]
    file = "/tmp/rated.service"
    done = machine.run(
        f"{text}\n{function} >{file}\nsystemd-analyze security --offline=true --no-pager {file}\nrm {file}"
    )
    rate = re.search(r"exposure level for rated.service: ([\d.]+)", done.stdout)
    assert rate and float(rate[1]) <= 2.0, done.stdout


def test_the_idle_loop_never_executes_answers_of_the_cluster_user(machine: Machine) -> None:
    text = script("idle", UNITS | {"ADDRESS": ""}).rpartition("exclusively main")[0]
    loop = r"""
sleep() { ((turn++ < 3)) || exit 0; }
power_off() { :; }
for answer in 'a[$(touch /owned)] 0' '0 a[$(touch /owned)]' '$(touch /owned) 0' '08 0'; do
  ask() { printf '%s\n' "$answer"; }
  (watch) || true
done
"""
    machine.run(text + loop)
    assert machine.ssh("ls /owned", check=False).returncode != 0


# Attempts of tasks to stop steps


@pytest.mark.parametrize("path", ["/run", "/run/daskstack.lock"])
def test_other_users_cannot_block_a_step(fresh: Pair, machine: Machine, path: str) -> None:
    fresh.step(machine, "keys", NAME="task", METADATA="no", RENEWAL="1")
    holder = f"systemd-run -q --collect --uid=dask -u holder sh -c 'exec 9<{path} && flock 9 && sleep 60'"
    machine.run(f"{holder}; sleep 0.5")
    try:
        assert (
            "waiting for a step"
            not in machine.run(script("keys", {"NAME": "task", "METADATA": "no", "RENEWAL": "1"})).stderr
        )
    finally:
        machine.run("systemctl stop holder", check=False)


def test_a_hanging_command_of_the_cluster_user_is_stopped(machine: Machine) -> None:
    stands = "bash -c 'trap : TERM; while :; do sleep 1; done'"
    done = machine.run(f"{COMMON}\nwithin=1 as_cluster_user {stands} || echo ended with $?")
    assert done.stdout == "ended with 137\n"


def test_workers_restart_one_machine_at_a_time(machine: Machine) -> None:
    turns = """
said=$(mktemp)
(lock_restarts ''; echo one begins; sleep 2; echo one ends) >>$said &
until grep -q begins $said; do sleep 0.1; done
(lock_restarts ''; echo other begins) >>$said
wait
cat $said
rm $said
"""
    try:
        assert machine.run(COMMON + turns).stdout == "one begins\none ends\nother begins\n"
    finally:
        machine.run(f"rm -f {HOME}/stopping.lock")


def test_workers_restart_although_a_task_holds_the_lock(machine: Machine) -> None:
    lock = f"{HOME}/stopping.lock"
    text = COMMON.replace("patience=600", "patience=1")
    assert text != COMMON
    machine.run(f"systemd-run -q --collect --uid=dask -u holder flock {lock} sleep 60")
    machine.run(f"timeout 60 sh -c 'until ! flock --nonblock {lock} true; do sleep 0.1; done'")
    try:
        done = machine.run(f"{text}\nlock_restarts ''\necho went on")
    finally:
        machine.run(f"systemctl stop holder; rm -f {lock}", check=False)
    assert done.stdout == "went on\n"
    assert "could not lock restarts of workers on" in done.stderr


def test_text_chosen_by_tasks_reaches_terminals_without_control_characters(machine: Machine) -> None:
    said = machine.run(COMMON + r"note $'a\e[31mb\nc\a'; fatal $'d\x9be\r'", check=False).stderr
    assert said == "a[31mb\nc\nerror on task: de\n"


def test_check_and_members_import_no_files_from_the_home(machine: Machine) -> None:
    python = "mkdir -p /opt/daskstack/environment/bin && ln -sf /usr/bin/python3 /opt/daskstack/environment/bin/python"
    forged = f"{HOME}/json.py"
    machine.run(f"{python} && echo 'print(\"forged\")' | sudo -u dask tee {forged}")
    try:
        check = script(
            "check", {"CHECK": "import json; print(json.dumps(1))", "EXPECT": "", "NOTEBOOK": "", "PROVES": ""}
        )
        said = machine.run(f"cd {HOME}\n{check}")
    finally:
        machine.run(f"rm -rf {forged} /opt/daskstack/environment")
    assert said.stdout == "1\n"


def test_a_notebook_environment_that_fails_the_check_fails_the_next_one_too(machine: Machine) -> None:
    folders = "/opt/daskstack/environment/bin /opt/daskstack/jupyter/environment/bin"
    machine.run(f"for folder in {folders}; do mkdir -p $folder && ln -sf /usr/bin/python3 $folder/python; done")
    program = "import sys; print('job  correct') if sys.argv[1] == 'cluster' else sys.exit('check failed: no pandas')"
    step = script("check", {"CHECK": program, "EXPECT": "cluster", "NOTEBOOK": "notebook", "PROVES": "all"})
    try:
        for _ in range(2):
            done = machine.run(step, check=False)
            assert (done.returncode, done.stderr) == (1, "check failed: no pandas\n")
        machine.run(step.replace("sys.exit(", "print("))
        assert "no pandas" not in machine.run(step.replace("sys.exit(", "print(")).stdout
    finally:
        machine.run("rm -rf /opt/daskstack/environment /opt/daskstack/jupyter /etc/daskstack/proven")


TRAPS = """cd
mkdir -p retired-x/y retired-z stopping.lock
rm -rf .ssh/config
mkfifo .ssh/config worked fifo
echo 'sleep 1000' | tee .bashrc >.profile
(while :; do mkdir -p .ssh/x .pam_environment/x retired-y/z; done) &
bash -c 'trap : TERM HUP INT; while :; do (sleep 1000 & sleep 1000) & sleep 0.05; done' &
"""


def test_tasks_cannot_prevent_undo(fresh: Pair, machine: Machine) -> None:
    fresh.variables[machine.name, "service"] = UNITS
    run = f"systemd-run -q --collect --uid=dask -p KillMode=none -p Type=forking -E HOME={HOME}"
    machine.run(f"{run} bash -c {shlex.quote(TRAPS)}")
    machine.run("timeout 120 sh -c 'until pgrep -u dask sleep; do sleep 0.1; done'")
    for state in ("service", "credentials", "authority", "keys"):
        fresh.undo(machine, state)
    assert changes(machine, fresh.fresh[machine.name]) == set()
    fresh.credentials(machine)
