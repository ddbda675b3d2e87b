"""All that the pretended cloud knows, by token; a new type is one entry here, and its name in derive.py."""

from gcp.accounts import ACCOUNTS
from gcp.clusters import CLUSTERS
from gcp.machines import MACHINES
from gcp.networks import NETWORKS

KINDS = ACCOUNTS | NETWORKS | MACHINES | CLUSTERS
