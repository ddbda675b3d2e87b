"""The cluster as a guest: `destroy` restores a machine whatever else is on it and whatever tasks leave behind.

Each step runs by hand on two machines that contain many files and services of other users.
"""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from components.machines import dask_options
from components.machines.steps import CHECK, DRAIN, JOBS, JOBS_DOOR, PEOPLE, RELOAD, RETIRED, RUN_JOB, USER_CODE
from on_this_computer import send_environment
from rehearsal.machines import Machine, Stack, until
from settings import MachinesTarget, lock
from tests.machines.snapshots import changes, snapshot
from tests.machines.test_steps import DEVICE, Disk, Pair, blank_disk
from tests.scripts import script

CLUSTER = MachinesTarget.model_validate(
    {"target": "machines", "machines": {"source": "local", "workers": 1}}
).completed()

# Files of other users next to every path that a setting can name, and in every place that undo searches.
STRANGERS = r"""
useradd --create-home alice
useradd --system ledger
install -d -m 0750 -o alice -g alice /big
mkdir /data
echo '/big /data none bind 0 0' >>/etc/fstab
systemctl daemon-reload
mount /data
chmod 0755 /big
install -d -m 1777 /scratch
install -d -m 2775 -o alice -g alice /fast
install -d -m 0750 -o ledger -g ledger /srv/ledger /opt/theirs
setfacl -m u:ledger:rwx,d:u:ledger:rwx /fast
for place in /data /scratch /fast /srv /srv/ledger /opt/theirs /tmp /var/tmp /dev/shm /etc/ssh/sshd_config.d /root; do
  echo "alice's" >$place/thesis.txt
  chown alice:alice $place/thesis.txt
  chmod 0640 $place/thesis.txt
done
echo '# ours' >/etc/ssh/sshd_config.d/10-own.conf
echo 'host ssh-ed25519 AAAA' >/etc/ssh/ssh_known_hosts
echo 'd /tmp 1777 root root 10d' >/etc/tmpfiles.d/tmp.conf
install -d -m 1730 /var/spool/cron/crontabs /var/spool/cron/atjobs
for user in alice ledger; do
  echo '0 0 1 1 * true' >/var/spool/cron/crontabs/$user
  echo 'true' >/var/spool/cron/atjobs/a-$user
  chown $user /var/spool/cron/crontabs/$user /var/spool/cron/atjobs/a-$user
done
install -d /var/lib/systemd/linger
touch /var/lib/systemd/linger/alice
"""

# Things that tasks leave, as the cluster user, to block an undo or to start again with the next cluster.
PLANTED = r"""
cd /
as_dask() { setpriv --reuid dask --regid dask --init-groups env HOME=/var/lib/daskstack/home "$@"; }
as_dask sh -c 'cd; rm -rf .ssh; mkdir -p retired-x/y .ssh; mkfifo .ssh/config; echo sleep 600 >.bashrc'
as_dask sh -c 'mkdir -p /tmp/of-dask/of-others; echo x | tee /tmp/of-dask/x /var/tmp/dask /dev/shm/dask'
as_dask chmod 4755 /var/tmp/dask
echo "alice's" >/tmp/of-dask/of-others/thesis
chown alice:alice /tmp/of-dask/of-others/thesis
echo '* * * * * touch /tmp/woken' >/var/spool/cron/crontabs/dask
echo 'touch /tmp/woken' >/var/spool/cron/atjobs/a-dask
echo mail >/var/mail/dask
chown dask /var/spool/cron/crontabs/dask /var/spool/cron/atjobs/a-dask /var/mail/dask
loginctl enable-linger dask
as_dask mkdir /var/tmp/mounted
as_dask sshfs -F /etc/daskstack/ssh/config "dask@$ADDRESS:/usr" /var/tmp/mounted
as_dask ipcmk -M 4096
systemd-run -q --uid=dask sh -c "trap '' TERM; while :; do echo x >>/scratch/new/daskstack/again; sleep 0.1; done"
"""

# None of these processes lives long enough to be listed.
STORM = r"""
systemd-run -q --uid=dask perl -e '
for (1..20) {
  next if fork;
  for (;;) { select(undef, undef, undef, 0.05); exit if fork }
}
'
"""

