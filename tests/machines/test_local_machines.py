"""The scripts in on_this_computer/local_machines, tested with real machines."""

import json
import os
import re
import signal
import subprocess
import textwrap
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from on_this_computer.send_scripts import STEPS
from rehearsal.machines import SCRIPTS, SUDO, CommandError, as_root, call, until


def ancestor(machine, name):
    """The process with this name among the machine's process 1 and its ancestors."""
    pid = machine.pid
    while (process := as_root("ps", "-o", "ppid=,comm=", "-p", str(pid)).stdout.split())[1] != name:
        pid = int(process[0])
    return pid


def boot_id(machine):
    """The start of the machine's systemd, which is different after each boot."""
    done = machine.ssh("systemctl show --property UserspaceTimestampMonotonic", check=False)
    return done.stdout if done.returncode == 0 else None


def traces(stack):
    """Traces of a stack on this computer: links, namespaces, mounts, cgroups, processes, files."""
    words = (stack.bridge, str(stack.directory))
    found = [line.split()[1] for line in as_root("ip", "-o", "link").stdout.splitlines()]
    found += as_root("ip", "netns").stdout.splitlines()
    found += Path("/proc/mounts").read_text().splitlines()
    found += as_root("find", "/sys/fs/cgroup", "-maxdepth", "2", "-type", "d").stdout.splitlines()
    found += [line for line in as_root("ps", "-eo", "args").stdout.splitlines() if "ps -eo" not in line]
    found += [str(stack.directory)] if stack.directory.exists() else []
    return [line for line in found if any(word in line for word in words)]


def test_the_image_belongs_to_no_machine(image):
    etc = Path(image) / "etc"
    assert not list((etc / "ssh").glob("ssh_host_*"))
    assert (etc / "machine-id").read_text() == ""
    assert (etc / "resolv.conf").read_text() == ""
    assert not (etc / "hostname").exists()


@pytest.fixture
def mirror(tmp_path):
    """The address of an unsigned Debian mirror."""
    release = tmp_path / "mirror" / "debian" / "dists" / "bookworm" / "Release"
    release.parent.mkdir(parents=True)
    release.write_text("Suite: stable\nCodename: bookworm\nComponents: main\nArchitectures: amd64\n")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "mirror")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/debian"
        server.shutdown()


@pytest.mark.parametrize(
    ("hide", "said"),
    [
        ("true", "Failed getting release signature file"),
        ("mount --bind /dev/null /usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring)"),
    ],
    ids=["with Debian's keys", "without them"],
)
def test_an_image_is_built_only_from_packages_signed_by_debian(hide, said, mirror, tmp_path):
    apt = tmp_path / "apt-get"  # from which image.sh learns this computer's package source
    apt.write_text(f'#!/bin/sh\ncase "$*" in *Label:\\ Debian) echo {mirror} ;; esac\n')
    apt.chmod(0o755)
    environment = f"CACHE={tmp_path}/cache PATH={tmp_path}:$PATH"
    done = as_root("unshare", "--mount", "bash", "-c", f"{hide} && {environment} bash {SCRIPTS}/image.sh", check=False)
    assert done.returncode, done.stdout
    assert said in done.stderr
    assert not list((tmp_path / "cache").glob("images/*/etc"))


def test_machines_booted_together_have_their_own_names_and_keys(boot):
    machines = boot("one", "two", "three")
    for machine in machines:
        assert machine.ssh("hostname").stdout.strip() == machine.name
        assert machine.ssh(f"getent ahostsv4 {machine.name}").stdout.split()[0] == machine.address
        assert machine.run("id --user").stdout.strip() == "0"
        assert machine.ssh("systemctl is-system-running").stdout.strip() == "running"
        # Only its own cgroups, even if this computer has v1 cgroups, which all machines would share.
        assert machine.ssh("findmnt -n -o FSTYPE /sys/fs/cgroup").stdout.strip() == "cgroup2"
    for property in ("address", "id", "host_key"):
        assert len({getattr(machine, property) for machine in machines}) == 3
    assert len({machine.ssh("cat /etc/machine-id").stdout for machine in machines}) == 3


