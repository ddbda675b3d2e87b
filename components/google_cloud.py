"""What every stack in Google Cloud needs: names, APIs, a network with access to the internet, service accounts."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pulumi
import pulumi_gcp as gcp
from pulumi import Input, Resource, ResourceOptions, RunError

from daskstack.google_credentials import has_credentials
from settings.buckets import Bucket
from settings.gke import NAME

SCOPE = "https://www.googleapis.com/auth/cloud-platform"  # the account's roles set narrower limits
ACCOUNT = "an account: run `gcloud auth application-default login`"


def require(stack: str, lacking: Sequence[str] = ()) -> None:
    """Raises RunError if the stack's name is invalid or, except in a preview, if a prerequisite is missing here.

    `lacking` lists other missing prerequisites, each with its remedy.
    """
    if len(stack) > 35 or not re.fullmatch(NAME, stack):
        raise RunError(
            f"the stack's name {stack} cannot be part of names in Google Cloud: use up to 35 characters of a-z, 0-9"
            " and -, with a letter first"
        )
    lacking = [*([] if has_credentials() else [ACCOUNT]), *lacking]
    if lacking and not pulumi.runtime.is_dry_run():
        raise RunError("\n  ".join(["prerequisites are missing on this computer; nothing was created", *lacking]))


def require_short(machines: Iterable[str]) -> None:
    """Raises RunError if a machine's name is too long for Google Cloud."""
    for name in machines:
        if len(name) > 63:
            raise RunError(
                f"{name} has more than the 63 characters of a name in Google Cloud: use a shorter name for the stack,"
                " or for the group in workers.groups"
            )


def account_id(name: str) -> str:
    """The id of a service account, which has at most 30 characters. A hash keeps shortened names unique."""
    if len(name) <= 30:
        return name
    return f"{name[:21].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


class Home:
    """A stack's place and names in Google Cloud.

    Its resources are children of `parent`, and their names in the program begin with the name of `parent`. Their names
    in Google Cloud begin with `dask-STACK`, so two components in one project need different values of `stack`.
    """

    def __init__(self, parent: Resource, stack: str, project: str, region: str, apis: Sequence[str]) -> None:
        self.prefix, self.stack, self.name = parent.pulumi_resource_name, stack, f"dask-{stack}"
        self.labels = {"dask-stack": stack}
        self.description = f"dask-stack: {stack}"  # for resources that have no labels
        self.project, self.region = project, region
        self.child = ResourceOptions(parent=parent)
        self.apis = [
            gcp.projects.Service(
                f"{self.prefix}-{api}-api",
                service=f"{api}.googleapis.com",
                disable_on_destroy=False,  # others in the project may use it
                project=self.project,
                opts=self.child,
            )
            for api in apis
        ]
        self.first = ResourceOptions(parent=parent, depends_on=self.apis)

    def network(
        self, cidr: str, *, way_out: bool, **subnetwork: Any
    ) -> tuple[gcp.compute.Network, gcp.compute.Subnetwork, list[Resource]]:
        """A network, its subnetwork and, with `way_out`, internet access for machines without an external address."""
        network = gcp.compute.Network(
            f"{self.prefix}-network",
            name=self.name,
            auto_create_subnetworks=False,
            description=self.description,
            project=self.project,
            opts=self.first,
        )
        made = gcp.compute.Subnetwork(
            f"{self.prefix}-subnetwork",
            name=self.name,
            network=network.id,
            ip_cidr_range=cidr,
            private_ip_google_access=True,
            project=self.project,
            region=self.region,
            opts=self.child,
            **subnetwork,
        )
        if not way_out:
            return network, made, []
        router = gcp.compute.Router(
            f"{self.prefix}-router",
            name=self.name,
            network=network.id,
            project=self.project,
            region=self.region,
            opts=self.child,
        )
        nat = gcp.compute.RouterNat(
            f"{self.prefix}-nat",
            name=self.name,
            router=router.name,
            nat_ip_allocate_option="AUTO_ONLY",
            source_subnetwork_ip_ranges_to_nat="ALL_SUBNETWORKS_ALL_IP_RANGES",
            log_config={"enable": True, "filter": "ERRORS_ONLY"},
            project=self.project,
            region=self.region,
            opts=self.child,
        )
        return network, made, [nat]

    def account(self, name: str, title: str, roles: Sequence[str], *, prefix: str = "") -> gcp.serviceaccount.Account:
        """A service account with these roles in the project and no others. Its id begins with `prefix`."""
        account = gcp.serviceaccount.Account(
            f"{self.prefix}-{name}",
            account_id=account_id(prefix + self.name),
            display_name=f"{title} of Dask stack {self.stack}",
            description=self.description,
            project=self.project,
            opts=self.first,
        )
        for role in roles:
            short = f"{self.prefix}-{name}-{role.rpartition('roles/')[2]}"
            gcp.projects.IAMMember(short, role=role, member=account.member, project=self.project, opts=self.child)
        return account

    def open_buckets(self, buckets: Sequence[Bucket], members: Mapping[str, Input[str]]) -> None:
        """Gives IAM members, by their names in the program, access to the objects in these buckets."""
        for name, member in members.items():
            for bucket in buckets:
                gcp.storage.BucketIAMMember(
                    f"{self.prefix}-{name}-bucket-{bucket.name}",
                    bucket=bucket.name,
                    role=bucket.role,
                    member=member,
                    opts=self.first,
                )
