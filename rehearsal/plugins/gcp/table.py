"""All resource types of the simulated cloud by token. A new type also needs its name in derive.py."""

from dataclasses import replace

from gcp.accounts import ACCOUNTS
from gcp.clusters import CLUSTERS
from gcp.machines import MACHINES
from gcp.networks import NETWORKS

KINDS = {token: replace(kind, token=token) for token, kind in (ACCOUNTS | NETWORKS | MACHINES | CLUSTERS).items()}
