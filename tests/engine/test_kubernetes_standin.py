"""Messages, limits and processes of the stand-in for `kubernetes`; test_kubernetes_plugin.py tests the contract."""

import base64
import json
import os
import re
import signal
import time

import pytest

from daskstack.engine import KUBERNETES_PLUGIN
from tests.engine.api_server import (
    CLAIM,
    DEPLOYMENT,
    JOB,
    SERVICE,
    api_server,
    cluster,
    pulumi_environment,
    release,
)
from tests.engine.support import processes, wait_for

__all__ = ["api_server", "cluster", "pulumi_environment"]  # fixtures
PLUGIN = "resource", "kubernetes", KUBERNETES_PLUGIN
pytestmark = pytest.mark.usefixtures("stand_in")


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
    assert report.count("is a stand-in") == 1
    assert "private-value" in cluster.helm("get", "values", "demo")
    for place in (report, cluster.project.stored(), cluster.called):
        assert not re.search("private[-_]", place)
        assert "insecure-skip-tls-verify" not in place
        assert base64.b64encode(b"text").decode() not in place, "all that the cluster shows of a Secret is secret"
    assert "kubeconfig has mode 600" in cluster.called
    assert "kubeconfig has mode 644" not in cluster.called
    written = set(re.findall(r"^KUBECONFIG=(.*)", cluster.called, re.MULTILINE))
    assert written and not any(map(os.path.exists, written))


def test_a_wait_ends_when_everything_is_ready_or_times_out_with_the_reason(cluster):
    brief = {"pulumi.com/timeoutSeconds": "1"}
    install = release('{"greeting": "hello", "waits": True}', timeout=1)
    report = cluster.fails("".join(text % brief for text in (DEPLOYMENT, SERVICE, CLAIM, JOB)) + install)
    assert "INSTALLATION FAILED" in report
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
    assert "4 updated" in output, "objects that are not ready are updated, not created again"


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
def test_the_stand_in_rejects_unsupported_inputs_by_name(cluster, program, refused):
    report = cluster.fails(program)
    for what in refused:
        assert f"{what}; install the official plugin" in report


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_no_helm_process_remains_after_the_engine_exits(cluster, ending):
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
