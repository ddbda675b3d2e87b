"""The Pulumi program: reads the stack's settings and creates the cluster for the target that they name."""

import asyncio
import gc
from datetime import date

import pulumi

import settings
from settings import cost, secret_env
from settings import stack as stack_settings

# Both together take most of a program's time with hundreds of machines.
gc.disable()  # everything lives until the program ends, so there is nothing to collect
# The SDK sends four messages about each resource, and waits for the engine each time.
pulumi.log.debug = lambda *_, **__: None  # ty: ignore[invalid-assignment]

cluster = stack_settings.load()
secrets = {name: pulumi.Output.secret(value) for name, value in secret_env.load().items()}
stack = pulumi.get_stack()
config = pulumi.Config("dask")


def export_cost(bill: list[cost.Item]) -> None:
    pulumi.export("cost", cost.table(bill))
    if text := cost.aged(date.today()):
        pulumi.log.warn(text)


# Import a target's SDK only where it is used: all of them together take seconds.
if isinstance(cluster, settings.KubernetesTarget):
    from components.kubernetes.dask_on_kubernetes import Access, DaskOnKubernetes, namespace, service_accounts

    if isinstance(cluster.cluster, settings.GkeSource):
        from components.gke.cluster import GkeCluster

        registry = "pkg.dev/" in (cluster.image or "")
        gke = GkeCluster(
            "gke",
            {
                "stack": stack,
                "settings": cluster.cluster,
                "workers": cluster.worker_nodes,
                "registry": registry,
                "data": cluster.data.size is not None,
                "buckets": cluster.data.buckets,
                "namespace": namespace(cluster, stack),
                "accounts": service_accounts(cluster),
            },
        )
        access, provider = Access(kubeconfig=gke.kubeconfig, context=""), gke.provider
        pulumi.export("kubeconfig", gke.kubeconfig)
        export_cost(cluster.bill())
    else:
        import pulumi_kubernetes as kubernetes

        from components.kubernetes.kubeconfig_context import kept

        access = kept("kubernetes", cluster.cluster)
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
    if cluster.data.size:
        pulumi.export("data", cluster.data.path)
    if dask.authority is not None:
        pulumi.export("authority", dask.authority)
else:
    from components.machines.dask_on_machines import DaskOnMachines
    from components.machines.sources.existing import ExistingMachines
    from components.machines.sources.local import LocalMachines

    google = None
    if isinstance(cluster.machines, settings.LocalSource):
        machines = LocalMachines(
            "machines",
            {
                "stack": stack,
                "names": list(cluster.machine_names),
                "release": settings.LOCAL_RELEASES[cluster.environment.python],
            },
        )
    elif isinstance(cluster.machines, settings.ComputeSource):
        from components.machines.sources.compute import ComputeMachines

        machines = ComputeMachines("machines", {"stack": stack, "settings": cluster})
        google = machines.google
        export_cost(cluster.bill())
    else:
        machines = ExistingMachines(
            "machines",
            {
                "settings": cluster.machines,
                "missing": cluster.workers.missing,
                "key": config.get_secret("sshKey"),
            },
        )
    dask = DaskOnMachines(
        "dask",
        {
            "stack": stack,
            "hosts": machines.hosts,
            "network": machines.network,
            "settings": cluster,
            "secret_env": secrets,
            "password": config.get_secret("jupyterPassword"),
            "google": google,
        },
    )
    pulumi.export("data", cluster.data.path)
    pulumi.export("admin", dask.admin)
    if cluster.workers.missing:
        pulumi.export("missing", list(cluster.workers.missing))

pulumi.export("scheduler", dask.scheduler)
pulumi.export("dashboard", dask.dashboard)
pulumi.export("check", dask.check)
pulumi.export("jupyterPassword", dask.password)
pulumi.export("client", dask.client)


async def start_requests() -> None:
    """Starts the requests for all resources, so that the SDK waits for one after the other.

    Otherwise it waits for all of them again whenever one has ended, which takes long with hundreds of machines.
    """
    await asyncio.sleep(0)


pulumi.run(start_requests)
