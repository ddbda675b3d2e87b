"""python -m rehearsal.compute COMMAND [IDENTITY...]: manage the machines of a rehearsal on this computer.

    create     create a machine from the record on stdin; returns when it runs, before SSH answers
    start      start stopped machines, and apply changed records to running ones
    stop       shut machines down in an orderly way
    delete     delete machines but not their records; with the last machine, delete the network
    rules      apply the records' firewall rules
    status     print RUNNING or TERMINATED for each
    preempt    preempt spot machines as Google does, with 30 seconds' notice
    grow       make a disk's new size visible to its machine
    tunnel     IDENTITY PORT HOST:PORT: forward HOST:PORT on this computer to the machine's PORT, like IAP
    sweep      delete leftovers: machines, network, and package servers

IDENTITY is a record's ID, e.g. projects/P/zones/Z/instances/NAME. The stand-in for gcp stores records in the
folder DASKSTACK_REHEARSAL. DASKSTACK_REHEARSAL_MACHINES is a JSON object with what machines are made from: `image`
(printed by image.sh) and `packages` (a folder of wheels, the machines' package index). DASKSTACK_REHEARSAL_CALLER
is this computer's address as seen by the machines. Requires only Python's standard library, and root or sudo.
"""

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from daskstack.engine import PROJECT
from rehearsal.compute import bridge
from rehearsal.compute.rules import Machine, ruleset
from rehearsal.compute.tunnel import forward

SCRIPTS = PROJECT / "on_this_computer" / "local_machines"
INSTANCE, FIREWALL = "compute/instance:Instance", "compute/firewall:Firewall"
RANGE = "10.128.0.0/20"  # of a network in auto mode
CALLER = "203.0.113.7"
POWER_OFF, PREEMPTION = 90, 30  # seconds between an orderly shutdown and killing the machine
BOOTING = 5  # seconds for which a machine is still booting after SSH answers
STARTUP = f"""[Unit]
Description=Simulates the boot scripts of Google's images
After=ssh.service
[Service]
Type=oneshot
ExecStart=/bin/sleep {BOOTING}
[Install]
WantedBy=multi-user.target
"""
UV = """[[index]]
url = "http://{gateway}/"
format = "flat"
default = true
"""
Record = dict[str, Any]
Records = dict[str, Record]


class ComputeError(Exception):
    """An error for the user."""


def main(word: str, *identities: str) -> None:
    match word:
        case "create":
            create(identities[0], json.load(sys.stdin))
        case "start":
            records = settle()
            each(identities, lambda identity: start(identity, records))
        case "stop":
            each(identities, lambda identity: machine(identity, "stop", SECONDS_TO_STOP=str(POWER_OFF)))
        case "delete":
            each(identities, lambda identity: machine(identity, "down", SECONDS_TO_STOP=str(POWER_OFF)))
            settle(dict.fromkeys(identities))
        case "rules":
            settle()
        case "status":
            found = each(identities, lambda identity: machine(identity, "status"))
            print("\n".join("RUNNING" if status == "running" else "TERMINATED" for status in found))
        case "preempt":
            each(identities, preempt)
        case "grow":
            each(identities, grow)
        case "tunnel":
            identity, port, local = identities
            address = read()[identity]["outputs"]["networkInterfaces"][0]["networkIp"]
            host, _, number = local.rpartition(":")
            forward(bridge(folder()), (address, int(port)), (host, int(number)))
        case "sweep":
            script("network.sh", "sweep", NAME=cloud().parent.name)
        case _:
            raise ComputeError(f"unknown command {word!r}; see the documentation in {__file__}")


def create(identity: str, record: Record) -> None:
    if any(name_of(other) == name_of(identity) for other in instances(read())):
        raise ComputeError(f"a rehearsal can have only one machine with the name {name_of(identity)}, in any zone")
    machine(identity, "down")  # remove leftovers of a killed run
    start(identity, settle({identity: record}))


