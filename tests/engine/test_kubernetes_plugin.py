"""What the plugin `kubernetes` does for a program, seen through the real engine, a real API server and real Helm."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from daskstack import engine
from tests.engine.support import Project, free_port, processes, wait_for


@dataclass
class ApiServer:
    """An API server that lets everybody with its kubeconfig do everything, and has no nodes and no controllers."""

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
        """What keeps the programs' caches out of the home folder."""
        return {"KUBECACHEDIR": f"{self.kubeconfig}-cache", "HELM_CACHE_HOME": f"{self.kubeconfig}-cache"}

    def is_ready(self) -> bool:
        with contextlib.suppress(subprocess.CalledProcessError):
            return self.kubectl("get", "--raw", "/readyz") == "ok"
        return False


@pytest.fixture(scope="module")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    programs, etcd = engine.kubernetes_programs(), shutil.which("etcd")
    assert etcd, "no etcd here: install etcd-server"
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
            programs / "kube",
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
            # What these add only a controller takes away again.
            "--disable-admission-plugins=ServiceAccount,StorageObjectInUseProtection",
            "--service-cluster-ip-range=10.96.0.0/24",
        ],
    }
    server = {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}
    config = {
        "clusters": [{"name": "test", "cluster": server}],
        "users": [{"name": "test", "user": {"token": "token"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    made = ApiServer(folder / "kubeconfig", programs)
    made.kubeconfig.write_text(json.dumps({"apiVersion": "v1", "kind": "Config"} | config))
    with contextlib.ExitStack() as stack:
        for name, command in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        wait_for(f"the API server, whose log is in {folder}", made.is_ready, seconds=60)
        yield made


@dataclass
class Cluster:
    """A project, and a namespace of its own on the API server, where its provider puts everything."""

    project: Project
    api_server: ApiServer
    namespace: str
    folder: Path

    def program(self, text: str, **config: str) -> str:
        """The text as a program, after `make(kind, name, **properties)`."""
        provider = {"kubeconfig": str(self.api_server.kubeconfig), "namespace": self.namespace} | config
        return f"""
cluster = pulumi.ProviderResource("kubernetes", "cluster", {provider})
charts = "{self.folder}"


def make(kind, name, /, **properties):
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

    @property
    def called(self) -> str:
        """The command line and environment of every kubectl and helm that the plugin has run."""
        return (self.folder / "called").read_text()


@pytest.fixture
def pulumi_environment(tmp_path: Path) -> dict[str, str]:
    """A rehearsal's, which has the stand-in."""
    return engine.rehearsal(tmp_path / "state")


@pytest.fixture
def cluster(project: Project, api_server: ApiServer, tmp_path: Path) -> Cluster:
    namespace = f"test-{time.time_ns()}"
    api_server.kubectl("create", "namespace", namespace)
    seen = tmp_path / "seen"
    seen.mkdir()
    for program in ("kubectl", "helm"):
        script = seen / program
        script.write_text(f"""#!/bin/sh
{{
    echo {program} "$@"
    env
    stat -c "kubeconfig has mode %a" "$KUBECONFIG"
}} >>{tmp_path}/called
exec {api_server.programs}/{program} "$@"
""")
        script.chmod(0o755)
    project.environment |= api_server.variables | {"PATH": f"{seen}:{project.environment['PATH']}"}
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text('{apiVersion: v2, name: demo, version: 0.1.0, appVersion: "7"}')
    # A Deployment is never ready where there are no nodes.
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


def release(values: str, name: str = "demo", **more: object) -> str:
    """A program that is one release of the chart; `values` as they stand in a program."""
    arguments = "".join(f", {key}={value!r}" for key, value in more.items())
    return f"""
it = make("helm.sh/v3:Release", "it", name="{name}", chart=f"{{charts}}/chart", values={values}, status=None,
          resourceNames=None{arguments})
pulumi.export("it", [it.status, it.resourceNames])
"""


DEPLOYMENT = """make(
    "apps/v1:Deployment", "deployment", metadata={"name": "it", "annotations": %r},
    spec={
        "replicas": 1,
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "none"}]}},
    },
)
"""
SERVICE = """make(
    "core/v1:Service", "service", metadata={"name": "it", "annotations": %r},
    spec={"selector": {"a": "b"}, "ports": [{"port": 80}]},
)
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


def test_objects_and_releases_are_made_changed_left_alone_and_deleted_even_if_gone(cluster):
    def program(text):
        return f"""
make("core/v1:ConfigMap", "config", data={{"key": "kept"}})
make("core/v1:ServiceAccount", "account", metadata={{"labels": {{"label": "{text}"}}}})
make("helm.sh/v3:Release", "kept", chart=f"{{charts}}/chart", values={{"greeting": secret("kept")}}, skipAwait=True)
{release(repr({"greeting": text, "count": 3}), skipAwait=True, maxHistory=3)}
"""

    output = cluster.up(program("first"))
    assert output[output.index("Diagnostics") :].count("is a stand-in here") == 1
    [config] = re.findall(r"configmap/(config-[0-9a-f]{8})\n", cluster.kubectl("get", "configmap", "-o", "name"))
    [status, names] = cluster.project.outputs()["it"]
    assert names == {"ConfigMap/v1": ["demo"]}
    assert status == {
        "name": "demo",
        "namespace": cluster.namespace,
        "revision": 1,
        "status": "deployed",
        "chart": "demo",
        "version": "0.1.0",
        "appVersion": "7",
    }
    output = cluster.up(program("second"))
    assert "2 updated" in output
    assert "4 unchanged" in output
    revisions = {name.split("-")[0]: found["revision"] for name, found in cluster.releases().items()}
    assert revisions == {"demo": "2", "kept": "1"}
    assert "label=second" in cluster.kubectl("get", "serviceaccounts", "--show-labels")
    found = json.loads(cluster.kubectl("get", "configmap", "demo", "-o", "json"))
    assert found["data"] == {"greeting": "second", "count": "3"}

    cluster.kubectl("delete", "configmap", config)
    cluster.helm("uninstall", "demo")
    assert "6 deleted" in cluster.project.run("destroy", "--yes", "--skip-preview")
    assert cluster.names("configmap,serviceaccount,secret") == []


def test_secrets_stay_out_of_state_command_lines_and_errors(cluster):
    kubeconfig = cluster.api_server.kubeconfig.read_text().replace("}", "}\n")
    text = f"""
make("core/v1:Secret", "secret", stringData={{"key": "text"}})
make("core/v1:ConfigMap", "config", data={{"key": secret("private-data")}})
make("core/v1:Service", "wrong", spec={{"type": secret("private-type"), "ports": [{{"port": 80}}]}})
{release('{"greeting": secret("private-value"), "list": [1, {"key": secret("private-item")}]}', skipAwait=True)}
"""
    program = cluster.program(text).replace(f"'{cluster.api_server.kubeconfig}'", f"secret({kubeconfig!r})")
    report = cluster.project.fails(program)
    assert "[secret]" in report
    assert "private-value" in cluster.helm("get", "values", "demo")
    for place in (report, cluster.project.stored(), cluster.called):
        assert not re.search("private[-_]", place)
        assert "insecure-skip-tls-verify" not in place
        assert base64.b64encode(b"text").decode() not in place, "all that the cluster shows of a Secret is secret"
    assert "kubeconfig has mode 600" in cluster.called
    assert "kubeconfig has mode 644" not in cluster.called
    written = set(re.findall(r"^KUBECONFIG=(.*)", cluster.called, re.MULTILINE))
    assert written and not any(map(os.path.exists, written))


def test_a_preview_passes_unknown_values_and_changes_nothing(cluster):
    output = cluster.project.preview(
        cluster.program(f"""
first = local.Command("first", create="true")
make("core/v1:ConfigMap", "known", data={{"key": "value"}})
make("core/v1:Service", "unknown", metadata={{"name": first.stdout}}, spec={{"type": first.stdout}})
make("core/v1:ConfigMap", "in-a-namespace-to-come", metadata={{"namespace": "to-come"}})
{release('{"greeting": first.stdout}')}
cluster = pulumi.ProviderResource("kubernetes", "to-come", {{"kubeconfig": first.stdout}})
make("core/v1:ConfigMap", "in-a-cluster-to-come", metadata={{"name": "name"}}, data={{"key": "value"}})
make("helm.sh/v3:Release", "in-a-cluster-to-come", chart="chart")
cluster = pulumi.ProviderResource("kubernetes", "gone", {{"kubeconfig": {NOWHERE!r}}})
make("core/v1:ConfigMap", "in-a-cluster-that-does-not-answer")
""")
    )
    assert "12 to create" in output
    assert cluster.names("configmap,secret") == []


NOWHERE = json.dumps(
    {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": "https://127.0.0.1:1"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test"}}],
        "current-context": "test",
    }
)


def test_refresh_shows_what_was_removed_or_changed_by_hand(cluster):
    program = f"""
make("core/v1:ConfigMap", "removed", metadata={{"name": "removed"}})
make("core/v1:Secret", "changed", metadata={{"name": "changed"}}, stringData={{"key": secret("made")}})
{CLAIM % {"pulumi.com/skipAwait": "true"}}
{release('{"greeting": "hello"}', skipAwait=True)}
"""
    cluster.up(program)
    cluster.helm("uninstall", "demo")
    cluster.kubectl("delete", "configmap", "removed")
    cluster.kubectl("patch", "secret", "changed", "-p", '{"stringData": {"key": "by hand"}}')
    output = cluster.project.run("refresh", "--yes", "--skip-preview")
    assert "2 deleted" in output
    assert "1 updated" in output
    output = cluster.up(program)
    assert "2 created" in output
    assert "1 replaced" in output
    assert "3 unchanged" in output


def test_a_failed_install_is_kept_and_mended_by_the_next_up(cluster):
    report = cluster.fails(release('{"greeting": "hello", "waits": True}', timeout=1))
    assert "INSTALLATION FAILED" in report
    assert cluster.releases()["demo"]["status"] == "failed"
    output = cluster.up(release('{"greeting": "hello"}'))
    assert "1 updated" in output
    assert cluster.project.outputs()["it"][0]["status"] == "deployed"


def test_another_name_or_namespace_replaces_and_so_does_what_cannot_change(cluster):
    other = f"{cluster.namespace}-other"
    cluster.api_server.kubectl("create", "namespace", other)

    def program(name, namespace, command):
        job = JOB.replace('"image": "none"', f'"image": "none", "command": ["{command}"]')
        return f"""
make("core/v1:ConfigMap", "named", metadata={{"name": "named-{name}"}})
make("core/v1:ConfigMap", "placed", metadata={{"name": "placed", "namespace": "{namespace}"}})
make("core/v1:Secret", "fixed", immutable=True, stringData={{"key": "{command}"}})
{release('{"greeting": "hello"}', name=name, skipAwait=True)}
{job % {"pulumi.com/skipAwait": "true"}}
"""

    cluster.kubectl("create", "configmap", "named-one")
    config = {"enableSecretMutable": "true", "upsertExistingObjects": "true"}
    cluster.up(program("one", cluster.namespace, "one"), **config)
    cluster.kubectl("delete", "job", "it")  # which takes a controller where its pods are to go first
    output = cluster.up(program("two", other, "two"), **config)
    assert "5 replaced" in output
    assert list(cluster.releases()) == ["two"]
    assert cluster.names("configmap") == ["configmap/named-two", "configmap/two"]
    assert cluster.api_server.kubectl("get", "configmap", "--namespace", other, "-o", "name") == "configmap/placed\n"


def test_an_object_of_others_is_not_taken_over(cluster):
    cluster.kubectl("create", "configmap", "theirs")
    assert "theirs already exists" in cluster.fails('make("core/v1:ConfigMap", "it", metadata={"name": "theirs"})')


def test_a_wait_ends_when_all_is_ready_or_in_time_with_what_is_lacking(cluster):
    brief = {"pulumi.com/timeoutSeconds": "1"}
    report = cluster.fails("".join(text % brief for text in (DEPLOYMENT, SERVICE, CLAIM, JOB)))
    assert "0 of 1 replicas are available" in report
    assert "no ready pod has the labels of spec.selector" in report
    assert "the claim is Pending, expected Bound" in report
    assert "the job is not complete" in report

    cluster.project.write(cluster.program("".join(text % {} for text in (DEPLOYMENT, SERVICE, CLAIM, JOB))))
    moment = "2020-01-01T00:00:00Z"
    done = [{"type": kind, "status": "True"} for kind in ("SuccessCriteriaMet", "Complete")]
    counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    statuses = {
        "deployment": {"observedGeneration": 9} | dict.fromkeys(counts, 1),
        "persistentvolumeclaim": {"phase": "Bound"},
        "job": {"startTime": moment, "completionTime": moment, "succeeded": 1, "conditions": done},
    }
    slices = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "it", "labels": {"kubernetes.io/service-name": "it"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"]}],
    }
    (cluster.folder / "slices").write_text(json.dumps(slices))
    looks = cluster.called.count("get endpointslices")
    with cluster.project.started("up", "--yes", "--skip-preview") as pulumi:
        for resource, status in statuses.items():
            patch = json.dumps({"status": status})
            cluster.kubectl("patch", resource, "it", "--subresource=status", "--type=merge", "-p", patch)
        wait_for("a look for endpoints", lambda: cluster.called.count("get endpointslices") > looks)
        assert pulumi.poll() is None, "the service has no endpoints yet"
        cluster.kubectl("create", "-f", f"{cluster.folder}/slices")
        output = pulumi.stdout.read()
        assert pulumi.wait() == 0, output
    assert "4 updated" in output, "what is there but not ready is mended, not made again"


@pytest.mark.parametrize(
    ("program", "refused"),
    [
        ('make("core/v1:Pod", "it", spec={})', ["kubernetes:core/v1:Pod"]),
        (
            'make("helm.sh/v3:Release", "it", chart="c", verify=True, repositoryOpts={"repo": "r", "password": "p"})',
            [f"{name} of kubernetes:helm.sh/v3:Release" for name in ("verify", "repositoryOpts.password")],
        ),
        ('pulumi.ProviderResource("kubernetes", "it", {"cluster": "other"})', ["cluster of the provider"]),
    ],
    ids=["kind", "argument", "provider"],
)
def test_what_the_stand_in_does_not_do_it_refuses_by_name(cluster, program, refused):
    report = cluster.fails(program)
    for what in refused:
        assert f"{what}; install the official plugin" in report


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_the_engines_end_leaves_no_helm(cluster, ending):
    name = f"demo-{time.time_ns()}"
    cluster.project.write(cluster.program(release('{"greeting": "hello", "waits": True}', name=name)))
    with cluster.project.started("up", "--yes", "--skip-preview") as pulumi:
        try:
            wait_for("a helm that waits", lambda: name in cluster.releases())
            assert processes(name)
            pulumi.send_signal(ending)
            pulumi.wait(60)
            wait_for("its end", lambda: not processes(name))
        finally:
            for pid in processes(name):
                os.kill(pid, signal.SIGKILL)
    assert cluster.releases()[name]["status"] == "failed"