def test_debian_12_and_13_have_their_python_and_the_packages_that_steps_install(stack, boot, image):
    trixie = call("image.sh", CACHE=str(Path(image).parents[1]), RELEASE="trixie")
    [thirteen] = stack.boot("thirteen", IMAGE=trixie)
    [twelve] = boot("one")
    rows = [
        line.split()[:2]
        for line in re.search("PACKAGES='(.*?)'", (STEPS / "common.sh").read_text(), re.DOTALL)[1].splitlines()
    ]
    for machine, python in ((twelve, "3.11."), (thirteen, "3.13.")):
        assert machine.ssh("python3 --version").stdout.startswith(f"Python {python}")
        for name, package in filter(None, rows):
            if name not in ("dmsetup", "mkfs.ext4"):  # local machines do not need them
                assert re.search(rf"/{name}$", machine.ssh(f"dpkg-query --listfiles {package}").stdout, re.MULTILINE)


def test_logins_as_root_or_with_a_password_are_rejected(boot):
    [machine] = boot("one")
    assert machine.ssh("true", user="root", check=False).returncode == 255
    effective = machine.run("sshd -T").stdout.splitlines()
    assert {"permitrootlogin no", "passwordauthentication no", "kbdinteractiveauthentication no"} < {*effective}


def test_root_of_a_machine_cannot_create_devices_or_change_the_kernel(boot):
    """This does not stop an attacker with root on the machine, as the documentation says; but these ways are closed."""
    [machine] = boot("one")
    number = os.stat("/").st_dev
    assert machine.run(f"mknod /root/disk b {os.major(number)} {os.minor(number)}", check=False).returncode
    assert not machine.run("find /dev -type b").stdout
    bounding = int(machine.run("sed -n 's/^CapBnd:\t/0x/p' /proc/1/status").stdout, 16)
    refused = {"SYS_MODULE": 16, "SYS_RAWIO": 17, "SYS_TIME": 25, "MKNOD": 27, "MAC_ADMIN": 33, "SYSLOG": 34, "BPF": 39}
    assert not [name for name, number in refused.items() if bounding >> number & 1]
    for file in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"):
        assert machine.run(f"true >>{file}", check=False).returncode, f"{file} can be written to"


def test_a_script_gets_its_variables_and_arguments_unchanged(boot):
    [machine] = boot("one")
    hard = 'it\'s $HOME "and"\n`more`'
    assert machine.run('printf %s "$HARD|$1|$#"', {"HARD": hard}, "a b").stdout == f"{hard}|a b|1"


def test_up_again_changes_nothing(stack, boot):
    [machine] = boot("one")

    def state():
        return (
            machine.pid,
            boot_id(machine),
            stack.network,
            as_root("ip", "link", "show", stack.bridge).stdout,
        )

    before = state()
    stack.up()
    assert boot("one") == [machine]
    assert state() == before


def test_a_machine_outlives_its_caller_and_does_not_block_it(stack):
    """Like closing a terminal: the caller's entire process group is killed."""
    caller = subprocess.Popen(
        ["bash", "-c", 'bash "$0" up; echo done; sleep 600', str(SCRIPTS / "machine.sh")],
        env=os.environ | stack.variables("orphan"), stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    printed = json.loads(caller.stdout.readline())
    assert caller.stdout.readline() == "done\n"
    first = boot_id(stack.boot("orphan")[0])
    os.killpg(caller.pid, signal.SIGKILL)
    # This returns only if no process of the machine holds the pipe.
    assert caller.communicate(timeout=120)[0] == ""
    [machine] = stack.boot("orphan")
    assert machine.id == printed["id"]
    assert boot_id(machine) == first


# Kills `up` and its process group before its n-th line; lines that wait for the machine do not count.
KILL = """
if [[ ${1-} == up ]]; then
  counted=0
  count() {
    [[ " ${FUNCNAME[*]} " != *" wait_until "* ]] || return 0
    ((++counted != KILL_AT)) || kill -KILL 0
    echo $counted >"$COUNTED"
  }
  trap count DEBUG
  set -o functrace
fi
"""


def up_killed_at(line, stack, name, folder):
    """The exit status of an `up` that is killed at this line, if it has so many, and the number of lines it ran."""
    (folder / "kill").write_text(KILL)
    variables = stack.variables(name) | {
        "BASH_ENV": folder / "kill", "COUNTED": folder / "counted", "KILL_AT": line,
    }  # fmt: skip
    assignments = [f"{key}={value}" for key, value in variables.items()]
    command = [*SUDO, "env", *assignments, "bash", str(SCRIPTS / "machine.sh"), "up"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, start_new_session=True, timeout=300)
    return done.returncode, int((folder / "counted").read_text())


@pytest.fixture(scope="module")
def lines_of_up(stack, tmp_path_factory):
    status, lines = up_killed_at(0, stack, "counted", tmp_path_factory.mktemp("counted"))
    assert status == 0
    stack.remove("counted")
    return lines


@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.7, 0.9, 1])
def test_the_next_up_repairs_one_that_was_killed_anywhere(stack, lines_of_up, part, tmp_path):
    name, line = f"killed-{int(part * 10)}", int(lines_of_up * part)
    assert up_killed_at(line, stack, name, tmp_path) == (-signal.SIGKILL, line - 1)
    [machine] = stack.boot(name)
    assert machine.ssh("hostname").stdout.strip() == name
    stack.remove(name)