def start(identity: str, records: Records) -> None:
    record = records[identity]["outputs"]
    require_capacity(identity, records)
    subnetwork = subnetwork_of(records[identity], records)
    gateway = str(subnetwork[1])
    named = {name_of(link): link for link, _ in records[identity]["links"] if "/disks/" in link}
    disks = [(each["deviceName"], named[name_of(each["source"])]) for each in record.get("attachedDisks", [])]
    for _, disk in disks:
        grow(disk)
    # The machine keeps its local SSDs open until it stops, which erases them.
    with tempfile.TemporaryDirectory() as files, tempfile.TemporaryDirectory(dir=cloud()) as ssds:
        for number, each in enumerate(record.get("scratchDisks", [])):
            with Path(ssds, str(number)).open("wb") as file:
                file.truncate(each.get("size", 375) * 2**30)
        units, uv = Path(files, "etc/systemd/system"), Path(files, "etc/uv")
        (units / "multi-user.target.wants").mkdir(parents=True)
        (units / "startup.service").write_text(STARTUP)
        (units / "multi-user.target.wants/startup.service").symlink_to("../startup.service")
        uv.mkdir()
        (uv / "uv.toml").write_text(UV.format(gateway=gateway))
        machine(
            identity,
            "start",
            IMAGE=settings()["image"],
            ADDRESS=record["networkInterfaces"][0]["networkIp"],
            GATEWAY=gateway,
            AUTHORIZED_KEY=re.sub("(?m)^admin:", "", record.get("metadata", {}).get("ssh-keys", "")),
            FILES=files,
            DISKS="\n".join(
                [f"google-{name}={cloud() / disk}.img" for name, disk in disks]
                + [f"google-local-nvme-ssd-{path.name}={path}" for path in Path(ssds).iterdir()]
            ),
        )


def require_capacity(identity: str, records: Records) -> None:
    """Fails with Google's message if the machine is off, and its zone has no more of its kind."""
    if (left := capacity().get(kind_of(identity, records))) is None or machine(identity, "status") == "running":
        return
    alike = [other for other in instances(records) if kind_of(other, records) == kind_of(identity, records)]
    if sum(machine(other, "status") == "running" for other in alike) >= left:
        raise ComputeError(
            f"The zone '{identity.rpartition('/instances/')[0]}' does not have enough resources available to fulfill"
            " the request.  Try a different zone, or try again later."
        )


def kind_of(identity: str, records: Records) -> str:
    record = records[identity]["outputs"]
    spot = record.get("scheduling", {}).get("provisioningModel") == "SPOT"
    return f"{identity.split('/')[3]} {name_of(record['machineType'])}{' spot' if spot else ''}"


def preempt(identity: str) -> None:
    scheduling = read()[identity]["outputs"].get("scheduling", {})
    if scheduling.get("provisioningModel") != "SPOT" and scheduling.get("preemptible") is not True:
        raise ComputeError(f"cannot preempt {identity}: it is not a spot machine (scheduling.provisioningModel SPOT)")
    machine(identity, "stop", SECONDS_TO_STOP=str(PREEMPTION))
    if scheduling.get("instanceTerminationAction") == "DELETE":
        machine(identity, "down")
        (cloud() / f"{identity}.json").unlink(missing_ok=True)
        settle()


def grow(identity: str) -> None:
    file = cloud() / f"{identity}.img"
    with file.open("ab") as opened:
        opened.truncate(int(read()[identity]["outputs"]["size"]) * 2**30)
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    listed = [*sudo, "losetup", "--noheadings", "--output", "NAME", "--associated", str(file)]
    for device in run(listed).split():
        run([*sudo, "losetup", "--set-capacity", device])


def settle(changed: Mapping[str, Record | None] | None = None) -> Records:
    """Apply the records, merged with `changed` ones that are not written yet, to the network. Returns the records."""
    folder().parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder().parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        merged: dict[str, Record | None] = {**read(), **(changed or {})}
        records = {identity: record for identity, record in merged.items() if record}
        machines = instances(records)
        if machines:
            connect(machines, records)
        elif folder().exists():
            script("network.sh", "down", NAME=folder().parent.name)
        return records
    finally:
        os.close(lock)