# A program that fails once, at its first call with these arguments, in the middle of a step.
BREAK = r"""
cat >"/usr/local/sbin/$PROGRAM" <<END
#!/bin/sh
case "\$*" in $ARGUMENTS) if mkdir /run/broken 2>/dev/null; then echo "$PROGRAM is broken" >&2; exit 1; fi ;; esac
exec $(command -v "$PROGRAM") "\$@"
END
chmod 0755 "/usr/local/sbin/$PROGRAM"
"""
MEND = 'rm "/usr/local/sbin/$PROGRAM"; rmdir /run/broken'

BROKEN = {
    "firewall": ("systemctl", "*enable?--now?firewalld"),
    "keys": ("openssl", "req*"),
    "authority": ("openssl", "req*"),
    "credentials": ("systemctl", "reload*"),
    "data": ("systemctl", "start*.automount"),
    "environment": ("env", "*pip?sync*"),
    "service": ("systemctl", "*enable*dask-scheduler|start*dask-worker*"),
    "jobs": ("systemctl", "daemon-reload"),
    "idle": ("systemctl", "*start?dask-idle*"),
}


SAME = ("firewall", "keys", "environment")  # on every machine; the first failure is enough
# Steps that can be undone alone. Not certificates: their undo revokes the machine's certificates.
ALONE = (*BROKEN, "members")
UNDONE = (
    "check",
    "members",
    "idle",
    "jobs",
    "service",
    "environment",
    "data",
    "credentials",
    "authority",
    "keys",
    "firewall",
)


# A job that begins and does not end.
START = r"""
cd /opt/daskstack/jobs
python3 - <<END
import io, json, zipfile
import jobs
script = "import time; print('began', flush=True); time.sleep(3600)"
with io.BytesIO() as buffer:
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("waits.py", script)
    plan = {"words": ["waits.py"]} | dict.fromkeys(("at", "every", "workers", "sleep", "report"))
    jobs.start("", io.BytesIO(json.dumps(plan).encode() + b"\\n" + buffer.getvalue()))
END
"""
OUTPUT = "cat /var/lib/daskstack/jobs/1/output"

# Units that restarted, and processes that were replaced.
RUNNING = """
systemctl show -p Id,InvocationID,MainPID 'dask-worker@1' dask-{scheduler,idle,data,data-watch,metadata} \
  data-dask.mount firewalld ssh
pgrep -a -u dask -f 'dask (scheduler|worker)'
true
"""


class Guest(Pair):
    """Runs steps like `up`, but each one first fails, then succeeds, is undone, and succeeds again."""

    def __init__(self, head: Machine, hand: Machine, network: str) -> None:
        super().__init__(head, hand, network)
        self.left: dict[str, object] = {}  # left by a failed or undone step; should be empty

    def first(self, machine: Machine, state: str, **variables: str) -> CompletedProcess[str]:
        return machine.run(script(state, {"IDENTITY": machine.id, **variables}), {}, "first", check=False)

    def step(self, machine: Machine, state: str, **variables: str) -> dict[str, str]:
        done = {at for at, each in self.variables if each == state}
        if state not in ALONE or machine.name in done or (done and state in SAME):
            return super().step(machine, state, **variables)
        before = snapshot(machine)
        if state in BROKEN:
            broken = dict(zip(("PROGRAM", "ARGUMENTS"), BROKEN[state], strict=True))
            machine.run(BREAK, broken)
            failed = self.first(machine, state, **variables)
            machine.run(MEND, broken)
            assert failed.returncode != 0
            undone = f"undid this step's changes on {machine.name}" in failed.stderr
            if (left := changes(machine, before)) or not undone:
                self.left[f"{state} failed on {machine.name}"] = (failed.stderr, left)
        super().step(machine, state, **variables)
        self.undo(machine, state)
        if state == "service":  # it stopped the server of the shared directory, which the next access mounts again
            machine.run("timeout 60 sh -c 'until ls /data/dask; do sleep 0.2; done'")
        if left := changes(machine, before):
            self.left[f"{state} undone on {machine.name}"] = left
        return super().step(machine, state, **variables)

    def environment(self, machine: Machine) -> None:
        folder = send_environment.collect(Path("environment.lock"), "3.11", "wheelhouse")
        if machine is self.head:
            send_environment.send(folder, connection(machine))
        self.step(machine, "environment", **environment_variables(self, machine, folder))

    def service(self, machine: Machine, spill: str, path: str, ssds: str = "") -> None:
        self.step(machine, "service", **service_variables(self, machine, spill, path) | {"SSDS": ssds})

    def members(self) -> None:
        scheduler = f"tls://{self.head.address}:8786"
        variables = {"DRAIN": DRAIN.read_text(), "SCHEDULER": scheduler, "MEMBERS": "guest-hand-1", "RENEWAL": "1"}
        variables |= {"BOUNDS": "", "FIXED": ""}
        self.step(self.head, "members", **variables)

    def jobs(self, path: str) -> None:
        programs = {"JOBS": JOBS, "DOOR": JOBS_DOOR, "RUN_JOB": RUN_JOB, "USER_CODE": USER_CODE}
        variables = {name: program.read_text() for name, program in programs.items()}
        variables |= {"SCHEDULER": f"tls://{self.head.address}:8786", "DATA_PATH": path, "HOMES": "no", "TLS": "yes"}
        self.step(self.head, "jobs", **variables)

    def check(self, path: str) -> None:
        expect = {
            "address": f"tls://{self.head.address}:8786", "workers": ["guest-hand-1"], "python": "3.11",
            "packages": lock.read(Path("environment.lock"), "3.11").packages, "data": path, "imports": [],
        }  # fmt: skip
        self.step(self.head, "check", CHECK=CHECK.read_text(), EXPECT=json.dumps(expect), NOTEBOOK="", PROVES="all")


