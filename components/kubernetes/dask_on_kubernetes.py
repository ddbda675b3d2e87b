"""Dask in Kubernetes: one Helm release, which accepts connections from its own pods only, and a job that checks it."""

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pulumi_kubernetes as kubernetes
from pulumi import ComponentResource, Input, Output, Resource, ResourceOptions, Stash, log
from pulumi_command import local

from components.jupyter_password import jupyter_config, jupyter_login
from components.kubernetes import chart_values
from components.kubernetes.tls import people_authority, tls_identities
from daskstack import client_output, kubeconfig
from daskstack.client_keys import notice
from daskstack.engine import PROJECT, digest
from settings import lock
from settings.common import JUPYTER_LOCK, LIBRARY_PORTS
from settings.kubernetes import KubernetesTarget

CHART = Path("charts") / "dask"
UV = PROJECT / "tools" / "uv.txt"
CHECK = PROJECT / "on_the_cluster" / "check.py"
OFFICIAL = "2024.1.1"  # the newest version of the official chart
NAME = "dask"  # of the Helm release; the names of its objects begin with it
BOOT = 210  # seconds for a node of the check's worker to boot, if none runs
PARTS = ("scheduler", "worker", "client")
# The rights that containers in the namespace do not get (Kubernetes' Pod Security Standards).
RESTRICTED = {
    f"pod-security.kubernetes.io/{mode}{key}": value
    for mode in ("enforce", "audit", "warn")
    for key, value in (("", "restricted"), ("-version", "latest"))
}


class Access(TypedDict):
    """The inputs of `client_output.KubernetesAccess`."""

    kubeconfig: Input[str]
    context: Input[str]
    server: NotRequired[Input[str]]
    authority: NotRequired[Input[str]]


class DaskOnKubernetesArgs(TypedDict):
    stack: str
    """The stack's name. It is part of the namespace's name, and the value of all labels `dask-stack`."""
    cluster: Access
    settings: KubernetesTarget
    """All other settings of the stack."""
    password: Input[str] | None
    """The password for Jupyter, secret. None: a random one."""
    secret_env: Mapping[str, Input[str]]
    """Secret environment variables of scheduler, workers and Jupyter; may be empty."""


