"""A stack with `target: gke` on a real Kubernetes: the program, the engine, helm, pods, and a notebook's way in."""

import copy
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from distributed.security import Security

from daskstack import connection, remote
from daskstack.engine import PROJECT, engine
from daskstack.ways import wake, way_to
from rehearsal.kubernetes import network
from tests.kubernetes.support import Cluster
from tools.rehearse import KEY, Rehearsal

SMALL = {"cpu": 0.2, "memory": "1 GiB"}
SETTINGS = {
    "target": "gke",
    "cluster": {"source": "existing"},
    "workers": {"replicas": 2, **SMALL},
    "scheduler": SMALL,
    "jupyter": {**SMALL, "storage": "1Gi"},
    "wait": 240,
}
STACK = "kubernetes"  # one that has a stack file, which is not changed
SPACE = f"dask-{STACK}"


class Stack(Rehearsal):
    """A stack on the session's cluster."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        super().__init__(STACK, folder)
        self.cluster = cluster
        self.change({})

    def change(self, settings: dict[str, Any], **config: str) -> None:
        """Settings of the next command; a key's value replaces that of SETTINGS."""
        whole = copy.deepcopy(SETTINGS) | settings
        self.set({"config": {KEY: whole, **config}}, str(self.cluster.kubeconfig), "rehearsal")

    def run(self, *words: str, succeeds: bool = True) -> str:
        """What `pulumi` printed."""
        try:
            done = self.pulumi(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=560)
        except subprocess.CalledProcessError as error:
            assert not succeeds, error.stdout
            return error.stdout
        assert succeeds, done.stdout
        return done.stdout

    def up(self, succeeds: bool = True) -> str:
        self.run("stack", "select", "--create")
        return self.run("up", "--yes", "--skip-preview", succeeds=succeeds)

    def outputs(self) -> dict[str, Any]:
        return json.loads(self.run("stack", "output", "--json", "--show-secrets"))

    def connect(self) -> connection.Client:
        return connection.Client(self.outputs()["client"])

    def kubectl(self, *words: str) -> str:
        return self.cluster.kubectl("--namespace", SPACE, *words)


