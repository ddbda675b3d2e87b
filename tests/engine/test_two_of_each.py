"""One program can contain several components of each kind without name collisions."""

import re
from pathlib import Path

from daskstack.client_keys import ssh_identity
from daskstack.engine import PROJECT
from rehearsal.environment import environment as rehearsal_environment
from settings import HOST_KEY
from tests.engine.support import Project

PROGRAM = """
from pathlib import Path

import pulumi_kubernetes as kubernetes

import settings
from components.gke.cluster import GkeCluster
from components.kubernetes.dask_on_kubernetes import DaskOnKubernetes
from components.machines.dask_on_machines import DaskOnMachines
from components.machines.sources.compute import ComputeMachines
from components.machines.sources.existing import ExistingMachines
from components.machines.sources.local import LocalMachines

HOSTS = [{"name": f"host-{number}", "address": f"10.1.0.{number}", "hostKey": "%(host_key)s"} for number in (5, 6)]
CLOUD = {"project": "my-project", "zone": "us-central1-a", "roles": ["roles/storage.objectViewer"]}
OUTSIDE = {"firewall": {"ssh": ["203.0.113.7/32"]}}


def parse(target, **said):
    return settings.parse({"target": target, **said}, Path("%(project)s"))


for name in ("one", "two"):
    local = parse("machines", machines={"source": "local", "workers": 1})
    names = list(local.machines.machine_names)
    LocalMachines(f"{name}-local", {"stack": name, "names": names})
    compute = parse("machines", machines={"source": "compute"} | CLOUD, **OUTSIDE)
    ComputeMachines(f"{name}-compute", {"stack": name, "settings": compute})
    existing = parse("machines", machines={"source": "existing", "hosts": HOSTS})
    key = secret(%(key)r)
    machines = ExistingMachines(f"{name}-existing", {"settings": existing.machines, "key": key})
    arguments = {"stack": name, "hosts": machines.hosts, "network": machines.network, "settings": existing}
    DaskOnMachines(f"{name}-machines", arguments)

    source = {"source": "gke", "project": "my-project", "location": "us-central1-a", "admins": ["me@example.com"]}
    gke = parse("kubernetes", cluster=source)
    own = {"stack": name, "settings": gke.cluster, "workers": gke.worker_nodes}
    own |= {"registry": False, "data": False, "buckets": ()}
    cluster = GkeCluster(f"{name}-gke", own)
    access = {"kubeconfig": cluster.kubeconfig, "context": ""}
    dask = {"stack": name, "cluster": access, "settings": gke, "password": None, "secret_env": {"TOKEN": key}}
    DaskOnKubernetes(f"{name}-kubernetes", dask, pulumi.ResourceOptions(providers=[cluster.provider]))
"""


def test_two_components_of_each_kind_fit_in_one_program(tmp_path: Path) -> None:
    environment = rehearsal_environment(tmp_path / "state") | {
        "DASKSTACK_REHEARSAL": str(tmp_path),
        "GOOGLE_OAUTH_ACCESS_TOKEN": "rehearsal",
        "PULUMI_STACK": "test",
        "PYTHONPATH": str(PROJECT),
    }
    project = Project(tmp_path / "program", environment)
    project.folder.mkdir()
    project.folder.joinpath("charts").symlink_to(PROJECT / "charts")
    project.write("")
    project.run("stack", "init", "test", "--no-select")
    program = PROGRAM % {"host_key": HOST_KEY, "key": ssh_identity()["private"], "project": PROJECT}

    printed = project.preview(program)
    components = re.findall(r"dask:index:(\w+) +(?:one|two)-\S+ create", printed)
    kinds = {"LocalMachines", "ComputeMachines", "ExistingMachines", "DaskOnMachines", "GkeCluster", "DaskOnKubernetes"}
    assert {kind: components.count(kind) for kind in kinds} == dict.fromkeys(kinds, 2), printed
