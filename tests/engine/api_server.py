"""A real API server without nodes and with a single controller, and a project whose provider uses it."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from daskstack import engine
from rehearsal import programs
from rehearsal.environment import environment as rehearsal_environment
from tests.engine.support import Project, free_port, wait_for, with_official


@dataclass
class ApiServer:
    """An API server without nodes; its kubeconfig grants all permissions."""

    kubeconfig: Path
    programs: Path

    def kubectl(self, *arguments: str) -> str:
        return self.run("kubectl", "--kubeconfig", str(self.kubeconfig), *arguments)

    def run(self, program: str, *arguments: str) -> str:
        environment = os.environ | self.variables
        command = [self.programs / program, *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    @property
    def variables(self) -> dict[str, str]:
        """Variables that keep the programs' caches out of the home folder."""
        return {"KUBECACHEDIR": f"{self.kubeconfig}-cache", "HELM_CACHE_HOME": f"{self.kubeconfig}-cache"}

    def is_ready(self) -> bool:
        with contextlib.suppress(subprocess.CalledProcessError):
            return self.kubectl("get", "--raw", "/readyz") == "ok"
        return False


@dataclass
class Cluster:
    """A project with its own namespace on the API server, in which its provider creates everything."""

    project: Project
    api_server: ApiServer
    namespace: str
    folder: Path

    def program(self, text: str, **config: str) -> str:
        """A program: the definition of `make(kind, name, **properties)`, then the text."""
        provider = {"kubeconfig": str(self.api_server.kubeconfig), "namespace": self.namespace} | config
        return f"""
cluster = pulumi.ProviderResource("kubernetes", "cluster", {provider})
charts = "{self.folder}"


def make(kind, name, /, **properties):
    group, _, simple = kind.partition(":")
    if not group.startswith("helm.sh/"):  # Pulumi's package adds these two
        properties = {{"apiVersion": group.removeprefix("core/"), "kind": simple}} | properties
    options = pulumi.ResourceOptions(provider=cluster)
    return pulumi.CustomResource(f"kubernetes:{{kind}}", name, properties, options)


{text}
"""

    def up(self, text: str, **config: str) -> str:
        return self.project.up(self.program(text, **config))

    def fails(self, text: str, **config: str) -> str:
        return self.project.fails(self.program(text, **config))

    def kubectl(self, *arguments: str) -> str:
        return self.api_server.kubectl("--namespace", self.namespace, *arguments)

    def names(self, resource: str) -> list[str]:
        return self.kubectl("get", resource, "-o", "name").split()

    def helm(self, *arguments: str) -> str:
        place = ["--kubeconfig", str(self.api_server.kubeconfig), "--namespace", self.namespace]
        return self.api_server.run("helm", *arguments, *place)

    def releases(self) -> dict[str, dict[str, str]]:
        return {found["name"]: found for found in json.loads(self.helm("list", "--all", "-o", "json"))}


def release(values: str, name: str = "demo", **more: object) -> str:
    """A program with one release of the chart; `values` is program text."""
    arguments = "".join(f", {key}={value!r}" for key, value in more.items())
    return f"""
it = make("helm.sh/v3:Release", "it", name="{name}", chart=f"{{charts}}/chart", values={values}, status=None,
          resourceNames=None{arguments})
pulumi.export("it", [it.status, it.resourceNames])
"""


CLAIM = """make(
    "core/v1:PersistentVolumeClaim", "claim", metadata={"name": "it", "annotations": %r},
    spec={"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1024Mi"}}},
)
"""
JOB = """make(
    "batch/v1:Job", "job", metadata={"name": "it", "annotations": %r},
    spec={"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "none"}]}}},
)
"""


NOWHERE = json.dumps(
    {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": "https://127.0.0.1:1"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test"}}],
        "current-context": "test",
    }
)


@pytest.fixture(scope="module")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    built, etcd = programs.kubernetes_programs(), shutil.which("etcd")
    assert etcd, "etcd is missing: install etcd-server"
    folder = tmp_path_factory.mktemp("api")
    key = folder / "accounts"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-m", "PEM", "-N", "", "-f", key], check=True)
    (folder / "tokens").write_text("token,admin,admin,system:masters\n")
    clients, peers = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    port = free_port()
    commands = {
        "etcd": [
            etcd,
            f"--data-dir={folder}/etcd",
            *(f"--{what}-client-urls={clients}" for what in ("listen", "advertise")),
            *(f"--{what}-peer-urls={peers}" for what in ("listen", "initial-advertise")),
            f"--initial-cluster=default={peers}",
        ],
        "kube-apiserver": [
            built / "kube",
            "kube-apiserver",
            f"--etcd-servers={clients}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={folder}/certificates",
            f"--token-auth-file={folder}/tokens",
            "--authorization-mode=AlwaysAllow",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            # Only a controller would remove what these add.
            "--disable-admission-plugins=ServiceAccount,StorageObjectInUseProtection",
            "--service-cluster-ip-range=10.96.0.0/24",
        ],
        # Pulumi deletes an object after those that it owns, which this controller allows.
        "kube-controller-manager": [
            built / "kube",
            "kube-controller-manager",
            f"--kubeconfig={folder}/kubeconfig",
            "--controllers=garbage-collector-controller",
            "--leader-elect=false",
            "--secure-port=0",
        ],
    }
    server = {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}
    config = {
        "clusters": [{"name": "test", "cluster": server}],
        "users": [{"name": "test", "user": {"token": "token"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    made = ApiServer(folder / "kubeconfig", built)
    made.kubeconfig.write_text(json.dumps({"apiVersion": "v1", "kind": "Config"} | config))
    with contextlib.ExitStack() as stack:
        for name, command in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        wait_for(f"the API server, whose log is in {folder}", made.is_ready, seconds=60)
        yield made


@pytest.fixture
def pulumi_environment(tmp_path: Path) -> dict[str, str]:
    """A rehearsal's environment with the plugin that the caller has installed, otherwise with the one that we built."""
    environ = rehearsal_environment(tmp_path / "state")
    return with_official(environ, tmp_path, "kubernetes", engine.KUBERNETES_PLUGIN)


@pytest.fixture
def cluster(project: Project, api_server: ApiServer, tmp_path: Path) -> Cluster:
    namespace = f"test-{time.time_ns()}"
    api_server.kubectl("create", "namespace", namespace)
    project.environment |= api_server.variables
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text('{apiVersion: v2, name: demo, version: 0.1.0, appVersion: "7"}')
    # Without nodes, a Deployment never becomes ready.
    (chart / "templates" / "all.yaml").write_text("""
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}}
data: {greeting: {{ .Values.greeting | quote }}, count: "{{ .Values.count }}"}
{{- if .Values.waits }}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}}
spec:
  selector: {matchLabels: {a: b}}
  template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: none}]}}
{{- end }}
""")
    return Cluster(project, api_server, namespace, tmp_path)