@pytest.fixture(scope="module")
def stack(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{kubernetes.programs}{os.pathsep}{os.environ['PATH']}")
        yield Stack(tmp_path_factory.mktemp("trial"), kubernetes)


@pytest.fixture(scope="module")
def built(stack: Stack) -> Stack:
    stack.printed = stack.up()
    return stack


def test_up_ends_with_a_table_that_proves_the_cluster(built: Stack) -> None:
    names = [line.split()[0] for line in built.outputs()["check"].splitlines()]
    assert names == ["workers", "environment", "tls", "job"]


def test_a_second_up_changes_nothing(built: Stack) -> None:
    assert re.search(r"Resources:\n +\d+ unchanged\n", built.up())


def test_a_notebook_on_this_computer_reaches_the_cluster_and_its_dashboard(built: Stack) -> None:
    with built.connect() as client:
        assert client.submit(sum, range(100)).result(timeout=60) == 4950
        assert urllib.request.urlopen(client.dashboard_link, timeout=30).status == 200


def test_status_and_logs_are_asked_of_the_pods(built: Stack) -> None:
    outputs = built.outputs()
    assert [worker.status for worker in remote.status(outputs).workers] == ["running", "running"]
    logs = remote.pod_logs(outputs["client"], "worker")
    assert "[pod/dask-worker-" in logs
    assert "dask-scheduler-" not in logs


def test_who_has_no_certificate_gets_no_answer(built: Stack) -> None:
    facts = built.outputs()["client"]
    with way_to(facts, ["dask-scheduler:8786"]) as way:
        [port] = way.ports
        for address, security in (f"tcp://127.0.0.1:{port}", None), (f"tls://127.0.0.1:{port}", Security()):
            with pytest.raises((OSError, TypeError)):
                Client(address, security=security, timeout=5)
    assert "PRIVATE KEY" not in built.kubectl("get", "configmaps,pods,deployments", "--output", "json")


def test_no_secret_is_outside_of_secrets_and_encrypted_state(built: Stack) -> None:
    outputs = built.outputs()
    seen = built.run("stack", "export") + built.kubectl("get", "configmaps,pods", "--output", "json") + built.printed
    for secret in (outputs["jupyterPassword"], *outputs["client"]["tls"]["key"].splitlines()[1:-1]):
        assert secret not in seen


def log_in(port: int, password: str) -> bool:
    """Whether a notebook server's log-in form takes the password."""
    base = f"http://127.0.0.1:{port}"
    jar = CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    opener.open(f"{base}/login", timeout=30).read()
    xsrf = next(cookie.value for cookie in jar if cookie.name == "_xsrf")
    form = urllib.parse.urlencode({"password": password, "_xsrf": xsrf}).encode()
    try:
        opener.open(f"{base}/login", form, timeout=30)
        return opener.open(f"{base}/api/contents", timeout=30).status == 200
    except urllib.error.HTTPError as error:
        assert error.code in (401, 403)
        return False


def test_the_notebook_server_takes_its_password_and_no_other(built: Stack) -> None:
    outputs = built.outputs()
    with way_to(outputs["client"], [outputs["client"]["jupyter"]]) as way:
        [port] = way.ports
        assert log_in(port, outputs["jupyterPassword"])
        assert not log_in(port, "dask")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/contents", timeout=30)


def test_a_notebook_has_the_workers_environment_and_finds_the_scheduler_by_itself(built: Stack) -> None:
    program = "from distributed import Client\nwith Client(timeout=30) as c: print(c.submit(sum, range(10)).result(60))"
    assert built.kubectl("exec", "deploy/dask-jupyter", "--", "python", "-c", program).split()[-1] == "45"


def test_the_client_comes_back_when_the_scheduler_moves_to_another_pod(built: Stack) -> None:
    with built.connect() as client:
        built.kubectl("delete", "pod", "--selector", "component=scheduler", "--wait=true")
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                assert client.submit(sum, range(10), pure=False).result(timeout=10) == 45
                break
            except Exception:  # whatever Dask raises while it is away
                time.sleep(1)
        else:
            raise AssertionError("no answer within 120 s")


def test_changes_of_workers_and_packages_lose_no_running_work_and_are_seen_in_the_preview(built: Stack) -> None:
    built.change({"workers": {"replicas": 1, **SMALL}, "packages": {"pip": ["json5"]}})
    assert "~values" in built.run("preview")

    def slow(number: int) -> int:  # inside, so that it travels whole: the cluster does not have this file
        time.sleep(0.2)
        return number

    with built.connect() as client, ThreadPoolExecutor() as pool:
        futures = client.map(slow, range(300), pure=False)
        total = client.submit(sum, futures)
        futures[0].result(timeout=60)
        up = pool.submit(built.up)
        assert total.result(timeout=300) == sum(range(300))
        up.result()
    with built.connect() as client:
        assert len(client.sync(client.scheduler.identity, n_workers=-1)["workers"]) == 1
        assert client.submit(lambda: __import__("json5").__name__).result(timeout=60) == "json5"


def test_a_load_balancer_lets_in_the_networks_that_are_named_and_nobody_without_a_certificate(built: Stack) -> None:
    settings = {"workers": {"replicas": 1, **SMALL}, "packages": {"pip": ["json5"]}}
    credentials = connection.security(built.outputs()["client"]["tls"])
    here, *_ = network.addresses(built.cluster.directory)
    for sources, reachable in ([f"{here}/32"], True), (["203.0.113.7/32"], False):
        built.change(settings | {"expose": {"scheduler": {"sources": sources}}})
        built.up()
        service = json.loads(built.kubectl("get", "service", "dask-scheduler", "--output", "json"))
        [ingress] = service["status"]["loadBalancer"]["ingress"]
        if reachable:
            address = f"tls://{ingress['ip']}:8786"
            with Client(address, security=credentials, timeout=30) as client:
                assert client.submit(sum, range(10)).result(timeout=60) == 45
            with pytest.raises((OSError, TypeError)):
                Client(address, security=Security(), timeout=5)
        else:
            with pytest.raises(OSError):
                socket.create_connection((ingress["ip"], 8786), timeout=5)


def test_a_password_of_the_users_own_takes_effect(built: Stack) -> None:
    with_password = {"dask:jupyterPassword": "correct horse battery staple"}
    built.change({"workers": {"replicas": 1, **SMALL}, "packages": {"pip": ["json5"]}}, **with_password)
    built.up()
    outputs = built.outputs()
    with way_to(outputs["client"], [outputs["client"]["jupyter"]]) as way:
        [port] = way.ports
        assert log_in(port, "correct horse battery staple")


def test_tasks_see_secret_variables_which_are_in_a_secret_and_nowhere_else(built: Stack) -> None:
    text = "swordfish's $HOME"
    built.change({"workers": {"replicas": 1, **SMALL}, "packages": {"pip": ["json5"]}})
    built.run("config", "set", "--secret", "--path", "dask:secretEnv.TOKEN", text)
    seen = built.up() + built.run("stack", "export")
    for kind in ("scheduler", "worker", "jupyter"):
        assert built.kubectl("exec", f"deploy/dask-{kind}", "--", "printenv", "TOKEN") == text + "\n"
    seen += built.kubectl("get", "configmaps,pods,deployments,replicasets", "--output", "json")
    for word in (text, "swordfish", hashlib.sha256(text.encode()).hexdigest()):
        assert word not in seen


def test_workers_go_when_nothing_is_computed_and_come_back_for_who_connects(built: Stack) -> None:
    built.change({"workers": {"replicas": 1, **SMALL}, "limits": {"idle": "1m"}})
    built.up()
    workers = ("get", "pods", "--selector", "component=worker", "--output", "name")
    end = time.monotonic() + 150
    while built.kubectl(*workers):
        assert time.monotonic() < end, "the workers did not go"
        time.sleep(1)
    assert re.search(r"Resources:\n +\d+ unchanged\n", built.up())
    assert not built.kubectl(*workers), "an `up` that changes nothing woke them"
    facts = built.outputs()["client"]
    assert wake(facts) == 1
    with connection.Client(facts) as client:
        assert client.submit(sum, range(10)).result(timeout=120) == 45


def test_a_new_version_of_the_chart_is_an_upgrade_of_the_release(built: Stack, tmp_path: Path) -> None:
    files = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for file in files.splitlines():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / file, tmp_path / file)
    (tmp_path / ".venv").symlink_to(PROJECT / ".venv")
    chart = tmp_path / "charts" / "dask" / "Chart.yaml"
    text = chart.read_text()
    chart.write_text(re.sub(r"^version: .*", "version: 99.0.0", text, flags=re.MULTILINE))
    assert chart.read_text() != text
    built.project = tmp_path
    try:
        assert re.search(r"Release release updated", built.up())
    finally:
        built.project = PROJECT
    labels = built.kubectl("get", "deployment", "dask-worker", "--output", "jsonpath={.metadata.labels}")
    assert json.loads(labels)["helm.sh/chart"] == "dask-99.0.0"


