"""What we expect from Pulumi's plugin `kubernetes`, with the real engine, API server and Helm.

The plugin is the official one, 4.34, if it is installed. Otherwise it is the one that we build, about 4.25. Three
tests say what differs.
"""

import base64
import json
import os
import re
import subprocess
import sys

import pytest

from components.gke.node_pools import compute_class
from daskstack import engine, kubeconfig
from tests.engine.api_server import CLAIM, JOB, NOWHERE, api_server, cluster, pulumi_environment, release
from tests.engine.support import kubernetes_is_built

__all__ = ["api_server", "cluster", "pulumi_environment"]  # fixtures

NO_WAIT = {"pulumi.com/skipAwait": "true"}  # for a controller that this API server does not have


@pytest.fixture
def built(pulumi_environment) -> bool:
    return kubernetes_is_built(pulumi_environment)


def test_secrets_stay_out_of_the_state(cluster):
    content = cluster.api_server.kubeconfig.read_text().replace("}", "}\n")
    text = f"""
make("core/v1:Secret", "secret", stringData={{"key": "text"}})
make("core/v1:ConfigMap", "config", data={{"key": secret("private-data")}})
{release('{"greeting": secret("private-value"), "list": [1, {"key": secret("private-item")}]}', skipAwait=True)}
"""
    cluster.project.up(cluster.program(text).replace(f"'{cluster.api_server.kubeconfig}'", f"secret({content!r})"))
    assert "private-value" in cluster.helm("get", "values", "demo")
    assert not re.search("private[-_]", cluster.project.stored())
    assert "insecure-skip-tls-verify" not in cluster.project.stored()
    assert base64.b64encode(b"text").decode() not in cluster.project.stored()


def test_a_compute_class_can_be_created_and_changed_and_has_only_fields_that_gke_knows(cluster):
    definition = engine.PROJECT / "rehearsal" / "plugins" / "gcp" / "compute_class.yaml"
    cluster.kubectl("apply", "--filename", str(definition))
    cluster.kubectl("wait", "--for=condition=Established", "crd/computeclasses.cloud.google.com", "--timeout=30s")

    def program(**spec):
        return f"""
make("cloud.google.com/v1:ComputeClass", "class", apiVersion="cloud.google.com/v1", kind="ComputeClass",
    metadata={{"name": "{cluster.namespace}"}}, spec={compute_class(["first", "second"]) | spec})
"""

    cluster.up(program())
    assert "1 updated" in cluster.up(program(priorities=[{"nodepools": ["second"]}, {"nodepools": ["first"]}]))
    found = cluster.kubectl("get", "computeclass", cluster.namespace, "--output=jsonpath={.spec.priorities[*]}")
    assert found == '{"nodepools":["second"]} {"nodepools":["first"]}'
    for wrong in ({"activeMigrations": {}}, {"priorities": [{"nodePools": ["first"]}]}):
        assert "field not declared in schema" in cluster.fails(program(**wrong))
    assert "whenUnsatisfiable" in cluster.fails(program(whenUnsatisfiable="Stop"))


def test_objects_and_releases_can_be_created_changed_and_deleted_even_if_missing(cluster, built):
    def program(text):
        return f"""
make("core/v1:ConfigMap", "config", data={{"key": "kept"}})
make("core/v1:ServiceAccount", "account", metadata={{"labels": {{"label": "{text}"}}, "annotations": {NO_WAIT}}})
make("helm.sh/v3:Release", "kept", chart=f"{{charts}}/chart", values={{"greeting": secret("kept")}}, skipAwait=True)
{release(repr({"greeting": text, "count": 3}), skipAwait=True, maxHistory=3)}
"""

    cluster.up(program("first"))
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
    destroy = ("destroy", "--yes", "--skip-preview")
    if built:  # 4.25 requires a refresh after someone else has uninstalled a release
        assert "release: not found" in cluster.project.run(*destroy, succeeds=False)
        cluster.project.run(*destroy, "--refresh")
    else:
        assert "6 deleted" in cluster.project.run(*destroy)
    assert cluster.names("configmap,serviceaccount,secret") == []


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


