"""Prepares the same machines with Ansible, as its users would: see playbook.yml and ansible.cfg."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import Operation
from bench.rig import ADMIN, Rig, Run, inside, run
from daskstack.engine import PROJECT
from on_this_computer import send_environment
from rehearsal.machines import Machine
from tools.python_packages import bench_venv

HERE = Path(__file__).parent
# The files that `up` writes to a machine, except keys, certificates and the check's record: the playbook copies them.
WRITTEN = re.compile(
    r"/etc/(firewalld/zones/.*|ssh/sshd_config\.d/.*daskstack.*|systemd/system/[^/]*das[^/]*"
    r"|daskstack/(ssh/(config|ssh|session|revoked)|(?!proven)[^/]+))|/opt/daskstack/[^/]*\.py"
)
HARVEST = """
shopt -s nullglob
tar -c /etc/firewalld /etc/ssh /etc/systemd/system /etc/daskstack /opt/daskstack/*.py 2>/dev/null | base64
"""
# The resulting state, without the contents of keys and of the environment, and without files that only undo needs.
STATE = r"""
find /etc/daskstack /etc/firewalld /etc/ssh /etc/systemd/system /var/lib/daskstack /opt/daskstack /srv -xdev \
  \( -path '*/before' -o -path '*/environment/*' -o -path '*/daskstack/home/*' -o -path '/opt/daskstack/files/*' \
     -o -path /etc/daskstack/scripts -o -name spill -o -name installed -o -name request.pem -o -name '*.pub' \) \
  -prune -o \
  -printf '%p %m %u:%g %l\n' | sort
getent passwd dask
systemctl list-units --no-legend --plain 'dask*' 'srv-*' firewalld.service | awk '{print $1, $3, $4}' | sort
"""


def harvest(machines: Sequence[Machine], check: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Copies the files that `up` wrote and its check into `folder`; returns each machine's part of the playbook."""
    result = {}
    for machine in machines:
        archive = inside(machine, HARVEST)
        modes = {}
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(archive))) as tar:
            for member in tar:
                path = f"/{member.name}"
                content = tar.extractfile(member) if member.isfile() else None
                if content and WRITTEN.fullmatch(path):
                    target = folder / f"{machine.name}{path}"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content.read())
                    modes[path] = f"{member.mode:04o}"
        zones = [path for path in sorted(modes) if "/zones/" in path]
        rest = [{"path": path, "mode": mode} for path, mode in sorted(modes.items()) if path not in zones]
        ssh = [file for file in rest if "/ssh/" in file["path"]]
        data = [file for file in rest if "/dask-data" in file["path"] or "mount" in file["path"]]
        result[machine.name] = {
            "zones": zones,
            "data": data,
            "ssh": ssh,
            "service": [file for file in rest if file not in [*ssh, *data]],
            "works": any("/worker-" in path for path in modes),
        }
    folder.joinpath("check").write_text(check)
    return result


def play(
    rig: Rig, machines: Sequence[Machine], harvested: Mapping[str, dict[str, Any]], folder: Path, *words: str
) -> Run:
    """Runs the playbook on fresh machines, with `harvested` from machines of the same names and addresses."""
    work = rig.scratch()
    for name in ("playbook.yml", "ansible.cfg"):
        shutil.copy(HERE / name, work)
    wheels = send_environment.collect(PROJECT / "environment.lock", "3.11", "wheelhouse")
    known = "".join(f"{machine.address} {machine.host_key}\n" for machine in machines)
    work.joinpath("known_hosts").write_text(known)
    common = {
        "ansible_user": ADMIN,
        "ansible_ssh_private_key_file": str(rig.key),
        "files": str(folder),
        "collected": str(wheels.parent),
        "uv_wheel": next(wheels.glob("uv-*.whl")).name,
    }
    hosts = {each.name: {"ansible_host": each.address, **harvested[each.name]} for each in machines}
    work.joinpath("inventory.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": common}}))
    venv = bench_venv()
    environ = {**os.environ, "ANSIBLE_HOME": str(work), "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    try:
        return run([str(venv / "bin" / "ansible-playbook"), "playbook.yml", *words], cwd=work, env=environ)
    finally:
        for socket in work.glob("control/*"):
            subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "any"], capture_output=True)


def tasks(done: Run) -> list[tuple[str, float]]:
    """The tasks of a play with their seconds."""
    starts = [(seconds, line) for seconds, line in done.lines if re.match(r"(PLAY|TASK|RUNNING HANDLER) ", line)]
    ends = [*(seconds for seconds, _ in starts[1:]), done.seconds]
    found = [
        Operation(re.sub(r" \*+$", "", line), seconds, end) for (seconds, line), end in zip(starts, ends, strict=True)
    ]
    return [("start", starts[0][0]), *((each.name, each.end - each.start) for each in found)]


def state(machines: Sequence[Machine]) -> set[str]:
    """The state of the machines, one line for each fact."""
    return {f"{machine.name}: {line}" for machine in machines for line in inside(machine, STATE).splitlines()}