class DaskOnKubernetes(ComponentResource):
    """A Dask cluster and its notebook server in Kubernetes. `opts` has the provider.

    It owns the namespace, the Secrets, a ConfigMap with wheels and the Helm release, and in the state the keys and
    passwords, encrypted. If `namespace.create` is false, it uses a namespace that exists and leaves it alone. It never
    takes over a namespace that belongs to another stack. Volumes of notebooks stay if `jupyter.keep` is set.

    The release is always named `dask`, because notebooks and `daskstack` look for its Services: two of these components
    in one cluster need different namespaces.
    """

    scheduler: Output[str]
    """The scheduler's address inside the namespace, such as "tls://dask-scheduler:8786"."""
    dashboard: Output[str]
    """The dashboard's URL inside the namespace."""
    password: Output[str]
    """The password for Jupyter, secret."""
    check: Output[str]
    """The table that the check printed."""
    client: Output[dict]
    """A `client_output.KubernetesClient`, secret."""
    authority: Output[dict] | None
    """The authority that signs the certificates of people, secret: `people_authority`. None without TLS."""

    def __init__(self, name: str, args: DaskOnKubernetesArgs, opts: ResourceOptions | None = None):
        super().__init__("dask:index:DaskOnKubernetes", name, {}, opts)
        settings = args["settings"]
        self.settings = settings
        self.secret_env = args.get("secret_env") or {}
        self.name, self.stack = name, args["stack"]
        self.cluster = Output.json_dumps(args["cluster"])
        # If the kubeconfig changes, the check of the namespace runs again, and stops `up` if it is another cluster's.
        access = args["cluster"]
        self.now = (
            Output.all(access["kubeconfig"], access["context"]).apply(
                lambda known: "/".join(kubeconfig.cluster(*known))
            )
            if "server" in access
            else None
        )
        self.lock = lock.read(PROJECT / settings.environment.lock, settings.environment.python)
        self.namespace = namespace(settings, self.stack)
        self.address = f"{'tls' if settings.dask.tls else 'tcp'}://{NAME}-scheduler:8786"

        self.read: list[Resource] = []
        self._make_namespace()
        identities = self._identities()
        self.authority = None
        if settings.chart == "own" and settings.dask.tls:
            # A new release has no list of revoked certificates, so it needs another authority.
            renewal = f"{self.namespace}-{settings.credentials.renewal}"
            self.authority = self._stash(f"people-{renewal}", people_authority(self.stack))
        jupyter = jupyter_login(name, args.get("password"), self)
        release = self._release(identities, jupyter)
        self.check = self._check(release)

        self.scheduler = Output.from_input(self.address)
        web = f"{NAME}-webui" if settings.chart == "own" else f"{NAME}-scheduler"
        self.dashboard = Output.from_input(f"http://{web}:80/status")
        self.password = Output.secret(jupyter["password"])
        self.client = Output.secret(
            Output.all(
                target="kubernetes",
                kubernetes=args["cluster"],
                namespace=self.namespace,
                scheduler=self.scheduler,
                dashboard=self.dashboard,
                jupyter=f"{NAME}-jupyter:80" if settings.jupyter.enabled else None,
                sleeps=settings.limits.idle is not None,
                bounds=settings.workers.bounds,
                grouped=settings.grouped[1],
                tls=identities.apply(lambda known: connection_credentials(known["client"])),
                python=settings.environment.python,
                packages=self.lock.packages,
                lock=settings.environment.lock,
            ).apply(client_output.exported)
        )
        self.register_outputs(
            {
                "scheduler": self.scheduler,
                "dashboard": self.dashboard,
                "password": self.password,
                "check": self.check,
                "client": self.client,
                "authority": self.authority,
            }
        )

    def _make_namespace(self) -> None:
        """Creates the namespace. Fails first if the cluster does not answer or the namespace is somebody else's."""
        opts = ResourceOptions(parent=self)
        settings = self.settings.namespace
        checked = self._command(
            "check-namespace",
            {
                "CREATE": "yes" if settings.create else "no",
                "STACK": self.stack,
                **({} if self.now is None else {"NOW": self.now}),
            },
            opts,
            create="check_namespace",
        )
        deleted = self._command(
            "wait-for-deletion",
            {"RELEASE": NAME},
            ResourceOptions(parent=self, depends_on=[checked]),
            delete="wait_for_deletion",
        )
        self.made = [deleted]
        if settings.create:
            # The official chart's pods run as root.
            labels = {"dask-stack": self.stack, **(RESTRICTED if self.settings.chart == "own" else {})}
            metadata = kubernetes.meta.v1.ObjectMetaArgs(name=self.namespace, labels=labels)
            opts = ResourceOptions(parent=self, depends_on=[deleted])
            self.made = [kubernetes.core.v1.Namespace(f"{self.name}-namespace", metadata=metadata, opts=opts)]

    def _command(
        self,
        name: str,
        environment: dict[str, Input[str]],
        opts: ResourceOptions,
        **programs: str,
    ) -> local.Command:
        """Runs programs of on_this_computer when the resource is created and deleted."""
        return local.Command(
            f"{self.name}-{name}",
            **{at: f".venv/bin/python -m on_this_computer.{program}" for at, program in programs.items()},
            environment={"CLUSTER": self.cluster, "NAMESPACE": self.namespace, **environment},
            add_previous_output_in_env=False,
            logging=local.Logging.STDERR,
            opts=opts,
        )

    def _secret(self, name: str, data: Input[Mapping[str, Input[str]]]) -> str:
        """Creates a Secret and returns its name in Kubernetes. The provider encodes `data`."""
        there = f"{NAME}-{name}"
        self._add(kubernetes.core.v1.Secret, name, there, string_data=data)
        return there

    def _wheels(self) -> str:
        """Creates a ConfigMap with the wheels of the lock, if it has any, and returns its name in Kubernetes.

        They are not among the chart's values, because Helm keeps these twice in one Secret, which is limited to 1 MiB.
        """
        if not self.lock.wheels or self.settings.image:
            return ""
        content = chart_values.archive(self.lock.wheels)
        # While pods are replaced, both the old and the new wheels exist.
        there = f"{NAME}-wheels-{hashlib.sha256(content).hexdigest()[:8]}"
        data = {"wheels.zip": base64.b64encode(content).decode()}
        self._add(kubernetes.core.v1.ConfigMap, "wheels", there, binary_data=data)
        return there

    def _add(self, kind: type, name: str, there: str, **contents: Any) -> None:
        """Creates an object, named `there` in Kubernetes, that the release reads."""
        labels = {"dask-stack": self.stack}
        metadata = kubernetes.meta.v1.ObjectMetaArgs(name=there, namespace=self.namespace, labels=labels)
        opts = ResourceOptions(parent=self, depends_on=self.made)
        self.read.append(kind(f"{self.name}-{name}", metadata=metadata, opts=opts, **contents))

    def _stash(self, name: str, value: dict) -> Output[dict]:
        """Keeps the value of the first `up` in the state, secret."""
        opts = ResourceOptions(parent=self, ignore_changes=["input"])
        return Stash(f"{self.name}-{name}", input=Output.secret(value), opts=opts).output

    def _identities(self) -> Output[dict]:
        """TLS credentials of scheduler, workers and clients. A new `credentials.renewal` replaces all of them."""
        made = self._stash(f"tls-{self.settings.credentials.renewal}", tls_identities(self.stack, list(PARTS)))

        def warn(expires: str) -> None:
            if text := notice("the cluster", expires, date.today()):
                log.warn(text, self)

        Output.unsecret(made["expires"]).apply(warn)
        return made

    def _release(self, identities: Output[dict], jupyter: Output[dict]) -> kubernetes.helm.v3.Release:
        settings = self.settings
        chart: dict[str, Any]
        secret_env = self._secret("env", self.secret_env) if self.secret_env else ""
        # Nobody can guess a short secret from this hash, because TLS keys are part of it too.
        secrets = [settings.credentials.renewal, identities, jupyter, *([self.secret_env] if self.secret_env else [])]
        secrets += [] if self.authority is None else [self.authority]
        restart = Output.unsecret(Output.all(*secrets).apply(sha256))
        if settings.chart == "official":
            hashed = jupyter.apply(lambda known: official_hash(known["password"], known["salt"]))
            secret = chart_values.SecretEnv(secret_env, list(self.secret_env), restart)
            self.values = chart_values.official(settings, self.lock, Output.secret(hashed), secret)
            chart = {"chart": "dask", "version": OFFICIAL, "repository_opts": {"repo": "https://helm.dask.org"}}
        else:
            self.values = self._own_values(identities, jupyter, secret_env, restart)
            # Without this, Pulumi would not see that the chart's files have changed.
            files = sorted(path for path in (PROJECT / CHART).rglob("*") if path.is_file())
            chart = {"chart": f"./{CHART}", "description": f"{CHART} {digest(*files)}"}
        return kubernetes.helm.v3.Release(
            f"{self.name}-release",
            name=NAME,
            namespace=self.namespace,
            values=self.values,
            allow_null_values=True,  # they remove defaults, as in Helm
            skip_await=True,  # the check waits, and says what for
            opts=ResourceOptions(parent=self, depends_on=[*self.made, *self.read]),
            **chart,
        )

    def _own_values(
        self, identities: Output[dict], jupyter: Output[dict], secret_env: str, restart: Output[str]
    ) -> dict:
        settings = self.settings
        secrets = dict.fromkeys(PARTS, "")
        if self.authority is not None:
            trusts = {"scheduler": Output.all(identities["scheduler"], self.authority).apply(with_people)}
            secrets = {part: self._secret(f"tls-{part}", trusts.get(part, identities[part])) for part in PARTS}
        password = ""
        if settings.jupyter.enabled:
            config = jupyter.apply(lambda known: {"jupyter_server_config.json": jupyter_config(known["hash"])})
            password = self._secret("jupyter-password", config)
        names = chart_values.Names(**secrets, password=password, secret_env=secret_env, wheels=self._wheels())
        locks = {"environment": self.lock}
        if settings.jupyter.enabled and not settings.image:
            locks["jupyter"] = lock.read(PROJECT / JUPYTER_LOCK, settings.environment.python, dask=False)
        return chart_values.own(settings, names, locks, UV.read_text(), restart)

    def _check(self, release: kubernetes.helm.v3.Release) -> Output[str]:
        settings = self.settings
        libraries, bounds = settings.dask.ports.libraries, settings.workers.bounds
        replicas, scales = settings.workers.replicas, settings.workers.scales
        expect = {
            "address": self.address,
            "workers": settings.replicas,
            **({"bounds": bounds or [replicas] * 2, "groups": settings.grouped, "boot": BOOT} if scales else {}),
            **({"sleeps": True} if settings.limits.idle else {}),
            **({"least": settings.workers.at_least} if settings.workers.at_least else {}),
            "python": settings.environment.python,
            "packages": self.lock.packages,
            "imports": self.lock.inputs,
            "libraries": "" if libraries == "none" else libraries or LIBRARY_PORTS,
            **({"data": settings.data.path} if settings.data.size else {}),
            "hosts": "pods",
        }
        return self._command(
            "check",
            {
                "RELEASE": NAME,
                "WAIT": str(settings.wait),
                **({"LEAST": str(settings.workers.at_least)} if settings.workers.at_least else {}),
                "CHECK": CHECK.read_text(),
                "EXPECT": json.dumps(expect),
                "NOTEBOOK": json.dumps({"imports": self.lock.inputs, "where": "the notebook server"})
                if self.lock.inputs
                else "",
                "CONFIRMS": Output.all(release.status.revision, Output.json_dumps(self.values)).apply(sha256),
            },
            ResourceOptions(parent=self, depends_on=[release]),
            create="check_release",
            # Deleted before everything else: `destroy` stops here if the context leads to another cluster.
            **({} if self.now is None else {"delete": "check_cluster"}),
        ).stdout