def connection(machine: Machine) -> dict[str, str]:
    key = machine.key.read_text()
    return {"host": machine.address, "user": "admin", "host_key": machine.host_key, "private_key": key}


def environment_variables(pair: Pair, machine: Machine, folder: Path) -> dict[str, str]:
    uv = next(folder.glob("uv-*.whl"))
    return {
        "LOCK_SHA256": sha256((folder / "environment.lock").read_bytes()).hexdigest(), "PYTHON": "3.11",
        "SOURCE": "wheelhouse", "SYSTEM": "", "UV": uv.name, "UV_SHA256": sha256(uv.read_bytes()).hexdigest(),
        "UV_ENV": "", "CERTIFICATES": "", "CHECK": "", "IMPORTS": "",
        "AUTHORITY_ADDRESS": "" if machine is pair.head else pair.head.address,
    }  # fmt: skip


def service_variables(pair: Pair, machine: Machine, spill: str, path: str) -> dict[str, str]:
    at_head = machine is pair.head
    return {
        "ROLES": "scheduler" if at_head else "worker", "NAME": machine.name, "ADDRESS": machine.address,
        "SCHEDULER": f"tls://{pair.head.address}:8786", "SCHEDULER_PORT": "8786", "DASHBOARD_PORT": "8787",
        "WORKERS_PORT": "9000", "WORKERS": "1", "THREADS": "1", "MEMORY": "1 GiB", "SPILL": spill, "SSDS": "",
        "DATA_PATH": path, "HOMES": "no", "CONFIG": dask_options.config(CLUSTER), "SECRET_ENV": "", "FIREWALL": "no",
        "SCHEDULER_ARGS": "", "WORKER_ARGS": "", "GPU_EACH": "no",
        "DRAIN": DRAIN.read_text(), "RETIRED": RETIRED.read_text(), "RELOAD": RELOAD.read_text(),
        "PEOPLE": PEOPLE.read_text() if at_head else "",
        "GRACE": "20", "WORKED": "", "ELASTIC": "", "SCALING": "", "CREDENTIALS": "1",
        "AUTHORITY_ADDRESS": "" if at_head else pair.head.address,
    }  # fmt: skip


@pytest.fixture(scope="module")
def guest(boot: Callable[..., list[Machine]], stack: Stack) -> Guest:
    head, hand = boot("guest-head", "guest-hand")
    for machine in (head, hand):
        machine.run(STRANGERS)
    hand.run("rm /fast/thesis.txt")
    return Guest(head, hand, stack.network)


def test_a_path_in_use_by_the_machine_is_rejected_before_anything_changes(guest: Guest) -> None:
    for machine in (guest.head, guest.hand):
        machine.run("ln -s /big /linked; install -d -o alice /srv/read; touch /srv/read/log")
        machine.run("systemd-run -q --uid=ledger -u reader tail -f /srv/read/log")
    before = {machine.name: snapshot(machine) for machine in (guest.head, guest.hand)}
    for machine in (guest.head, guest.hand):
        for path, reason in {
            "/data": "is already a mount point on this machine; use a folder below it, such as /data/dask",
            "/linked": "contains a symbolic link and resolves to /big on this machine",
            "/linked/dask": "contains a symbolic link and resolves to /big/dask on this machine",
            "/srv/ledger": "is used by a service of this machine: it contains /srv/ledger of user ledger",
            "/srv/read": "has files open in it",
        }.items():
            done = guest.first(machine, "data", **guest.data_variables(machine, path))
            assert done.returncode == 1
            assert reason in done.stderr
    for machine in (guest.head, guest.hand):
        assert snapshot(machine) ^ before[machine.name] == set()
        machine.run("systemctl stop reader; rm -r /linked /srv/read")