def test_a_quota_that_leaves_no_room_is_named(built: Stack) -> None:
    built.kubectl("create", "quota", "few", "--hard=pods=3")
    try:
        built.change({"workers": {"replicas": 3, **SMALL}, "wait": 30})
        assert re.search(r"dask-worker gets no pods: .*exceeded quota: few", built.up(succeeds=False))
    finally:
        built.kubectl("delete", "quota", "few")


def test_a_volume_that_does_not_bind_is_named(built: Stack) -> None:
    built.change({"workers": {"replicas": 1, **SMALL}, "jupyter": {"enabled": False}})
    built.up()
    assert "dask-jupyter" not in built.kubectl("get", "pods,services,secrets,persistentvolumeclaims")
    values = {"jupyter": {"storage": {"className": "missing"}}}
    built.change({"workers": {"replicas": 1, **SMALL}, "values": values, "wait": 30})
    assert re.search(r"volume dask-jupyter is not bound", built.up(succeeds=False))
    built.change({"workers": {"replicas": 1, **SMALL}, "jupyter": {"enabled": False}})
    built.up()


def test_an_image_that_cannot_be_pulled_is_named(built: Stack) -> None:
    built.change({"workers": {"replicas": 1, **SMALL}, "image": "example.invalid/dask:1"})
    printed = built.up(succeeds=False)
    assert re.search(r"dask-\S+: the image example.invalid/dask:1 cannot be pulled", printed)


