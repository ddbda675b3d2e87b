"""Machines in Google Cloud's Compute Engine, with their own network and service accounts."""

import secrets
from typing import Any, TypedDict

import pulumi
import pulumi_gcp as gcp
from pulumi import ComponentResource, CustomTimeouts, Input, Output, ResourceOptions, Stash
from pulumi_command import local

from components.google_cloud import SCOPE, Home, require, require_short
from components.machines.dask_options import dask_ports, library_ports
from components.machines.step import Host
from daskstack.client_keys import ssh_identity
from daskstack.client_output import Google
from settings import ComputeSource, MachinesTarget, cost
from settings.common import seconds
from settings.compute import IAP, POWER_PORTS, Instance, WorkerInstance, placed

APIS = ("compute", "iam")
USER = "admin"  # Google's guest agent creates it on the machine, with sudo
DATA = "dask-data"  # the disk's name on the machine
SSD = "/dev/disk/by-id/google-local-nvme-ssd-{}"  # Google's images create these links
WAIT = 600  # seconds until a machine must have booted
ALLOW, DENY = 1000, 1001  # priorities of our firewall rules; smaller numbers win
SPOT_GRACE = 20  # seconds; Google stops a spot machine 30 seconds after its notice


class ComputeMachinesArgs(TypedDict):
    stack: str
    """The stack's name, which is part of all names and labels in Google Cloud."""
    settings: MachinesTarget
    """The stack's settings, with `machines.source: compute`."""