def test_a_machine_can_reboot_itself(stack, boot):
    [machine] = boot("one")
    machine.ssh("echo kept > ~/file")
    first = boot_id(machine)
    machine.ssh("sudo -n systemctl reboot", check=False)
    until(lambda: boot_id(machine) not in (first, None))
    assert machine.ssh("cat ~/file").stdout == "kept\n"
    assert stack.boot("one") == [machine]


def test_a_machine_that_powers_itself_off_stays_off_until_up(stack):
    [machine] = stack.boot("off")
    machine.ssh("echo kept > ~/file; sudo -n systemctl poweroff", check=False)
    until(lambda: not machine.is_on())
    time.sleep(1)
    assert not machine.is_on()
    assert stack.boot("off") == [machine]
    assert machine.ssh("cat ~/file").stdout == "kept\n"


@pytest.mark.parametrize("victim", ["systemd", "systemd-nspawn", "bash", "unshare"])
def test_up_repairs_a_machine_after_any_of_its_processes_is_killed(stack, victim):
    [machine] = stack.boot("killed")
    machine.ssh("echo kept > ~/file; sync")
    as_root("kill", "-KILL", str(ancestor(machine, victim)))
    assert stack.boot("killed") == [machine]
    assert machine.ssh("cat ~/file").stdout == "kept\n"


def test_a_restart_of_this_computer_keeps_addresses_ids_and_files(make_stack):
    stack = make_stack("restart")
    machines = stack.boot("one", "two")
    machines[0].ssh("echo kept > ~/file; sync")
    network = stack.network
    for machine in machines:
        as_root("kill", "-KILL", str(ancestor(machine, "unshare")))
    as_root("ip", "link", "delete", stack.bridge)
    as_root("ip", "netns", "delete", stack.bridge)
    until(lambda: not any(machine.is_on() for machine in machines))

    stack.up()
    assert stack.network == network
    assert stack.boot("one", "two") == machines
    assert machines[0].ssh("cat ~/file").stdout == "kept\n"


def test_a_changed_key_or_address_is_applied(stack, tmp_path):
    [machine] = stack.boot("changed")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "id"], check=True)
    before = boot_id(machine)
    stack.boot("changed", AUTHORIZED_KEY=(tmp_path / "id.pub").read_text())
    assert machine.ssh("true", check=False).returncode == 255
    stack.boot("changed")
    assert boot_id(machine) == before

    [moved] = stack.boot("changed", NUMBER="200")
    assert moved.address == stack.network.replace(".0/24", ".200")
    assert moved.id == machine.id
    assert moved.address in moved.ssh("hostname --all-ip-addresses").stdout.split()


def test_two_stacks_do_not_interfere_with_each_other(stack, boot, make_stack):
    other = make_stack("other")
    assert other.network != stack.network
    [here], [there] = boot("one"), other.boot("one")
    assert here.id != there.id
    reach = "timeout 20 bash -c 'exec 3<>/dev/tcp/{}/22'"
    assert here.ssh(reach.format(here.address), check=False).returncode == 0
    assert here.ssh(reach.format(there.address), check=False).returncode != 0
    other.down()
    assert here.ssh("hostname").stdout == "one\n"


