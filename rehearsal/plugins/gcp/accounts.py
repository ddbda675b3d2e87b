"""APIs, service accounts, and IAM members of projects and buckets."""

from gcp import checks
from gcp.kinds import Kind, State, fingerprint, number


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
