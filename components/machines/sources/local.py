"""Machines on this computer, for trying out a cluster."""

import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import NotRequired, TypedDict

from pulumi import ComponentResource, Input, Output, ResourceOptions, RunError, Stash, log
from pulumi.runtime import is_dry_run
from pulumi_command import local

from components.machines.step import Host
from daskstack.client_keys import ssh_identity
from daskstack.engine import cache_folder, data_folder

FIRST_NUMBER = 10  # the host part of the scheduler's address; worker-1 has the next
LAST_NUMBER = 254  # the host part of the address of a group's first machine


class LocalMachinesArgs(TypedDict):
    stack: str
    """The stack's name. Each stack has its own folder and network."""
    names: list[str]
    """The names of the machines, the scheduler's first."""
    release: NotRequired[str]
    """The Debian release of new machines, such as "trixie"; Debian 12 by default."""


class LocalMachines(ComponentResource):
    """Debian machines with systemd, sshd and a user `admin` with sudo, on their own private network.

    It owns the machines, their folder and their network, and `destroy` removes them. The image stays in the cache,
    because the next stack needs it too. Folder and network have the name of `stack`, so two of these components on one
    computer need different values of it.
    """

    hosts: list[Host]
    network: Output[str]
    """The network of the machines and of this computer's end of it, in CIDR notation."""

    def __init__(self, name: str, args: LocalMachinesArgs, opts: ResourceOptions | None = None):
        if problem := unable():
            raise RunError(
                f"this computer cannot run local machines: {problem}. Use a Linux computer or VM on which you are root,"
                " or machines that already exist (machines.source: existing)"
            )
        super().__init__("dask:index:LocalMachines", name, {}, opts)
        folder = data_folder() / "machines" / args["stack"]
        release = args.get("release", "bookworm")
        if other := [name for name in args["names"] if (runs := installed_release(folder / name)) and runs != release]:
            raise RunError(
                f"environment.python has changed, but {', '.join(other)} would have to be created again with another"
                " Debian release: copy the files that you need from the shared directory, then run `destroy` and `up`"
            )
        # A restart of this computer ends machines and network. It also changes this id, so the next `up` starts them.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        before = folder / "boot"  # network.sh writes it
        if not before.exists() and not is_dry_run():
            log.info(
                "use local machines only for trying out a cluster: root in one of them can become root of this computer"
                " (docs/machines.md)",
                self,
            )
        if before.exists() and before.read_text().strip() != boot:
            log.warn("a restart of this computer has stopped the stack's machines; `up` starts them again", self)

        login = Stash(
            f"{name}-login",
            input=Output.secret(ssh_identity()),
            opts=ResourceOptions(parent=self, ignore_changes=["input"]),
        )
        cache: dict[str, Input[str]] = {"CACHE": str(cache_folder()), "RELEASE": release}
        image = self._command(f"{name}-image", "image.sh", cache, undo=False)
        network = self._command(
            f"{name}-network",
            "network.sh",
            {"DIRECTORY": str(folder), "NAME": args["stack"], "BOOT_ID": boot},
        )
        network_facts = network.stdout.apply(json.loads)

        self.network = network_facts["network"]
        self.hosts = []
        for number, machine in numbered(args["names"], folder):
            command = self._command(
                f"{name}-{machine}",
                "machine.sh",
                {
                    "DIRECTORY": str(folder),
                    "NAME": machine,
                    "IMAGE": image.stdout,
                    "BRIDGE": network_facts["bridge"],
                    "NETWORK": network_facts["network"],
                    "NUMBER": str(number),
                    "AUTHORIZED_KEY": Output.unsecret(login.output)["public"],
                    "STARTED": started(folder / machine),
                },
            )
            facts = command.stdout.apply(json.loads)
            self.hosts.append(
                Host(
                    name=machine,
                    address=facts["address"],
                    identity=facts["id"],
                    connection={
                        "host": facts["address"],
                        "user": "admin",
                        "private_key": login.output["private"],
                        "host_key": facts["hostKey"],
                    },
                    deleted_with=command,
                )
            )
        self.register_outputs({"network": self.network})

    def _command(self, name: str, script: str, environment: dict[str, Input[str]], undo: bool = True) -> local.Command:
        run = f"bash on_this_computer/local_machines/{script}"
        return local.Command(
            name,
            create=f"{run} up",
            delete=f"{run} down" if undo else None,
            environment=environment,
            add_previous_output_in_env=False,
            logging=local.Logging.STDERR,
            # A replacement has the same folder and address as the machine that it replaces.
            opts=ResourceOptions(parent=self, delete_before_replace=True),
        )


def numbered(names: list[str], folder: Path) -> list[tuple[int, str]]:
    """Each machine and the host part of its address, which does not depend on the other machines.

    The scheduler and worker-1, worker-2, ... have fixed ones. A machine of a group gets the highest free one, and
    keeps it.
    """
    workers = {name: found for name in names if (found := re.fullmatch(r"worker-(\d+)", name))}
    fixed = {"scheduler": FIRST_NUMBER} | {name: FIRST_NUMBER + int(found[1]) for name, found in workers.items()}
    kept = {
        file.parents[1].name: int(number)
        for file in folder.glob("*/etc/host0.network")  # machine.sh writes it
        for number in re.findall(r"^Address=.*\.(\d+)/", file.read_text(), re.MULTILINE)
    }
    free = (number for number in range(LAST_NUMBER, 1, -1) if number not in {*fixed.values(), *kept.values()})
    return [(fixed.get(name) or kept.get(name) or next(free), name) for name in names]


def started(machine: Path) -> str:
    """The value at the last run of `machine.sh up` while the machine is on; otherwise a new value, which reruns it."""
    import fcntl  # Windows does not have it; `unable` reports that

    try:
        with (machine / "running").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # its supervisor holds it
        return (machine / "started").read_text().strip()
    except FileNotFoundError:
        pass
    return secrets.token_hex(4)


def installed_release(machine: Path) -> str | None:
    """The Debian release of an existing machine, or None."""
    try:
        known = Path((machine / "image").read_text().strip(), "etc/os-release").read_text()
    except FileNotFoundError:
        return None
    return re.findall(r"^VERSION_CODENAME=(\w+)$", known, re.MULTILINE)[0]


def unable() -> str | None:
    """The reason why this computer cannot run local machines, or None."""
    if not Path("/proc/sys/kernel/random/boot_id").exists():
        return "this computer does not run Linux"
    if os.geteuid() != 0 and shutil.which("sudo") is None:
        return "you are not root, and there is no sudo"
    return None