def test_down_removes_everything_and_is_quiet_when_it_is_gone(make_stack):
    stack = make_stack("gone")
    machines = stack.boot("one", "two")
    assert machines[0].ssh("true").returncode == 0
    assert len(traces(stack)) > 4
    stack.down()
    until(lambda: traces(stack) == [])
    stack.down()
    assert traces(stack) == []


def network_among(routes, tmp_path):
    """The network that the script chooses on a computer with these routes, which is a network namespace here."""
    script = f"""
        mount -t tmpfs tmpfs /run
        ip link set lo up
        ip link add lan up type bridge
        {routes}
        bash {SCRIPTS}/network.sh up
    """
    done = subprocess.run(
        [*SUDO, "env", f"DIRECTORY={tmp_path}/stack", "NAME=stack",
         "unshare", "--net", "--mount", "bash", "-e", "-c", textwrap.dedent(script)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return json.loads(done.stdout)["network"] if done.returncode == 0 else done.stderr


@pytest.mark.parametrize(
    "route",
    ["{network} dev lan", "{network} dev lan table 42", "blackhole {within}", "10.0.0.0/8 dev lan table 42"],
    ids=["same", "in another table", "a part of it", "covering it"],
)
def test_a_network_that_this_computer_routes_to_is_not_used(route, tmp_path):
    free = network_among("", tmp_path)
    (tmp_path / "stack" / "network").unlink()
    route = route.format(network=free, within=free.replace(".0/24", ".77"))
    assert network_among(f"ip route add {route}", tmp_path) not in (free, "")
    # A network that is already in use by machines does not change.
    (tmp_path / "stack" / "network").write_text(f"{free}\n")
    assert f"{free} of stack stack for something else" in network_among(f"ip route add {route}", tmp_path)


def test_a_vpn_that_uses_all_of_10_leaves_other_private_networks(tmp_path):
    routes = "ip route add 10.0.0.0/8 dev lan; ip route add 172.16.0.0/12 dev lan"
    assert network_among(routes, tmp_path).startswith("192.168.")


def test_default_routes_and_their_halves_do_not_block_a_network(tmp_path):
    free = network_among("", tmp_path)
    (tmp_path / "stack" / "network").unlink()
    routes = ("default dev lan", "0.0.0.0/1 dev lan", "unreachable default metric 9")
    assert network_among("; ".join(f"ip route add {route}" for route in routes), tmp_path) == free


def test_firewalld_closes_a_machine_to_the_outside_but_not_to_the_cluster(boot, outside):
    [machine, neighbour] = boot("walled", "two")
    machine.run("systemd-run --unit listener python3 -m http.server 8000")
    reach = f"timeout 20 bash -c 'exec 3<>/dev/tcp/{machine.address}/8000'"
    until(lambda: neighbour.ssh(reach, check=False).returncode == 0)
    assert machine.ssh("systemctl is-active firewalld", check=False).stdout == "inactive\n"
    assert outside.connects(machine, 8000)

    network = machine.address.rpartition(".")[0] + ".0/24"
    machine.run('systemctl start firewalld; firewall-cmd --zone trusted --add-source "$NETWORK"', {"NETWORK": network})
    assert not outside.connects(machine, 8000)
    assert outside.connects(machine, 22)
    assert neighbour.ssh(reach, check=False).returncode == 0
    assert "inet firewalld" in machine.run("nft list tables").stdout


def test_a_directory_of_another_machine_is_mounted_on_first_access(boot):
    """Mounts with FUSE and automount by systemd units, like the shared directory."""
    [server, client] = boot("one", "two")
    server.ssh("mkdir -p /tmp/daskdata && echo shared > /tmp/daskdata/file && mkdir -p -m 700 ~/.ssh")
    assert server.ssh("findmnt --noheadings --output FSTYPE --target /tmp").stdout == "overlay\n"
    public = client.run("[ -e /root/key ] || ssh-keygen -q -t ed25519 -N '' -f /root/key; cat /root/key.pub").stdout
    server.ssh("cat > ~/.ssh/authorized_keys", stdin=public)
    units = """
        printf '%s\\n' '[Mount]' "What=admin@$ADDRESS:/tmp/daskdata" 'Where=/mnt/shared' 'Type=fuse.sshfs' \\
            'Options=allow_other,IdentityFile=/root/key,StrictHostKeyChecking=accept-new' \\
            >/etc/systemd/system/mnt-shared.mount
        printf '%s\\n' '[Automount]' 'Where=/mnt/shared' >/etc/systemd/system/mnt-shared.automount
        systemctl daemon-reload
        systemctl restart mnt-shared.automount
        systemctl is-active mnt-shared.mount || true
    """
    assert client.run(units, {"ADDRESS": server.address}).stdout == "inactive\n"
    assert client.ssh("cat /mnt/shared/file").stdout == "shared\n"
    assert client.ssh("systemctl is-active mnt-shared.mount").stdout == "active\n"
    client.run("systemctl stop mnt-shared.automount mnt-shared.mount")


def test_a_machine_that_does_not_boot_shows_its_console(stack):
    [machine] = stack.boot("broken")
    machine.run("echo Nonsense yes > /etc/ssh/sshd_config.d/broken.conf; systemctl poweroff", check=False)
    until(lambda: not machine.is_on())
    console = f"{machine.folder}/console.log"
    call("machine.sh", "start", **stack.variables("broken"))
    until(lambda: as_root("grep", "-a", "Failed to start.*ssh", console, check=False).stdout)
    with pytest.raises(CommandError) as failure:
        stack.boot("broken", SECONDS_TO_BOOT="1")
    assert "Failed to start" in str(failure.value) and "ssh.service" in str(failure.value)
    assert "does not answer on port 22 of " in str(failure.value)
    assert console in str(failure.value)
    stack.remove("broken")


def test_a_machine_that_boots_too_long_names_the_unit_that_it_waits_for(stack):
    [machine] = stack.boot("slow")
    unit = "[Service]\nType=oneshot\nExecStart=sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
    machine.run(f"printf %s '{unit}' > /etc/systemd/system/sleeper.service; systemctl enable sleeper")
    machine.run("systemctl poweroff", check=False)
    until(lambda: not machine.is_on())
    call("machine.sh", "start", **stack.variables("slow"))
    until(lambda: b"SSH-" in subprocess.run(["ssh-keyscan", machine.address], capture_output=True).stderr)
    with pytest.raises(CommandError, match=r"still booting; systemd's jobs: .*sleeper.service start running"):
        stack.boot("slow", SECONDS_TO_BOOT="1")
    stack.remove("slow")


def test_up_fails_at_once_if_a_machine_dies_while_booting(stack, tmp_path):
    with pytest.raises(CommandError, match="it stopped") as failure:  # rather than a timeout after 3600 s
        stack.boot("empty", IMAGE=str(tmp_path), SECONDS_TO_BOOT="3600")
    assert "OS root directory" in str(failure.value)
    stack.remove("empty")


def test_scripts_work_with_sudo_and_say_so_if_it_is_missing(boot):
    [computer] = boot("two")
    for script in ("common.sh", "network.sh"):
        computer.ssh(f"cat > /tmp/{script}", stdin=(SCRIPTS / script).read_text())
    command = "DIRECTORY={} NAME=inner bash /tmp/network.sh {}"
    printed = json.loads(computer.ssh(command.format("/home/admin/share/inner", "up")).stdout)
    assert printed["gateway"] in computer.ssh("hostname --all-ip-addresses").stdout.split()
    assert computer.ssh("stat -c '%U %a' /home/admin/share/inner").stdout == "admin 700\n"
    computer.ssh(command.format("/home/admin/share/inner", "down"))
    assert printed["gateway"] not in computer.ssh("hostname --all-ip-addresses").stdout.split()

    refused = computer.ssh(f"sudo -n -u nobody env {command.format('/tmp/inner', 'up')}", check=False)
    assert refused.returncode == 1
    assert "sudo requires a password" in refused.stderr and "source: existing" in refused.stderr


def test_scripts_reject_unknown_arguments(stack):
    for script in ("machine.sh", "network.sh"):
        with pytest.raises(CommandError, match=r"expected up, down, .* got 'sideways'"):
            call(script, "sideways", **stack.variables("one"))