def test_pods_that_find_no_node_are_named(built: Stack) -> None:
    built.change({"workers": {"replicas": 1, "cpu": 500, "memory": "1 GiB"}, "wait": 30})
    assert re.search(r"dask-worker-\S+ finds no node: .*Insufficient cpu", built.up(succeeds=False))


def kill_while(built: Stack, status: str) -> None:
    """An `up` that is killed with all its processes while helm's release has this status."""
    command = [str(engine()), "up", "--yes", "--skip-preview", "--stack", STACK, "--config-file", str(built.settings)]
    words = ["secrets", "--selector", f"owner=helm,status={status}", "--output", "name", "--request-timeout", "120s"]
    watch = [built.cluster.programs / "kubectl", "--kubeconfig", built.cluster.kubeconfig, "--namespace", SPACE]
    with subprocess.Popen([*watch, "get", "--watch", *words], stdout=subprocess.PIPE) as release:
        with (built.folder / "killed.log").open("w+") as log:
            killed = subprocess.Popen(command, env=built.environ, stdout=log, stderr=log, start_new_session=True)
            seen = release.stdout.readline()
            os.killpg(killed.pid, signal.SIGKILL)
            killed.wait()
        release.kill()
    assert seen, Path(log.name).read_text()
    subprocess.run(["python3", "-m", "tools.unlock", STACK], env=built.environ, check=True)


def test_an_up_that_is_killed_while_helm_upgrades_is_finished_by_the_next(built: Stack) -> None:
    built.change({"workers": {"replicas": 3, **SMALL}})
    kill_while(built, "pending-upgrade")
    built.up()
    assert len(built.kubectl("get", "pods", "--selector", "component=worker", "--output", "name").split()) == 3


def test_destroy_leaves_nothing_and_the_stack_file_is_as_it_was(built: Stack) -> None:
    built.destroy()
    assert "encryptionsalt" not in (PROJECT / f"Pulumi.{STACK}.yaml").read_text()
    assert SPACE not in built.cluster.kubectl("get", "namespaces")
    assert built.cluster.kubectl("get", "persistentvolumes", "--output", "name") == ""


def test_a_first_up_that_is_killed_while_helm_installs_is_finished_by_the_next(built: Stack) -> None:
    built.change({"workers": {"replicas": 1, **SMALL}})
    kill_while(built, "pending-install")
    assert "workers" in built.up()
    built.destroy()
    assert SPACE not in built.cluster.kubectl("get", "namespaces")


def test_notebooks_that_are_kept_outlive_the_stack_which_says_so(built: Stack) -> None:
    built.cluster.kubectl("create", "namespace", "ours")
    try:
        namespace = {"name": "ours", "create": False}
        built.change({"namespace": namespace, "workers": {"replicas": 0, **SMALL}, "jupyter": {**SMALL, "keep": True}})
        built.up()
        said = built.run("destroy", "--yes", "--skip-preview")
        assert "kept, as jupyter.keep says: 10Gi of notebooks" in said
        left = built.cluster.kubectl("--namespace", "ours", "get", "deployments,services,pvc,secrets", "-o", "name")
        assert left.split() == ["persistentvolumeclaim/dask-jupyter"]
    finally:
        built.cluster.kubectl("delete", "namespace", "ours")
