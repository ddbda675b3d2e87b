"""Dask in Kubernetes: one Helm release, which accepts connections from its own pods only, and a job that checks it."""

import hashlib
import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, TypedDict

import pulumi_kubernetes as kubernetes
from pulumi import ComponentResource, Input, Output, ResourceOptions, Stash, log
from pulumi_command import local

from components.kubernetes import chart_values
from components.kubernetes.jupyter_password import jupyter_hash, jupyter_secret
from components.kubernetes.tls import tls_identities
from components.machines.client_keys import notice
from daskstack import client_output
from daskstack.engine import PROJECT, digest
from settings import lock
from settings.kubernetes import JUPYTER_LOCK, KubernetesTarget

CHART = Path("charts") / "dask"
UV = PROJECT / "tools" / "uv.txt"
CHECK = PROJECT / "on_the_cluster" / "check.py"
OFFICIAL = "2024.1.1"  # the newest version of the official chart
NAME = "dask"  # of the Helm release; the names of its objects begin with it
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

    It owns the namespace, the Secrets and the Helm release, and in the state the keys and passwords, encrypted. If
    `namespace.create` is false, it uses a namespace that exists and leaves it alone. It never takes over a namespace
    that belongs to another stack. Volumes of notebooks stay if `jupyter.keep` is set.

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

    def __init__(self, name: str, args: DaskOnKubernetesArgs, opts: ResourceOptions | None = None):
        super().__init__("dask:index:DaskOnKubernetes", name, {}, opts)
        settings = args["settings"]
        self.settings = settings
        self.secret_env = args.get("secret_env") or {}
        self.name, self.stack = name, args["stack"]
        self.cluster = Output.json_dumps(args["cluster"])
        self.lock = lock.read(PROJECT / settings.environment.lock, settings.environment.python)
        self.namespace = settings.namespace.name or f"dask-{self.stack}"
        self.address = f"{'tls' if settings.dask.tls else 'tcp'}://{NAME}-scheduler:8786"

        self.secrets: list[kubernetes.core.v1.Secret] = []
        self._make_namespace()
        identities = self._identities()
        jupyter = self._jupyter(args.get("password"))
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
            }
        )

    def _make_namespace(self) -> None:
        """Creates the namespace. Fails first if the cluster does not answer or the namespace is somebody else's."""
        opts = ResourceOptions(parent=self)
        settings = self.settings.namespace
        checked = self._command(
            "check-namespace",
            "check_namespace",
            {"CREATE": "yes" if settings.create else "no", "STACK": self.stack},
            opts,
        )
        deleted = self._command(
            "wait-for-deletion",
            "wait_for_deletion",
            {"RELEASE": NAME},
            ResourceOptions(parent=self, depends_on=[checked]),
            at="delete",
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
        program: str,
        environment: dict[str, Input[str]],
        opts: ResourceOptions,
        at: str = "create",
    ) -> local.Command:
        """Runs a program of on_this_computer when the resource is created, or when it is deleted."""
        return local.Command(
            f"{self.name}-{name}",
            **{at: f".venv/bin/python -m on_this_computer.{program}"},
            environment={"CLUSTER": self.cluster, "NAMESPACE": self.namespace, **environment},
            add_previous_output_in_env=False,
            logging=local.Logging.STDERR,
            opts=opts,
        )

    def _secret(self, name: str, data: Input[Mapping[str, Input[str]]]) -> str:
        """Creates a Secret and returns its name in Kubernetes. The provider encodes `data`."""
        there = f"{NAME}-{name}"
        labels = {"dask-stack": self.stack}
        metadata = kubernetes.meta.v1.ObjectMetaArgs(name=there, namespace=self.namespace, labels=labels)
        opts = ResourceOptions(parent=self, depends_on=self.made)
        self.secrets.append(
            kubernetes.core.v1.Secret(f"{self.name}-{name}", metadata=metadata, string_data=data, opts=opts)
        )
        return there

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

    def _jupyter(self, own: Input[str] | None) -> Output[dict]:
        """`password`, and its hashes: `hash` for our chart, `sha1` for the official one."""

        def hashed(known: dict) -> dict:
            password = known["own"] or known["made"]["password"]
            salt = known["made"]["salt"]
            return {
                "password": password,
                "hash": jupyter_hash(password, salt),
                "sha1": f"sha1:{salt}:{hashlib.sha1(f'{password}{salt}'.encode()).hexdigest()}",
            }

        return Output.secret(Output.all(own=own, made=self._stash("jupyter", jupyter_secret())).apply(hashed))

    def _release(self, identities: Output[dict], jupyter: Output[dict]) -> kubernetes.helm.v3.Release:
        settings = self.settings
        chart: dict[str, Any]
        secret_env = self._secret("env", self.secret_env) if self.secret_env else ""
        # Nobody can guess a short secret from this hash, because TLS keys are part of it too.
        secrets = [settings.credentials.renewal, identities, jupyter, *([self.secret_env] if self.secret_env else [])]
        restart = Output.unsecret(Output.all(*secrets).apply(sha256))
        if settings.chart == "official":
            hashed = jupyter.apply(lambda known: known["sha1"])
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
            skip_await=True,  # the check waits, and says what for
            opts=ResourceOptions(parent=self, depends_on=[*self.made, *self.secrets]),
            **chart,
        )

    def _own_values(
        self, identities: Output[dict], jupyter: Output[dict], secret_env: str, restart: Output[str]
    ) -> dict:
        settings = self.settings
        tls = settings.dask.tls
        secrets = {part: self._secret(f"tls-{part}", identities[part]) if tls else "" for part in PARTS}
        password = ""
        if settings.jupyter.enabled:
            config = jupyter.apply(lambda known: {"jupyter_server_config.json": jupyter_config(known["hash"])})
            password = self._secret("jupyter-password", config)
        names = chart_values.Names(**secrets, password=password, secret_env=secret_env)
        locks = {"environment": self.lock}
        if settings.jupyter.enabled and not settings.image:
            locks["jupyter"] = lock.read(PROJECT / JUPYTER_LOCK, settings.environment.python, dask=False)
        return chart_values.own(settings, names, locks, UV.read_text(), restart)

    def _check(self, release: kubernetes.helm.v3.Release) -> Output[str]:
        settings = self.settings
        expect = {
            "address": self.address,
            "workers": settings.workers.replicas,
            "python": settings.environment.python,
            "packages": self.lock.packages,
        }
        return self._command(
            "check",
            "check_release",
            {
                "RELEASE": NAME,
                "WAIT": str(settings.wait),
                "CHECK": CHECK.read_text(),
                "EXPECT": json.dumps(expect),
                "CONFIRMS": Output.all(release.status.revision, Output.json_dumps(self.values)).apply(sha256),
            },
            ResourceOptions(parent=self, depends_on=[release]),
        ).stdout


def sha256(known: object) -> str:
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def connection_credentials(identity: dict[str, str]) -> dict[str, str]:
    return {"authority": identity["ca.crt"], "certificate": identity["tls.crt"], "key": identity["tls.key"]}


def jupyter_config(hashed: str) -> str:
    """jupyter_server_config.json, which accepts this password and no token."""
    return json.dumps({"PasswordIdentityProvider": {"hashed_password": hashed}, "IdentityProvider": {"token": ""}})
