"""Settings of buckets of Google Cloud Storage."""

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from settings.common import Conflict, Listed, Section
from settings.gke import matching

# IAM's name of a ServiceAccount in Kubernetes: project number, project, namespace, name. See
# https://cloud.google.com/kubernetes-engine/docs/how-to/workload-identity
POOL = "principal://iam.googleapis.com/projects/{}/locations/global/workloadIdentityPools/{}.svc.id.goog"
MEMBER = f"{POOL}/subject/ns/{{}}/sa/{{}}"


class Bucket(Section):
    """A bucket of Google Cloud Storage, which already exists."""

    name: Annotated[
        str, matching(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", "a bucket's name; write e.g. my-bucket, without gs://")
    ] = Field(examples=["my-bucket"])
    """The bucket. The stack neither creates nor deletes buckets; `destroy` only removes the access."""
    write: bool = False
    """Also create, change and delete objects. Otherwise tasks and notebooks can only list and read them."""

    @property
    def role(self) -> str:
        return "roles/storage.objectUser" if self.write else "roles/storage.objectViewer"


Buckets = Annotated[tuple[Bucket, ...], Listed]
BUCKETS_EXAMPLE = [[{"name": "my-bucket", "write": True}]]


def bucket_conflicts(buckets: Sequence[Bucket]) -> Iterator[Conflict]:
    names = [bucket.name for bucket in buckets]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Conflict(("data", "buckets", index, "name"), f"{name} is already in the list; remove one of the two")