def test_refresh_detects_manual_deletions_and_changes(cluster):
    program = f"""
make("core/v1:ConfigMap", "removed", metadata={{"name": "removed"}})
make("core/v1:Secret", "changed", metadata={{"name": "changed"}}, stringData={{"key": secret("made")}})
{CLAIM % NO_WAIT}
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


def test_the_next_up_repairs_a_failed_install(cluster):
    cluster.fails(release('{"greeting": "hello", "waits": True}', timeout=1))
    assert cluster.releases()["demo"]["status"] == "failed"
    output = cluster.up(release('{"greeting": "hello"}'))
    assert "1 updated" in output
    assert cluster.project.outputs()["it"][0]["status"] == "deployed"


def test_a_changed_name_namespace_or_immutable_field_causes_a_replacement(cluster):
    other = f"{cluster.namespace}-other"
    cluster.api_server.kubectl("create", "namespace", other)

    def program(name, namespace, command):
        job = JOB.replace('"image": "none"', f'"image": "none", "command": ["{command}"]')
        return f"""
make("core/v1:ConfigMap", "named", metadata={{"name": "named-{name}"}})
make("core/v1:ConfigMap", "placed", metadata={{"name": "placed", "namespace": "{namespace}"}})
make("core/v1:Secret", "fixed", immutable=True, stringData={{"key": "{command}"}})
{release('{"greeting": "hello"}', name=name, skipAwait=True)}
{job % NO_WAIT}
"""

    cluster.kubectl("create", "configmap", "named-one")
    config = {"enableSecretMutable": "true", "upsertExistingObjects": "true"}
    cluster.up(program("one", cluster.namespace, "one"), **config)
    cluster.kubectl("delete", "job", "it")  # which requires a controller if its pods are to be deleted first
    output = cluster.up(program("two", other, "two"), **config)
    assert "5 replaced" in output
    assert list(cluster.releases()) == ["two"]
    assert cluster.names("configmap") == ["configmap/named-two", "configmap/two"]
    assert cluster.api_server.kubectl("get", "configmap", "--namespace", other, "-o", "name") == "configmap/placed\n"


def test_an_existing_foreign_object_is_adopted_by_4_25_and_rejected_by_4_34(cluster, built):
    cluster.kubectl("create", "configmap", "theirs")
    program = 'make("core/v1:ConfigMap", "it", metadata={"name": "theirs"})'
    if built:
        assert "3 created" in cluster.up(program)
    else:
        assert "already exists" in cluster.fails(program)


def test_null_in_the_values_of_a_release_is_lost_in_4_25_and_kept_in_4_34(cluster, built):
    cluster.up(release('{"greeting": None, "count": 3}', skipAwait=True, allowNullValues=True))
    values = json.loads(cluster.helm("get", "values", "demo", "--output", "json"))
    assert values == ({"count": 3} if built else {"greeting": None, "count": 3})


def test_a_credential_plugin_in_one_of_several_kubeconfigs_logs_in(cluster, tmp_path, monkeypatch):
    """A company's kubeconfig often has no token, but a program that gets one, such as aws or kubelogin."""
    config = json.loads(cluster.api_server.kubeconfig.read_text())
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "token"}}
    (tmp_path / "answer").write_text(json.dumps(answer))
    program = {"apiVersion": answer["apiVersion"], "command": "cat", "args": [f"{tmp_path}/answer"]}
    config["users"][0]["user"] = {"exec": program | {"interactiveMode": "Never"}}
    first, second = tmp_path / "first", tmp_path / "second"
    second.write_text(json.dumps(config))
    nowhere = json.loads(NOWHERE.replace("test", "nowhere"))
    first.write_text(json.dumps(nowhere | {"current-context": "test"}))
    monkeypatch.setenv("KUBECONFIG", f"{first}:{second}")
    assert kubeconfig.locate(kubeconfig.files(None)) == (second, "test")
    cluster.up('make("core/v1:ConfigMap", "config")', kubeconfig=str(second), context="test")
    assert len(re.findall("configmap/config-", cluster.kubectl("get", "configmap", "-o", "name"))) == 1

    access = {"kubeconfig": str(second), "context": "test", **kubeconfig.cluster(str(second), "test")._asdict()}
    environment = (
        os.environ
        | cluster.api_server.variables
        | {
            "CLUSTER": json.dumps(access),
            "NAMESPACE": cluster.namespace,
            "CREATE": "no",
            "STACK": "dev",
            "PATH": f"{cluster.api_server.programs}{os.pathsep}{os.environ['PATH']}",
        }
    )

    def check(program):
        command = [sys.executable, "-m", f"on_this_computer.{program}"]
        return subprocess.run(command, env=environment, cwd=engine.PROJECT, capture_output=True, text=True)

    assert check("check_namespace").stdout.startswith("v1.")
    assert check("check_cluster").returncode == 0
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    second.write_text(json.dumps(config))
    for program in ("check_namespace", "check_cluster"):
        assert f"context test of {second} leads to https://127.0.0.1:1 now, but this" in check(program).stderr