def connect(machines: Records, records: Records) -> None:
    found = [as_machine(record, records) for record in machines.values()]
    firewalls = [record for record in records.values() if record["type"] == FIREWALL]
    blocks = {subnetwork_of(record, records) for record in machines.values()}
    script(
        "network.sh",
        "vpc",
        stdin=ruleset(found, [(network_of(each, records), each["outputs"]) for each in firewalls]),
        NAME=folder().parent.name,
        CALLER=os.environ.get("DASKSTACK_REHEARSAL_CALLER", CALLER),
        EXTERNAL=" ".join(each.external for each in found if each.external),
        GATEWAYS=" ".join(f"{block[1]}/{block.prefixlen}" for block in blocks),
        PACKAGES=settings().get("packages", ""),
    )


def as_machine(record: Record, records: Records) -> Machine:
    outputs = record["outputs"]
    interface = outputs["networkInterfaces"][0]
    return Machine(
        network=network_of(record, records),
        address=interface["networkIp"],
        external=next((each["natIp"] for each in interface.get("accessConfigs", [])), ""),
        tags=frozenset(outputs.get("tags", [])),
        account=outputs.get("serviceAccount", {}).get("email", ""),
    )


def network_of(record: Record, records: Records) -> str:
    for link, _ in record["links"]:
        if "/networks/" in link:
            return link
        if "/subnetworks/" in link and link in records:
            return network_of(records[link], records)
    return ""


def subnetwork_of(record: Record, records: Records) -> ipaddress.IPv4Network:
    links = [link for link, _ in record["links"] if "/subnetworks/" in link and link in records]
    blocks = [records[link]["outputs"].get("ipCidrRange", RANGE) for link in links]
    return ipaddress.IPv4Network([*blocks, RANGE][0])


def instances(records: Records) -> Records:
    return {identity: record for identity, record in records.items() if record["type"] == INSTANCE}


def read() -> Records:
    records = {}
    for file in cloud().rglob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # the plugin may be deleting records
            records[str(file.relative_to(cloud()).with_suffix(""))] = json.loads(file.read_text())
    return records


def capacity() -> dict[str, int]:
    """The largest number of machines of a kind, such as "us-central1-a e2-standard-4 spot", that can run."""
    file = cloud().parent / "limits.json"
    return json.loads(file.read_text()).get("capacity", {}) if file.is_file() else {}


def name_of(identity: str) -> str:
    return identity.rpartition("/")[2]


def folder() -> Path:
    return cloud().parent / "machines"


def cloud() -> Path:
    found = os.environ.get("DASKSTACK_REHEARSAL")
    if not found:
        raise ComputeError("DASKSTACK_REHEARSAL is not set; these machines only run in a rehearsal")
    return Path(found).absolute() / "gcp"


def settings() -> dict[str, str]:
    return json.loads(os.environ["DASKSTACK_REHEARSAL_MACHINES"])


def machine(identity: str, word: str, **variables: str) -> str:
    return script("machine.sh", word, NAME=name_of(identity), BRIDGE=bridge(folder()), **variables)


def script(name: str, word: str, stdin: str = "", **variables: str) -> str:
    environ = os.environ | {"DIRECTORY": str(folder())} | variables
    return run(["bash", str(SCRIPTS / name), word], env=environ, input=stdin)


def run(command: list[str], **kwargs: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **kwargs)
    if done.returncode:
        raise ComputeError(done.stderr.strip() or f"{' '.join(command)} ended with {done.returncode}")
    print(done.stderr, end="", file=sys.stderr)
    return done.stdout.strip()


def each(identities: tuple[str, ...], work: Callable[[str], Any]) -> list[Any]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(work, identities))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (ComputeError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
