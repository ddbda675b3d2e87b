"""A Dask cluster: what the stack says, built by the component for its target."""

import pulumi

import settings
from components.vms import DaskVms
from components.vms.machines.existing import ExistingMachines
from components.vms.machines.local import LocalMachines

cluster = settings.load()
stack = pulumi.get_stack()

if isinstance(cluster.machines, settings.Local):
    machines = LocalMachines("machines", {"stack": stack, "names": list(cluster.machines.machine_names)})
else:
    key = pulumi.Config("dask").get_secret("sshKey")
    machines = ExistingMachines("machines", {"settings": cluster.machines, "key": key})
dask = DaskVms(stack, {"hosts": machines.hosts, "network": machines.network, "settings": cluster})

pulumi.export("scheduler", dask.scheduler)
pulumi.export("dashboard", dask.dashboard)
pulumi.export("data", cluster.data.path)
pulumi.export("check", dask.check)
pulumi.export("client", dask.client)
