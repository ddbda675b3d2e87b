"""Records of machines and disks. `gcp.computers` runs the real machines."""

from collections.abc import Iterator
from typing import Any

from command.output import Found
from gcp import checks
from gcp.checks import between, one_of
from gcp.kinds import (
    DISK,
    INSTANCE,
    NETWORK,
    SUBNETWORK,
    Kind,
    Link,
    always,
    fingerprint,
    label_fingerprint,
    link,
    moment,
    number,
)
from gcp.networks import inner_address, public_address


def instance_rules(inputs: dict[str, Any]) -> Iterator[Found]:
    disk, scheduling = inputs["bootDisk"], inputs.get("scheduling")
    if isinstance(disk, dict) and not disk:
        yield "bootDisk", "set initializeParams or source"
    if isinstance(scheduling, dict):
        spot = scheduling.get("provisioningModel") == "SPOT" or scheduling.get("preemptible") is True
        if spot and scheduling.get("automaticRestart", True) is True:
            yield "scheduling.automaticRestart", "must be false for a machine that can be preempted"
    if inputs.get("metadataStartupScript") and "startup-script" in inputs.get("metadata", {}):
        yield "metadataStartupScript", "conflicts with startup-script in metadata; use only one of them"


def not_heeded(inputs: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Inputs that a rehearsal's machine ignores, as (property, feature)."""
    if inputs.get("desiredStatus") == "SUSPENDED":
        yield "desiredStatus", "SUSPENDED as a machine's status"
    if "metadataStartupScript" in inputs:
        yield "metadataStartupScript", "start-up scripts"
    if len(inputs["networkInterfaces"]) > 1:
        yield "networkInterfaces", "a machine's second network interface"
    for place, metadata in checks.at(inputs, "metadata"):
        for key, value in metadata.items():
            if key.endswith(("-script", "-script-url")):
                yield f"{place}.{key}", "start-up and shut-down scripts"
            if key == "enable-oslogin" and str(value).upper() == "TRUE":
                yield f"{place}.{key}", "OS Login"
            if key == "ssh-keys":
                users = {line.partition(":")[0].strip() for line in value.splitlines() if line.strip()}
                for user in sorted(users - {"admin"}):
                    yield f"{place}.{key}", f"the user {user} on a machine (only admin)"


BOOT_DISK_FIXED = tuple(
    f"bootDisk.{name}"
    for name in (
        *("deviceName", "diskEncryptionKeyRaw", "diskEncryptionKeyRsa", "guestOsFeatures", "interface"),
        *("kmsKeySelfLink", "mode", "source"),
        *(
            f"initializeParams.{name}"
            for name in ("architecture", "enableConfidentialCompute", "image", "size", "type")
        ),
        *(f"initializeParams.{name}" for name in ("provisionedIops", "provisionedThroughput")),
        *(f"initializeParams.{name}" for name in ("snapshot", "storagePool", "replicaZones")),
    )
)


MACHINES = {
    "compute/disk:Disk": Kind(
        DISK.replace("{}", "{name}"),
        checks={
            "name": checks.NAME,
            "accessMode": one_of("READ_WRITE_SINGLE", "READ_WRITE_MANY", "READ_ONLY_SINGLE"),
            "size": between(1, 65536),
            "zone": checks.ZONE,
            "project": checks.PROJECT,
        },
        fixed=(
            "asyncPrimaryDisk",
            "description",
            "diskEncryptionKey",
            "enableConfidentialCompute",
            "guestOsFeatures",
            "image",
            "interface",
            "licenses",
            "multiWriter",
            "name",
            "params",
            "physicalBlockSizeBytes",
            "project",
            "resourcePolicies",
            "snapshot",
            "sourceDisk",
            "sourceInstantSnapshot",
            "storagePool",
            "type",
            "zone",
        ),
        growing=("size",),
        defaults={"type": "pd-standard"},
        filled={
            "creationTimestamp": moment,
            "diskId": number,
            "labelFingerprint": label_fingerprint,
            "physicalBlockSizeBytes": always(4096),
            "selfLink": link,
            "size": lambda state: 10 if state.given.get("image") else 500,
            "users": always([]),
        },
        labels="labels",
    ),
    "compute/instance:Instance": Kind(
        INSTANCE.replace("{}", "{name}"),
        checks={
            "name": checks.NAME,
            "machineType": checks.MACHINE,
            "zone": checks.ZONE,
            "project": checks.PROJECT,
            "tags[]": checks.NAME,
            "bootDisk.mode": one_of("READ_WRITE", "READ_ONLY"),
            "bootDisk.initializeParams.size": between(10),
            "desiredStatus": one_of("RUNNING", "TERMINATED", "SUSPENDED"),
            "networkInterfaces[].accessConfigs[].networkTier": one_of("PREMIUM", "STANDARD"),
            "scratchDisks[].interface": one_of("SCSI", "NVME"),
            "scheduling.instanceTerminationAction": one_of("STOP", "DELETE"),
            "serviceAccount.email": checks.EMAIL,
        },
        apart=(("bootDisk.source", "bootDisk.initializeParams"),),
        rules=instance_rules,
        fixed=(
            *BOOT_DISK_FIXED,
            "confidentialInstanceConfig",
            "guestAccelerators",
            "networkInterfaces.nicType",
            "networkInterfaces.queueCount",
            "networkInterfaces.vlan",
            "networkPerformanceConfig",
            "params",
            "project",
            "scheduling.maxRunDuration",
            "scheduling.preemptible",
            "scheduling.provisioningModel",
            "scheduling.terminationTime",
            "scratchDisks",
            "zone",
        ),
        counted=("networkInterfaces",),
        stopping=(
            "advancedMachineFeatures",
            "enableDisplay",
            "machineType",
            "minCpuPlatform",
            "networkInterfaces.network",
            "networkInterfaces.subnetwork",
            "serviceAccount",
            "shieldedInstanceConfig",
        ),
        filled={
            "bootDisk.deviceName": always("persistent-disk-0"),
            "bootDisk.mode": always("READ_WRITE"),
            "bootDisk.source": lambda state: f"{state.link.replace('/instances/', '/disks/')}",
            "cpuPlatform": always("Intel Broadwell"),
            "creationTimestamp": moment,
            "currentStatus": lambda state: state.given.get("desiredStatus", "RUNNING"),
            "instanceId": number,
            "labelFingerprint": label_fingerprint,
            "metadataFingerprint": lambda state: fingerprint(state.given.get("metadata")),
            "networkInterfaces[].accessConfigs[].natIp": public_address,
            "networkInterfaces[].accessConfigs[].networkTier": always("PREMIUM"),
            "networkInterfaces[].name": always("nic0"),
            "networkInterfaces[].networkIp": inner_address,
            "networkInterfaces[].stackType": always("IPV4_ONLY"),
            "selfLink": link,
            "tagsFingerprint": lambda state: fingerprint(state.given.get("tags")),
        },
        links={
            "attachedDisks[].source": Link(DISK),
            "bootDisk.source": Link(DISK),
            "networkInterfaces[].network": Link(NETWORK),
            "networkInterfaces[].subnetwork": Link(SUBNETWORK),
        },
        labels="labels",
    ),
    "compute/attachedDisk:AttachedDisk": Kind(
        "projects/{project}/zones/{zone}/instances/{instance}/{disk}",
        named="",
        checks={"zone": checks.ZONE, "project": checks.PROJECT},
        fixed=("deviceName", "disk", "instance", "interface", "mode", "project", "zone"),
        defaults={"mode": "READ_WRITE"},
        filled={"deviceName": always("persistent-disk-1")},
        links={"disk": Link(DISK), "instance": Link(INSTANCE, part=True)},
    ),
}
