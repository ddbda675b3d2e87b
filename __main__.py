"""The Pulumi program: reads the stack's settings and creates the cluster for the target that they name."""

import pulumi

import settings
from settings import cost, secret_env
from settings import stack as stack_settings

cluster = stack_settings.load()
secrets = {name: pulumi.Output.secret(value) for name, value in secret_env.load().items()}
stack = pulumi.get_stack()
config = pulumi.Config("dask")

# Import a target's SDK only where it is used: all of them together take seconds.
if isinstance(cluster, settings.KubernetesTarget):
    from components.kubernetes.dask_on_kubernetes import Access, DaskOnKubernetes

    if isinstance(cluster.cluster, settings.GkeSource):
        from components.gke.cluster import GkeCluster

        registry = "pkg.dev/" in (cluster.image or "")
        gke = GkeCluster(
            "gke",
            {"stack": stack, "settings": cluster.cluster, "nodes": cluster.max_worker_nodes, "registry": registry},
        )
        access, provider = Access(kubeconfig=gke.kubeconfig, context=""), gke.provider
        pulumi.export("kubeconfig", gke.kubeconfig)
        pulumi.export("cost", cost.table(cluster.bill()))
    else:
        import pulumi_kubernetes as kubernetes

        from components.kubernetes.kubeconfig_context import kept

        access = Access(kubeconfig=str(cluster.cluster.path), context=kept("kubernetes", cluster.cluster))
        provider = kubernetes.Provider("kubernetes", kubeconfig=access["kubeconfig"], context=access["context"])
    dask = DaskOnKubernetes(
        "dask",
        {
            "stack": stack,
            "cluster": access,
            "settings": cluster,
            "password": config.get_secret("jupyterPassword"),
            "secret_env": secrets,
        },
        pulumi.ResourceOptions(providers=[provider]),
    )
    pulumi.export("jupyterPassword", dask.password)
else:
    from components.machines.dask_on_machines import DaskOnMachines
    from components.machines.sources.existing import ExistingMachines
    from components.machines.sources.local import LocalMachines

    google = None
    if isinstance(cluster.machines, settings.LocalSource):
        machines = LocalMachines("machines", {"stack": stack, "names": list(cluster.machines.machine_names)})
    elif isinstance(cluster.machines, settings.ComputeSource):
        from components.machines.sources.compute import ComputeMachines

        machines = ComputeMachines("machines", {"stack": stack, "settings": cluster})
        google = machines.google
        pulumi.export("cost", cost.table(cluster.bill()))
    else:
        machines = ExistingMachines("machines", {"settings": cluster.machines, "key": config.get_secret("sshKey")})
    dask = DaskOnMachines(
        "dask",
        {
            "stack": stack,
            "hosts": machines.hosts,
            "network": machines.network,
            "settings": cluster,
            "secret_env": secrets,
            "google": google,
        },
    )
    pulumi.export("data", cluster.data.path)
    pulumi.export("admin", dask.admin)

pulumi.export("scheduler", dask.scheduler)
pulumi.export("dashboard", dask.dashboard)
pulumi.export("check", dask.check)
pulumi.export("client", dask.client)