class ComputeMachines(ComponentResource):
    """Machines in Google Cloud. Users log in to the scheduler's machine; workers have no external address.

    It owns the machines, their addresses, firewall rules and service accounts, and, unless `network` names one, the
    network. The data disk stays after `destroy` unless `data.delete` is set, because it has the user's files. APIs stay
    enabled, because other stacks in the project may use them. A network or disk that the settings name is used and left
    alone, and so are buckets, to which it only gives the machines access.

    Names in Google Cloud come from `stack`, so two of these components in one project need different values of it.
    """

    hosts: list[Host]
    network: str
    """The network of the machines, in CIDR notation."""
    google: Google
    """The machines' names in Google Cloud."""

    def __init__(self, name: str, args: ComputeMachinesArgs, opts: ResourceOptions | None = None):
        stack, settings = args["stack"], args["settings"]
        require(stack)
        require_short(f"dask-{stack}-{machine}" for machine in settings.machine_names)
        super().__init__("dask:index:ComputeMachines", name, {}, opts)
        assert isinstance(settings.machines, ComputeSource)
        self.name, self.settings, self.machines = name, settings, settings.machines
        self.placed = {machine: placed(settings, self.machines, machine) for machine in settings.machine_names}
        self.machines_stop = settings.workers.min is not None  # with their workers
        buckets = settings.data.buckets
        apis = (*APIS, *(["storage"] if buckets else []))
        self.home = Home(self, stack, self.machines.project, self.machines.region, apis)
        self.labels = {**self.machines.labels, **self.home.labels}
        self.login = Stash(
            f"{name}-login",
            input=Output.secret(ssh_identity()),
            opts=ResourceOptions(parent=self, ignore_changes=["input"]),
        ).output

        self._network()
        self.account = self.home.account("account", "Machines", self.machines.roles)
        # Firewall rules recognize the scheduler's machine by its own account. Tags are weaker: users with the right to
        # set tags could open any machine.
        self.door_account = self.home.account("door-account", "Door", self.machines.roles, prefix="door-")
        members = {"account": self.account.member, "door-account": self.door_account.member}
        self.home.open_buckets(buckets, members)
        self.rules = self._rules()
        self.before = [*self.way_out, *self.rules]
        self.disk = self._data_disk()
        self.door: dict[str, Input[Any]] = {}
        self.role = self._role() if self.machines_stop else None
        self.hosts = [self._host(machine) for machine in settings.machine_names]
        self.network = self.machines.cidr
        self.google = Google(
            project=self.machines.project,
            zone=self.machines.zone,
            machines={machine: f"{self.home.name}-{machine}" for machine in settings.machine_names},
            zones={machine: zone for machine, (_, zone) in self.placed.items() if zone != self.machines.zone},
        )
        self.register_outputs({"network": self.network})

    def _network(self) -> None:
        given, region = self.machines.network, self.machines.region
        if given:
            project = given.project or self.machines.project
            self.network_id: Input[str] = f"projects/{project}/global/networks/{given.name}"
            self.subnetwork_id: Input[str] = f"projects/{project}/regions/{region}/subnetworks/{given.subnetwork}"
            self.way_out: list[pulumi.Resource] = []
        else:
            network, subnetwork, self.way_out = self.home.network(self.machines.range, way_out=True)
            self.network_id, self.subnetwork_id = network.id, subnetwork.id

    def _host(self, name: str) -> Host:
        """A machine that has booted. The first one is the bastion of the others."""
        first = not self.door
        kind = self.placed[name].kind
        inside = self._address(name, "INTERNAL", self.subnetwork_id)
        outside = self._address("door", "EXTERNAL") if first and not self.machines.iap_port else None
        instance = self._instance(name, kind, inside, outside)
        connection: dict[str, Input[Any]] = {
            "host": outside.address if outside else inside.address,
            "port": 22,
            "user": USER,
            "private_key": self.login["private"],
        }
        if first and self.machines.iap_port:
            connection |= {"host": "127.0.0.1", "port": self.machines.iap_port}
        # The others' boot does not wait for the first one's: its sshd answers much earlier.
        bastion = {} if first else {"proxy": {each: self.door[each] for each in self.door if each != "host_key"}}
        connection["host_key"] = self._ready(name, instance, connection | bastion)
        if not first:
            connection["proxy"] = self.door
        self.door = self.door or connection
        login = None
        if self.role and not first:
            self._allow_power(name, instance, self.role)
        if self._stops(name):
            login, port = connection, POWER_PORTS[self.machines.worker_names.index(name)]
            connection = {**connection, "host": "127.0.0.1", "port": port}  # power.py, on the scheduler's machine
        holds = name == self.settings.data.machine
        ssds = kind.local_ssds if isinstance(kind, WorkerInstance) else 0
        return Host(
            name=name,
            address=inside.address,
            identity=instance.instance_id,
            connection=connection,
            login=login,
            deleted_with=instance,
            guarded=True,
            metadata=bool(self.machines.roles or self.settings.data.buckets),
            grace=SPOT_GRACE if isinstance(kind, WorkerInstance) and kind.spot else Host.grace,
            disk=f"/dev/disk/by-id/google-{DATA}" if holds else "",
            disk_size=self.machines.data_disk.size if holds else 0,
            ssds=tuple(SSD.format(number) for number in range(ssds)),
        )

    def _stops(self, name: str) -> bool:
        """Whether the machine starts and stops with its workers."""
        return self.role is not None and name in self.machines.worker_names

    def _rules(self) -> list[gcp.compute.Firewall]:
        """Opens SSH on the scheduler's machine to the listed networks and the machines to each other, nothing else.

        An existing network has other rules: `default` opens SSH to the world. Our rules have a higher priority, and the
        last one denies everything that the first two do not allow.
        """
        accounts = [self.door_account.email, self.account.email]
        given = self.machines.network
        ports = f"22 {dask_ports(self.settings, self.settings.most_per_machine)} {library_ports(self.settings)}".split()

        def rule(name: str, **arguments: Any) -> gcp.compute.Firewall:
            return gcp.compute.Firewall(
                f"{self.name}-{name}",
                name=f"{self.home.name}-{name.partition('-')[0]}",
                description=self.home.description,
                network=self.network_id,
                opts=self.home.child,
                # The rules of a Shared VPC belong to its host project.
                project=given.project if given and given.project else self.home.project,
                **arguments,
            )

        return [
            rule(
                "door-open",
                priority=ALLOW,
                source_ranges=[*self.settings.firewall.ssh, *([IAP] if self.machines.iap_port else [])],
                target_service_accounts=accounts[:1],
                allows=[{"protocol": "tcp", "ports": ["22"]}],
            ),
            rule(
                "inside-open",
                priority=ALLOW,
                source_service_accounts=accounts,
                target_service_accounts=accounts,
                allows=[{"protocol": "tcp", "ports": ports}, {"protocol": "icmp"}],
            ),
            rule(
                "others-closed",
                priority=DENY,
                source_ranges=["0.0.0.0/0"],
                target_service_accounts=accounts,
                denies=[{"protocol": "all"}],
            ),
        ]

    def _data_disk(self) -> Input[str]:
        disk = self.machines.data_disk
        if disk.name:
            return f"projects/{self.machines.project}/zones/{self.machines.zone}/disks/{disk.name}"
        return gcp.compute.Disk(
            f"{self.name}-data",
            name=f"{self.home.name}-data",
            type=disk.type,
            size=disk.size,
            labels=self.labels,
            project=self.home.project,
            zone=self.machines.zone,
            # The user's files stay, as they do on machines from other sources.
            opts=ResourceOptions(
                parent=self, depends_on=self.home.apis, retain_on_delete=not self.settings.data.delete
            ),
        ).id

    def _address(self, name: str, address_type: str, subnetwork: Input[str] | None = None) -> gcp.compute.Address:
        """An address that stays while the machine is off, and if the machine is replaced."""
        return gcp.compute.Address(
            f"{self.name}-{name}-address",
            name=f"{self.home.name}-{name}",
            labels=self.labels,
            address_type=address_type,
            subnetwork=subnetwork,
            project=self.home.project,
            region=self.home.region,
            opts=self.home.first,
        )

    def _instance(
        self, name: str, kind: Instance, inside: gcp.compute.Address, outside: gcp.compute.Address | None
    ) -> gcp.compute.Instance:
        accelerators = kind.accelerators if isinstance(kind, WorkerInstance) else None
        ssds = kind.local_ssds if isinstance(kind, WorkerInstance) else 0
        account = self.door_account if name == self.machines.scheduler_name else self.account
        return gcp.compute.Instance(
            f"{self.name}-{name}",
            name=f"{self.home.name}-{name}",
            machine_type=kind.machine,
            project=self.home.project,
            zone=self.placed[name].zone,
            boot_disk={
                "initialize_params": {
                    "image": self.machines.image,
                    "size": kind.disk,
                    "type": cost.disk_type(kind.machine),
                    "labels": self.labels,
                }
            },
            attached_disks=(
                [{"source": self.disk, "device_name": DATA}] if name == self.settings.data.machine else None
            ),
            scratch_disks=[{"interface": "NVME"}] * ssds or None,
            network_interfaces=[
                {
                    "subnetwork": self.subnetwork_id,
                    "network_ip": inside.address,
                    "access_configs": [{"nat_ip": outside.address}] if outside else None,
                }
            ],
            labels=self.labels,
            metadata={
                "ssh-keys": Output.format("{}:{}", USER, Output.unsecret(self.login)["public"]),
                "block-project-ssh-keys": "TRUE",
                "enable-oslogin": "FALSE",
                # The machine publishes its host keys there, and `up` compares them at the first contact.
                "enable-guest-attributes": "TRUE",
            },
            service_account={"email": account.email, "scopes": [SCOPE]},
            shielded_instance_config={
                "enable_secure_boot": self.machines.secure_boot,
                "enable_vtpm": True,
                "enable_integrity_monitoring": True,
            },
            guest_accelerators=([{"type": accelerators.type, "count": accelerators.count}] if accelerators else None),
            scheduling=scheduling(kind, self.settings.limits.max_age),
            # After an idle shutdown, a refresh notices it and `up` starts the machine.
            desired_status=None if self._stops(name) else "RUNNING",
            allow_stopping_for_update=True,
            opts=ResourceOptions(
                parent=self,
                depends_on=self.rules,  # a machine never runs without them
                delete_before_replace=True,  # the replacement has the same name and address
                # The plugin cannot stop a machine with local SSDs: its request does not say that Google may erase them.
                replace_on_changes=["machineType", "shieldedInstanceConfig"] if ssds else [],
                custom_timeouts=CustomTimeouts(create="10m", delete="10m"),
            ),
        )

    def _role(self) -> gcp.projects.IAMCustomRole:
        """What the scheduler's machine may do with the workers' machines."""
        # Google reserves the name of a deleted role for weeks.
        part = Stash(
            f"{self.name}-power-id",
            input=secrets.token_hex(4),
            opts=ResourceOptions(parent=self, ignore_changes=["input"]),
        ).output
        return gcp.projects.IAMCustomRole(
            f"{self.name}-power",
            role_id=Output.format("{}_{}", self.home.name.replace("-", "_"), part),
            title=f"Start and stop machines of Dask stack {self.home.stack}",
            description=self.home.description,
            permissions=[f"compute.instances.{action}" for action in ("get", "start", "stop")],
            project=self.home.project,
            opts=self.home.first,
        )

    def _allow_power(self, name: str, instance: gcp.compute.Instance, role: gcp.projects.IAMCustomRole) -> None:
        """On this machine alone: in the project, the role would reach the machines of others."""
        gcp.compute.InstanceIAMMember(
            f"{self.name}-{name}-power",
            instance_name=instance.name,
            role=role.name,
            member=self.door_account.member,
            project=self.home.project,
            zone=self.placed[name].zone,
            opts=ResourceOptions(parent=self, deleted_with=instance),
        )

    def _ready(self, name: str, instance: gcp.compute.Instance, connection: dict[str, Input[Any]]) -> Output[str]:
        """Waits until the machine has booted. Returns the host key that it had at the first contact."""
        machine = f"{self.home.name}-{name}"
        place = f"--zone {self.placed[name].zone} --project {self.machines.project}"
        tunnel = f"start-iap-tunnel {machine} 22 --local-host-port=localhost:{connection['port']}"
        command = local.Command(
            f"{self.name}-{name}-ready",
            create=".venv/bin/python -m on_this_computer.wait_for_boot",
            # A new route to the same machine is no first contact: the known key stays.
            update='printf %s "$PULUMI_COMMAND_STDOUT"',
            triggers=[instance.instance_id],
            environment={
                "NAME": name,
                "CONNECTION": Output.json_dumps(connection),
                "WAIT": str(WAIT),
                "CONSOLE": f"gcloud compute instances get-serial-port-output {machine} {place}",
                "HOST_KEYS": f"gcloud compute instances get-guest-attributes {machine} --query-path=hostkeys/ {place}",
                "TUNNEL": f"gcloud compute {tunnel} {place}" if connection["host"] == "127.0.0.1" else "",
            },
            logging=local.Logging.STDERR,
            opts=ResourceOptions(parent=self, depends_on=self.before, deleted_with=instance),
        )
        return Output.unsecret(command.stdout)


def scheduling(kind: Instance, max_age: str | None) -> gcp.compute.InstanceSchedulingArgsDict:
    """When Google may stop a machine, and whether it then restarts, stays stopped or is deleted."""
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
