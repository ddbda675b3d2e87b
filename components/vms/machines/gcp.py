"""Machines in Google Cloud's Compute Engine, with a network and an account of their own."""

import re
from typing import Any, TypedDict

import pulumi
import pulumi_gcp as gcp
from pulumi import ComponentResource, CustomTimeouts, Input, Output, ResourceOptions, RunError, Stash
from pulumi_command import local

from components.vms.credentials import ssh_identity
from components.vms.dask import cluster_ports
from components.vms.step import Host
from daskstack.google import has_credentials
from settings import Vms
from settings.common import seconds
from settings.compute import Instance, WorkerInstance
from settings.google import NAME

APIS = ("compute", "iam")
USER = "admin"  # Google's guest agent makes it on the machine, with sudo
DATA = "dask-data"  # the disk's name on the machine
WAIT = 600  # seconds for a machine to have started up
SPOT_GRACE = 20  # seconds; Google cuts the power 30 after its notice
SCOPE = "https://www.googleapis.com/auth/cloud-platform"  # narrowed by the account's roles


class GcpMachinesArgs(TypedDict):
    stack: str
    """The stack's name, which is part of all names and labels."""
    settings: Vms
    """What the stack says; its `machines` are those in Google Cloud."""


class GcpMachines(ComponentResource):
    """A scheduler's machine, the only door from outside, and workers behind it without an address on the internet."""

    hosts: list[Host]
    network: str
    """The network in which they reach each other, in CIDR notation."""
    google: dict[str, Any]
    """Where they are: `project`, `zone`, and `machines`, the names there by names here."""

    def __init__(self, name: str, args: GcpMachinesArgs, opts: ResourceOptions | None = None):
        stack, settings = args["stack"], args["settings"]
        if len(stack) > 35 or not re.fullmatch(NAME, stack):
            raise RunError(
                f"the stack's name {stack} cannot be part of names in Google Cloud: use up to 35 of a-z, 0-9 and -"
            )
        if not pulumi.runtime.is_dry_run() and not has_credentials():
            raise RunError("nothing was made: there is no account: run `gcloud auth application-default login`")
        super().__init__("dask:index:GcpMachines", name, {}, opts)
        self.settings, self.machines = settings, settings.machines
        self.name = f"dask-{stack}"
        self.labels = {**self.machines.labels, "dask-stack": stack}
        self.description = f"dask-stack: {stack}"  # of what has no labels
        self.child = ResourceOptions(parent=self)
        self.project = {"project": self.machines.project}
        self.region = {**self.project, "region": self.machines.region}
        self.zone = {**self.project, "zone": self.machines.zone}

        self.apis = [
            gcp.projects.Service(
                api,
                service=f"{api}.googleapis.com",
                disable_on_destroy=False,  # others in the project may use it
                opts=self.child,
                **self.project,
            )
            for api in APIS
        ]
        subnetwork, way_out = self._network()
        self.account = self._account()
        rules = self._rules()
        disk = self._data_disk()
        login = Stash(
            f"{name}-login",
            input=Output.secret(ssh_identity()),
            opts=ResourceOptions(parent=self, ignore_changes=["input"]),
        )
        self.private_key = login.output["private"]

        self.network = self.machines.cidr
        self.hosts = []
        door = None
        for machine in self.machines.machine_names:
            kind = self.machines.worker if door else self.machines.scheduler
            inside = self._address(machine, {"address_type": "INTERNAL", "subnetwork": subnetwork})
            outside = None if door or self.machines.iap_port else self._address("door", {"address_type": "EXTERNAL"})
            instance = self._instance(
                machine,
                kind,
                interface={
                    "subnetwork": subnetwork,
                    "network_ip": inside.address,
                    "access_configs": [{"nat_ip": outside.address}] if outside else None,
                },
                disk=disk if machine == settings.data.machine else None,
                key=Output.unsecret(login.output)["public"],
            )
            connection: dict[str, Input[Any]] = {
                "host": outside.address if outside else inside.address,
                "port": 22,
                "user": USER,
                "private_key": self.private_key,
            }
            if door:
                connection["proxy"] = door
            elif self.machines.iap_port:
                connection |= {"host": "127.0.0.1", "port": self.machines.iap_port}
            connection["host_key"] = self._ready(machine, instance, connection, [*rules, *way_out])
            door = door or connection
            self.hosts.append(
                Host(
                    name=machine,
                    address=inside.address,
                    identity=instance.instance_id,
                    connection=connection,
                    deleted_with=instance,
                    grace=SPOT_GRACE if kind is self.machines.worker and kind.spot else Host.grace,
                    disk=f"/dev/disk/by-id/google-{DATA}" if machine == settings.data.machine else "",
                )
            )
        machines = {name: f"{self.name}-{name}" for name in self.machines.machine_names}
        self.google = {**self.zone, "machines": machines}
        self.register_outputs({"network": self.network})

    def _network(self) -> tuple[Input[str], list[pulumi.Resource]]:
        """The machines' subnetwork, and the way out of it for those without an address on the internet."""
        machines = self.machines
        if machines.network:
            self.network_id: Input[str] = f"projects/{machines.project}/global/networks/{machines.network.name}"
            place = f"projects/{machines.project}/regions/{machines.region}"
            return f"{place}/subnetworks/{machines.network.subnetwork}", []
        network = gcp.compute.Network(
            "network",
            name=self.name,
            auto_create_subnetworks=False,
            description=self.description,
            opts=ResourceOptions(parent=self, depends_on=self.apis),
            **self.project,
        )
        self.network_id = network.id
        subnetwork = gcp.compute.Subnetwork(
            "subnetwork",
            name=self.name,
            network=network.id,
            ip_cidr_range=machines.range,
            private_ip_google_access=True,
            opts=self.child,
            **self.region,
        )
        router = gcp.compute.Router("router", name=self.name, network=network.id, opts=self.child, **self.region)
        nat = gcp.compute.RouterNat(
            "nat",
            name=self.name,
            router=router.name,
            nat_ip_allocate_option="AUTO_ONLY",
            source_subnetwork_ip_ranges_to_nat="ALL_SUBNETWORKS_ALL_IP_RANGES",
            log_config={"enable": True, "filter": "ERRORS_ONLY"},
            opts=self.child,
            **self.region,
        )
        return subnetwork.id, [nat]

    def _account(self) -> gcp.serviceaccount.Account:
        """What the machines are in Google Cloud: by itself an account without any right."""
        account = gcp.serviceaccount.Account(
            "account",
            account_id=self.name[:30].rstrip("-"),
            display_name=f"Machines of Dask stack {self.labels['dask-stack']}",
            opts=ResourceOptions(parent=self, depends_on=self.apis),
            **self.project,
        )
        for role in self.machines.roles:
            gcp.projects.IAMMember(role, role=role, member=account.member, opts=self.child, **self.project)
        return account

    def _rules(self) -> list[gcp.compute.Firewall]:
        """What the network lets through; nothing else comes in."""
        door = gcp.compute.Firewall(
            "door-open",
            name=f"{self.name}-door",
            description=self.description,
            network=self.network_id,
            source_ranges=list(self.settings.firewall.ssh),
            target_tags=[f"{self.name}-door"],
            allows=[{"protocol": "tcp", "ports": ["22"]}],
            opts=self.child,
            **self.project,
        )
        inside = gcp.compute.Firewall(
            "inside-open",
            name=f"{self.name}-inside",
            description=self.description,
            network=self.network_id,
            source_service_accounts=[self.account.email],
            target_service_accounts=[self.account.email],
            allows=[
                {"protocol": "tcp", "ports": ["22", *cluster_ports(self.settings).split()]},
                {"protocol": "icmp"},
            ],
            opts=self.child,
            **self.project,
        )
        return [door, inside]

    def _data_disk(self) -> Input[str]:
        disk = self.machines.data_disk
        if disk.name:
            return f"projects/{self.machines.project}/zones/{self.machines.zone}/disks/{disk.name}"
        return gcp.compute.Disk(
            "data",
            name=f"{self.name}-data",
            type=disk.type,
            size=disk.size,
            labels=self.labels,
            # The user's files stay, as on machines of any other source.
            opts=ResourceOptions(parent=self, depends_on=self.apis, retain_on_delete=not self.settings.data.delete),
            **self.zone,
        ).id

    def _address(self, name: str, kind: dict[str, Input[str]]) -> gcp.compute.Address:
        """One that stays while the machine is switched off, and when it is made anew."""
        return gcp.compute.Address(
            f"{name}-address",
            name=f"{self.name}-{name}",
            labels=self.labels,
            opts=ResourceOptions(parent=self, depends_on=self.apis),
            **kind,
            **self.region,
        )

    def _instance(
        self,
        name: str,
        kind: Instance,
        *,
        interface: dict[str, Any],
        disk: Input[str] | None,
        key: Output[str],
    ) -> gcp.compute.Instance:
        accelerators = kind.accelerators if isinstance(kind, WorkerInstance) else None
        return gcp.compute.Instance(
            f"{name}-machine",
            name=f"{self.name}-{name}",
            machine_type=kind.machine,
            boot_disk={
                "initialize_params": {
                    "image": self.machines.image,
                    "size": kind.disk,
                    "type": "pd-balanced",
                    "labels": self.labels,
                }
            },
            attached_disks=[{"source": disk, "device_name": DATA}] if disk else None,
            network_interfaces=[interface],
            tags=[f"{self.name}-door"] if name == self.machines.scheduler_name else None,
            labels=self.labels,
            metadata={
                "ssh-keys": Output.format("{}:{}", USER, key),
                "block-project-ssh-keys": "TRUE",
                "enable-oslogin": "FALSE",
                # Where the machine writes its host keys down, for who wants to compare them.
                "enable-guest-attributes": "TRUE",
            },
            service_account={"email": self.account.email, "scopes": [SCOPE]},
            shielded_instance_config={
                "enable_secure_boot": self.machines.secure_boot,
                "enable_vtpm": True,
                "enable_integrity_monitoring": True,
            },
            guest_accelerators=([{"type": accelerators.type, "count": accelerators.count}] if accelerators else None),
            scheduling=scheduling(kind, self.settings.limits.max_age),
            desired_status="RUNNING",  # where it has switched itself off, a refresh sees it and `up` starts it
            allow_stopping_for_update=True,
            opts=ResourceOptions(
                parent=self,
                delete_before_replace=True,  # the new one has the old one's name and address
                custom_timeouts=CustomTimeouts(create="10m", delete="10m"),
            ),
            **self.zone,
        )

    def _ready(
        self,
        name: str,
        instance: gcp.compute.Instance,
        connection: dict[str, Input[Any]],
        after: list[pulumi.Resource],
    ) -> Output[str]:
        """Waits until the machine has started up; the host key that it showed at the first contact."""
        gcloud, place = "gcloud compute", f"--zone {self.machines.zone} --project {self.machines.project}"
        tunnel = (
            f"gcloud compute start-iap-tunnel {self.name}-{name} 22 --local-host-port=localhost:{connection['port']}"
        )
        command = local.Command(
            f"{name}-ready",
            create=".venv/bin/python -m components.vms.ready",
            # Another way to the same machine is no first contact: the key that was read stays.
            update='printf %s "$PULUMI_COMMAND_STDOUT"',
            triggers=[instance.instance_id],
            environment={
                "NAME": name,
                "CONNECTION": Output.json_dumps(connection),
                "WAIT": str(WAIT),
                "CONSOLE": f"{gcloud} instances get-serial-port-output {self.name}-{name} {place}",
                "TUNNEL": f"{tunnel} {place}" if connection["host"] == "127.0.0.1" else "",
            },
            logging=local.Logging.STDERR,
            opts=ResourceOptions(parent=self, depends_on=after, deleted_with=instance),
        )
        return Output.unsecret(command.stdout)


def scheduling(kind: Instance, max_age: str | None) -> dict[str, Any]:
    """When Google may stop a machine, and what becomes of it then."""
    spot = isinstance(kind, WorkerInstance) and kind.spot
    moves = not spot and not (isinstance(kind, WorkerInstance) and kind.accelerators)
    return {
        "provisioning_model": "SPOT" if spot else "STANDARD",
        "preemptible": spot,
        "automatic_restart": not spot,
        "on_host_maintenance": "MIGRATE" if moves else "TERMINATE",
        "instance_termination_action": "DELETE" if max_age else "STOP" if spot else None,
        "max_run_duration": {"seconds": seconds(max_age)} if max_age else None,
    }