@pytest.fixture
def ssd(guest: Guest, tmp_path: Path) -> Iterator[Disk]:
    """A local SSD; it is attached to `guest.hand` until a reboot."""
    with blank_disk(guest.hand, tmp_path / "ssd") as disk:
        yield disk


def test_undo_restores_machines_after_failures_changes_and_hostile_tasks(guest: Guest, stack: Stack, ssd: Disk) -> None:
    machines = (guest.head, guest.hand)
    before = {machine.name: snapshot(machine) for machine in machines}
    for machine in machines:
        guest.firewall(machine)
        guest.credentials(machine)
    for machine in machines:
        guest.data(machine, "/data/dask")
        guest.environment(machine)
        guest.service(machine, "/scratch", "/data/dask")
        guest.step(machine, "idle", LIMIT="86400", ADDRESS="" if machine is guest.head else guest.head.address)
    guest.jobs("/data/dask")
    guest.members()
    guest.check("/data/dask")
    assert guest.left == {}

    def everything() -> dict[str, set[str]]:
        return {machine.name: snapshot(machine) | {machine.run(RUNNING).stdout} for machine in machines}

    once = everything()
    for (name, state), variables in list(guest.variables.items()):
        if state != "certificates":  # signs again on purpose; the test is about the files that a machine installed
            guest.step(stack.machines[name], state, **variables)
    twice = everything()
    assert [once[name] ^ twice[name] for name in once] == [set(), set()], "a second run changes something"

    guest.head.run(START)
    until(lambda: guest.head.run(OUTPUT).stdout == "began\n")
    guest.hand.ssh("sudo -u dask sh -c 'echo kept >/data/dask/kept'")
    assert guest.hand.ssh("sudo ls -A /scratch/daskstack").stdout

    for machine in (guest.hand, guest.head):
        machine.reboot()
        stack.boot(machine.name)
        machine.run("cp -p /tmp/thesis.txt /dev/shm")  # a reboot empties it
    assert guest.hand.ssh("timeout 20 cat /data/dask/kept").stdout == "kept\n"
    for machine in machines:
        assert machine.ssh("sudo cat /data/thesis.txt").stdout == "alice's\n"
    guest.hand.ssh("rm /data/dask/kept")
    until(lambda: guest.head.run(OUTPUT).stdout == "began\nbegan\n")  # a job starts again after a reboot

    ssd.attach(guest.hand)
    guest.service(guest.hand, "/scratch/former", "/data/dask", DEVICE)
    for machine in machines:
        guest.data(machine, "/fast")
        guest.service(machine, "/scratch/new", "/fast", DEVICE if machine is guest.hand else "")
    assert guest.hand.ssh("findmnt -rn -o TARGET -S $(findmnt -n -o SOURCE /scratch/new)").stdout == "/scratch/new\n"
    assert guest.hand.ssh("sudo ls -A /scratch/new/daskstack").stdout
    assert guest.hand.ssh("ls /scratch").stdout.split() == ["new", "thesis.txt"]
    assert guest.hand.ssh("sudo ls /fast").stdout == "thesis.txt\n", "the holder's"

    for machine in machines:
        machine.run(PLANTED, {"ADDRESS": machine.address})
    for machine in (guest.hand, guest.head):
        machine.run(STORM)
        for state in UNDONE:
            if (machine.name, state) in guest.variables:
                guest.undo(machine, state)
        if machine is guest.head:
            send_environment.as_root(connection(machine), send_environment.REMOVE)
        assert machine.run("cat /tmp/of-dask/of-others/thesis; rm -r /tmp/of-dask").stdout == "alice's\n"
        assert changes(machine, before[machine.name]) == set()
    assert guest.hand.ssh("ls /tmp/woken", check=False).returncode != 0

    guest.hand.reboot()
    stack.boot(guest.hand.name)
    guest.hand.run("cp -p /tmp/thesis.txt /dev/shm")
    assert changes(guest.hand, before[guest.hand.name]) == set()