def namespace(settings: KubernetesTarget, stack: str) -> str:
    return settings.namespace.name or f"dask-{stack}"


def service_accounts(settings: KubernetesTarget) -> list[str]:
    """The names of the pods' ServiceAccounts with our own chart."""
    scheduler = f"{NAME}-scheduler" if settings.limits.idle or settings.workers.scales else NAME
    workers = [settings.workers, *(group.workers(settings.workers) for group in settings.workers.groups)]
    pods = [*workers, *([settings.jupyter] if settings.jupyter.enabled else [])]
    return sorted({settings.scheduler.service_account or scheduler, *(pod.service_account or NAME for pod in pods)})


def official_hash(password: str, salt: str) -> str:
    """The password's hash in the format of the official chart."""
    return f"sha1:{salt}:{hashlib.sha1(f'{password}{salt}'.encode()).hexdigest()}"


def sha256(known: object) -> str:
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def with_people(known: list[dict[str, str]]) -> dict[str, str]:
    """The scheduler's identity, with which it also accepts people; workers do not."""
    identity, authority = known
    return identity | {"ca.crt": identity["ca.crt"] + authority["certificate"]}


def connection_credentials(identity: dict[str, str]) -> dict[str, str]:
    return {"authority": identity["ca.crt"], "certificate": identity["tls.crt"], "key": identity["tls.key"]}
