"""APIs, service accounts, and IAM members of projects and buckets."""

from gcp import checks
from gcp.kinds import INSTANCE, Kind, Link, State, always, fingerprint, number


def email(state: State) -> str:
    return state.identity.rsplit("/", 1)[-1]


ACCOUNTS = {
    "projects/service:Service": Kind(
        "{project}/{service}",
        named="",
        checks={"service": checks.SERVICE, "project": checks.PROJECT},
        fixed=("project", "service"),
        defaults={"disableOnDestroy": False, "disableDependentServices": False},
        joins=True,
    ),
    "projects/iAMMember:IAMMember": Kind(
        "{project}/{role}/{member}",
        named="",
        checks={"role": checks.ROLE, "member": checks.MEMBER, "project": checks.PROJECT},
        fixed=("project", "role", "member", "condition"),
        filled={"etag": lambda state: fingerprint(state.identity)},
        joins=True,
    ),
    "projects/iAMCustomRole:IAMCustomRole": Kind(
        "projects/{project}/roles/{roleId}",
        named="roleId",
        longest=64,
        checks={"roleId": checks.ROLE_ID, "project": checks.PROJECT},
        fixed=("project", "roleId"),
        filled={"name": lambda state: state.identity, "deleted": always(False)},
    ),
    "compute/instanceIAMMember:InstanceIAMMember": Kind(
        f"{INSTANCE.format('{instanceName}', project='{project}', zone='{zone}')}/{{role}}/{{member}}",
        named="",
        checks={"role": checks.ROLE, "member": checks.MEMBER, "project": checks.PROJECT, "zone": checks.ZONE},
        fixed=("project", "zone", "instanceName", "role", "member", "condition"),
        filled={"etag": lambda state: fingerprint(state.identity)},
        links={"instanceName": Link(INSTANCE, part=True)},
        joins=True,
    ),
    "storage/bucketIAMMember:BucketIAMMember": Kind(
        "b/{bucket}/{role}/{member}",
        named="",
        checks={"role": checks.ROLE, "member": checks.MEMBER},
        fixed=("bucket", "role", "member", "condition"),
        filled={"etag": lambda state: fingerprint(state.identity)},
        joins=True,
    ),
    "serviceaccount/account:Account": Kind(
        "projects/{project}/serviceAccounts/{accountId}@{project}.iam.gserviceaccount.com",
        named="accountId",
        longest=30,
        checks={
            "accountId": checks.ACCOUNT,
            "description": lambda value: "" if len(value.encode()) <= 256 else "expected at most 256 bytes",
            "project": checks.PROJECT,
        },
        fixed=("project",),
        filled={
            "name": lambda state: state.identity,
            "email": email,
            "member": lambda state: f"serviceAccount:{email(state)}",
            "uniqueId": number,
        },
    ),
}
