"""A stack with `target: kubernetes` on a real Kubernetes, with the real engine, helm and pods.

Each test requests the settings that it needs (`Stack.has`): `up` runs only if the current settings are different.
"""

import base64
import copy
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from components.kubernetes.tls import tls_identities
from daskstack import client_output, connection, status_and_logs
from daskstack.engine import PROJECT, engine
from daskstack.route import wake, way_to
from rehearsal.kubernetes import components, images, network, objects
from rehearsal.machines import SUDO
from tests.kubernetes.support import FORBIDDEN, RESTRICTED, Cluster, pod, server, until
from tests.tls import accepts
from tests.work import Work
from tools.rehearse import KEY, Rehearsal

pytestmark = pytest.mark.timeout(1200)  # more than `up` may take, so that its output is shown

SMALL = {"cpu": 0.2, "memory": "1 GiB"}
SETTINGS = {
    "target": "kubernetes",
    "cluster": {"source": "existing"},
    "workers": {"replicas": 2, **SMALL},
    "scheduler": SMALL,
    "jupyter": {**SMALL, "storage": "1Gi"},
    "wait": 500,
    # Pods install nothing when they start, unless a test needs it.
    "image": images.INSTALLED,
}
STACK = "kubernetes"  # one that has a stack file, which is not changed
SPACE = f"dask-{STACK}"
TOKEN = "swordfish's $HOME"
PASSWORD = "correct horse battery staple"
PROVIDER = "PasswordIdentityProvider"
METADATA = "169.254.169.254"
ALMOST = {"app": "dask", "release": "another"}  # the labels of another release's pods
SERVICES = {"scheduler": 8786, "webui": 80, "jupyter": 80}
ELSEWHERE = "203.0.113.7/32"
# One worker, which stops when the cluster is idle, and no Jupyter.
ASLEEP = {"workers": {"replicas": 1, **SMALL}, "jupyter": {"enabled": False}, "limits": {"idle": "1h"}}


class Stack(Rehearsal):
    """A stack on the session's Kubernetes."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        super().__init__(STACK, folder)
        self.cluster = cluster
        self.printed = ""
        self.applied: object = None
        self.change({})

    def change(self, settings: dict[str, Any], **config: str) -> None:
        """Writes the settings for the next command; these values replace those of SETTINGS."""
        whole = copy.deepcopy(SETTINGS) | copy.deepcopy(settings)
        self.set({"config": {KEY: whole, **config}}, str(self.cluster.kubeconfig), "rehearsal")

    def run(self, *words: str, succeeds: bool = True) -> str:
        """Runs `pulumi` and returns its output."""
        if words[0] in ("up", "destroy"):
            self.applied = None
        with (self.folder / "printed.log").open("w+") as log:  # also if the run is killed at the time limit
            try:
                self.pulumi(*words, stdout=log, stderr=subprocess.STDOUT, text=True, timeout=900)
                ended = True
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                ended = False
                assert isinstance(error, subprocess.CalledProcessError), printed(log, error)
            assert ended == succeeds, printed(log)
            return printed(log)

    def up(self, succeeds: bool = True) -> str:
        self.run("stack", "select", "--create")
        return self.run("up", "--yes", "--skip-preview", succeeds=succeeds)

    def has(self, settings: dict[str, Any], token: str = "", **config: str) -> str:
        """Brings the stack to these settings, unless it has them; returns the output of the `up` that applied them.

        `token` is a secret variable TOKEN.
        """
        wanted = (copy.deepcopy(settings), token, config, self.project)
        if self.applied != wanted:
            self.change(settings, **config)
            if token:
                self.run("stack", "select", "--create")
                self.run("config", "set", "--secret", "--path", "dask:secretEnv.TOKEN", token)
            self.printed = self.up()
            self.applied = wanted
        return self.printed

    def destroyed(self) -> str:
        self.run("stack", "select", "--create")
        return self.run("destroy", "--yes", "--skip-preview")

    def outputs(self) -> dict[str, Any]:
        known = json.loads(self.run("stack", "output", "--json", "--show-secrets"))
        return known | {"client": client_output.parse(known["client"])}

    def connect(self) -> connection.Client:
        return connection.Client(self.outputs()["client"])

    def kubectl(self, *words: str) -> str:
        return self.cluster.kubectl("--namespace", SPACE, *words)


def printed(log: Any, error: Exception | None = None) -> str:
    log.seek(0)
    return log.read() + (str(error) if error else "")


@pytest.fixture(scope="module")
def stack(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{kubernetes.programs}{os.pathsep}{os.environ['PATH']}")
        stack = Stack(tmp_path_factory.mktemp("trial"), kubernetes)
        yield stack
        stack.destroyed()


def exposed(stack: Stack) -> dict[str, Any]:
    """A load balancer that admits only this computer."""
    here, *_ = network.addresses(stack.cluster.directory)
    return {"expose": {"scheduler": {"sources": [f"{here}/32"]}}}


@pytest.fixture
def built(stack: Stack) -> Stack:
    """The stack with two workers, Jupyter, a secret variable, and a load balancer."""
    stack.has(exposed(stack), TOKEN)
    return stack


def test_up_ends_with_the_table_of_the_check(built: Stack) -> None:
    names = [line.split()[0] for line in built.outputs()["check"].splitlines()]
    assert names == ["workers", "environment", "tls", "job"]


def test_a_second_up_changes_nothing(built: Stack) -> None:
    applied = built.applied
    assert re.search(r"Resources:\n +\d+ unchanged\n", built.up())
    built.applied = applied


def test_a_notebook_on_this_computer_reaches_the_cluster_and_its_dashboard(built: Stack) -> None:
    with built.connect() as client:
        assert client.submit(sum, range(100)).result(timeout=60) == 4950
        assert urllib.request.urlopen(client.dashboard_link, timeout=30).status == 200


def test_status_and_logs_come_from_the_pods(built: Stack) -> None:
    outputs = built.outputs()
    assert [worker.status for worker in status_and_logs.status(outputs).workers] == ["running", "running"]
    logs = status_and_logs.pod_logs(outputs["client"], "worker")
    assert "[pod/dask-worker-" in logs
    assert "dask-scheduler-" not in logs


def test_the_scheduler_rejects_clients_without_a_certificate_from_its_authority(built: Stack) -> None:
    facts = built.outputs()["client"]
    own = facts.tls
    foreign = tls_identities(STACK, ["client"])["client"]
    with way_to(facts, ["dask-scheduler:8786"]) as way:
        for address in (f"tls://127.0.0.1:{way.ports[0]}", balanced(built)):
            assert accepts(address, own.certificate, own.key)
            assert not accepts(address), "without a certificate"
            assert not accepts(address, foreign["tls.crt"], foreign["tls.key"]), "with a foreign authority's"


def balanced(stack: Stack) -> str:
    """The address of the scheduler's load balancer."""
    service = json.loads(stack.kubectl("get", "service", "dask-scheduler", "--output", "json"))
    [ingress] = service["status"]["loadBalancer"]["ingress"]
    return f"tls://{ingress['ip']}:8786"


def secrets(stack: Stack) -> dict[str, str]:
    """All values of the release's own Secrets, by Secret and key."""
    found = json.loads(stack.kubectl("get", "secrets", "--selector", f"dask-stack={STACK}", "--output", "json"))
    return {
        f"{each['metadata']['name']} {key}": base64.b64decode(value).decode()
        for each in found["items"]
        for key, value in each["data"].items()
    }


def test_secrets_are_only_in_kubernetes_secrets_and_encrypted_state(built: Stack) -> None:
    outputs, known = built.outputs(), secrets(built)
    keys = {name: text for name, text in known.items() if name.endswith(" tls.key")}
    assert sorted(keys) == [f"dask-tls-{part} tls.key" for part in ("client", "scheduler", "worker")]
    assert outputs["client"].tls.key in keys.values() and known["dask-env TOKEN"] == TOKEN
    words = [outputs["jupyterPassword"], TOKEN, "swordfish", hashlib.sha256(TOKEN.encode()).hexdigest()]
    words += [json.loads(known["dask-jupyter-password jupyter_server_config.json"])[PROVIDER]["hashed_password"]]
    words += [line for text in keys.values() for line in text.splitlines()[1:-1]]
    kinds = "configmaps,pods,deployments,replicasets,jobs,events"
    seen = built.printed + built.run("stack", "export") + built.kubectl("get", kinds, "--output", "json")
    assert not [word for word in words if word in seen]


def test_tasks_see_secret_variables(built: Stack) -> None:
    for kind in ("scheduler", "worker", "jupyter"):
        assert built.kubectl("exec", f"deploy/dask-{kind}", "--", "printenv", "TOKEN") == TOKEN + "\n"


@pytest.fixture
def strangers(built: Stack) -> Iterator[Stack]:
    """A pod in another namespace, a foreign pod in the release's namespace, and a server that both can reach."""
    cluster = built.cluster
    cluster.kubectl("create", "namespace", "strangers")
    node = network.name(cluster.directory)
    cluster.apply(pod("stranger", "sleep", "900"), server("server"), namespace="strangers")
    cluster.apply(pod("neighbour", "sleep", "900", security=RESTRICTED, labels=ALMOST), namespace=SPACE)
    inside = [*SUDO, "ip", "netns", "exec", node]
    subprocess.run([*inside, "ip", "address", "replace", f"{METADATA}/32", "dev", "lo"], check=True)
    listen = [*inside, sys.executable, "-m", "http.server", "--bind", METADATA, "80"]
    try:
        with subprocess.Popen(
            listen, cwd=built.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as metadata:
            try:
                yield built
            finally:
                metadata.terminate()
    finally:
        subprocess.run([*inside, "ip", "address", "delete", f"{METADATA}/32", "dev", "lo"], check=True)
        cluster.kubectl("delete", "namespace", "strangers", "--wait=false")
        cluster.kubectl("delete", "pod", "neighbour", f"--namespace={SPACE}")


def test_network_policies_block_other_pods_and_access_to_private_networks(strangers: Stack) -> None:
    cluster = strangers.cluster
    [server_address, _] = cluster.ready("strangers", "server", "stranger")
    cluster.ready(SPACE, "neighbour")
    with strangers.connect() as client:

        def comms() -> list[str]:
            workers = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
            return [each.removeprefix("tls://") for each in (*workers, *(each["nanny"] for each in workers.values()))]

        until(lambda: len(comms()) == 4)  # of both workers, which may have just started
        dask = comms()
    found = json.loads(strangers.kubectl("get", "pods", "--selector", "release=dask", "--output", "json"))["items"]
    found = [each for each in found if "deletionTimestamp" not in each["metadata"]]
    pods = {each["metadata"]["labels"]["component"]: each["metadata"]["name"] for each in found}
    addresses = {each["metadata"]["labels"]["component"]: each["status"]["podIP"] for each in found}
    doors = [f"{addresses['scheduler']}:8786", f"{addresses['scheduler']}:8787", f"{addresses['jupyter']}:8888"]
    doors += [f"{addresses['worker']}:8790", *dask]
    doors += [f"dask-{name}.{SPACE}.svc.cluster.local:{port}" for name, port in SERVICES.items()]
    every = dict.fromkeys(doors, "open")
    for component in ("scheduler", "worker", "jupyter"):
        assert cluster.reach(SPACE, pods[component], *doors) == every
    closed = dict.fromkeys(doors, FORBIDDEN)
    assert cluster.reach("strangers", "stranger", *doors) == closed
    assert cluster.reach(SPACE, "neighbour", *doors) == closed

    _, node, _ = network.addresses(cluster.directory)
    out = [f"{server_address}:8000", f"{METADATA}:80", f"{network.KUBERNETES}:443", f"{node}:6443"]
    until(lambda: cluster.reach("strangers", "stranger", *out) == dict.fromkeys(out, "open"))
    index = f"{network.INNER}:{components.WHEELS}"
    for component in ("scheduler", "worker", "jupyter"):
        assert cluster.reach(SPACE, pods[component], *out) == dict.fromkeys(out, FORBIDDEN)
        assert cluster.reach(SPACE, pods[component], index) == {index: "open"}


def log_in(port: int, password: str) -> bool:
    """Whether the login form of a notebook server accepts the password."""
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


def test_the_notebook_server_accepts_only_its_password(built: Stack) -> None:
    outputs = built.outputs()
    with way_to(outputs["client"], [outputs["client"].jupyter]) as way:
        [port] = way.ports
        assert log_in(port, outputs["jupyterPassword"])
        assert not log_in(port, "dask")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/contents", timeout=30)


def test_a_load_balancer_admits_its_source_networks(built: Stack) -> None:
    credentials = connection.security(built.outputs()["client"].tls)
    with Client(balanced(built), security=credentials, timeout=30) as client:
        assert client.submit(sum, range(10)).result(timeout=60) == 45


def test_the_client_reconnects_when_the_scheduler_moves_to_another_pod(built: Stack) -> None:
    with built.connect() as client:
        built.kubectl("delete", "pod", "--selector", "component=scheduler", "--wait=true")

        def answers() -> bool:
            try:
                return client.submit(sum, range(10), pure=False).result(timeout=10) == 45
            except Exception:  # any exception that Dask raises during the outage
                return False

        until(answers, 300)


CHANGED = {
    "image": None,  # every pod installs the lock and the additional package
    "workers": {"replicas": 1, **SMALL},
    "packages": {"pip": ["json5"]},
    "expose": {"scheduler": {"sources": [ELSEWHERE]}},
}


@pytest.fixture
def to_change(built: Stack) -> Stack:
    """The stack before the change that `changed` makes."""
    return built


def test_changing_workers_and_packages_shows_in_the_preview_and_loses_no_result(to_change: Stack) -> None:
    to_change.change(CHANGED)
    assert "~values" in to_change.run("preview")
    with ThreadPoolExecutor() as pool:
        work = Work(to_change.connect())
        try:
            former = set(work.workers())
            assert len(former) == 2
            change = pool.submit(to_change.has, CHANGED, "", **{"dask:jupyterPassword": PASSWORD})
            until(lambda: work.wrong or change.done() or not former & set(work.workers()), 500)
            assert not change.done(), "the scheduler did not wait: " + change.result()
            work.check_progress()
            assert len(work.workers()) == 1
        finally:
            work.end()  # the scheduler, whose packages also change, waits for this, and so does `up`
        change.result()
    with to_change.connect() as client:
        assert client.submit(lambda: __import__("json5").__name__).result(timeout=60) == "json5"


@pytest.fixture
def changed(stack: Stack) -> Stack:
    stack.has(CHANGED, **{"dask:jupyterPassword": PASSWORD})
    return stack


def test_a_load_balancer_rejects_other_networks(changed: Stack) -> None:
    address = balanced(changed).removeprefix("tls://")
    with pytest.raises(OSError):
        socket.create_connection(address.split(":"), timeout=5)


def test_a_custom_password_takes_effect(changed: Stack) -> None:
    outputs = changed.outputs()
    assert outputs["jupyterPassword"] == PASSWORD
    with way_to(outputs["client"], [outputs["client"].jupyter]) as way:
        assert log_in(way.ports[0], PASSWORD)


def test_a_notebook_has_the_workers_environment_and_finds_the_scheduler(changed: Stack) -> None:
    """Its pod installs it from the same lock."""
    program = "from distributed import Client\nwith Client(timeout=30) as c: print(c.submit(sum, range(10)).result(60))"
    assert changed.kubectl("exec", "deploy/dask-jupyter", "--", "python", "-c", program).split()[-1] == "45"


@pytest.fixture
def asleep(stack: Stack) -> Stack:
    stack.has(exposed(stack) | ASLEEP, TOKEN)
    return stack


def test_a_stack_without_jupyter_has_no_jupyter_objects(asleep: Stack) -> None:
    assert "dask-jupyter" not in asleep.kubectl("get", "pods,services,secrets,persistentvolumeclaims")


def test_idle_workers_stop_and_start_again_when_a_client_connects(asleep: Stack) -> None:
    def hurry(dask_scheduler):
        """Sets a short idle limit and returns the former one."""
        watch = dask_scheduler.idle_watch.callback.__self__
        before, watch.limit = watch.limit, 3
        return before

    with asleep.connect() as client:
        assert client.run_on_scheduler(hurry) == 3600
    workers = ("get", "pods", "--selector", "component=worker", "--output", "name")
    until(lambda: not asleep.kubectl(*workers), 300)
    applied = asleep.applied
    assert re.search(r"Resources:\n +\d+ unchanged\n", asleep.up())
    assert not asleep.kubectl(*workers), "an `up` that changes nothing woke them"
    asleep.applied = applied
    facts = asleep.outputs()["client"]
    assert wake(facts) == 1
    with connection.Client(facts) as client:
        assert client.submit(sum, range(10)).result(timeout=120) == 45


def test_up_says_which_quota_volume_image_or_node_keeps_pods_from_starting(asleep: Stack) -> None:
    groups = [
        {"name": "costly", "replicas": 1, "resources": {"requests": {"ephemeral-storage": "2Ti"}}},
        {"name": "large", "replicas": 1, "resources": {"requests": {"cpu": 500}}},
        {"name": "lost", "replicas": 1, "image": {"repository": "example.invalid/dask", "tag": "1"}},
    ]
    asleep.kubectl("create", "quota", "few", "--hard=requests.ephemeral-storage=1Ti")
    asleep.cluster.kubectl("delete", "storageclass", objects.CLASS)
    try:
        # Jupyter and its volume are new.
        asleep.change(
            exposed(asleep) | {"workers": ASLEEP["workers"], "values": {"additional_worker_groups": groups}, "wait": 30}
        )
        said = asleep.up(succeeds=False)
    finally:
        asleep.kubectl("delete", "quota", "few")
        asleep.cluster.apply(objects.STORAGE_CLASS)
    for text in (
        r"dask-costly cannot create pods: .*exceeded quota: few",
        r"dask-large-\S+ cannot be scheduled: .*Insufficient cpu",
        r"dask-lost-\S+: the image example.invalid/dask:1 cannot be pulled",
        r"the volume dask-jupyter is not bound; check that the cluster has a default StorageClass",
    ):
        assert re.search(text, said), said


def kill_while(stack: Stack, status: str, namespace: str = SPACE) -> None:
    """Starts `up` and kills all its processes while helm's release has this status."""
    stack.run("stack", "select", "--create")
    stack.applied = None
    command = [str(engine()), "up", "--yes", "--skip-preview", "--stack", STACK, "--config-file", str(stack.settings)]
    words = ["secrets", "--selector", f"owner=helm,status={status}", "--output", "name", "--request-timeout", "120s"]
    watch = [stack.cluster.programs / "kubectl", "--kubeconfig", stack.cluster.kubeconfig, "--namespace", namespace]
    with subprocess.Popen([*watch, "get", "--watch", *words], stdout=subprocess.PIPE) as release:
        with (stack.folder / "killed.log").open("w+") as log:
            streams = {"stdout": log, "stderr": log, "start_new_session": True}
            killed = subprocess.Popen(command, cwd=stack.project, env=stack.environ, **streams)
            seen = release.stdout.readline()
            os.killpg(killed.pid, signal.SIGKILL)
            killed.wait()
        release.kill()
    assert seen, Path(log.name).read_text()
    subprocess.run(["python3", "-m", "tools.unlock", STACK], env=stack.environ, check=True)


@pytest.fixture
def newer(stack: Stack, tmp_path: Path) -> Iterator[Path]:
    """A copy of the project with the same stack and a newer chart."""
    files = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for file in files.splitlines():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / file, tmp_path / file)
    (tmp_path / ".venv").symlink_to(PROJECT / ".venv")
    chart = tmp_path / "charts" / "dask" / "Chart.yaml"
    text = chart.read_text()
    chart.write_text(re.sub(r"^version: .*", "version: 99.0.0", text, flags=re.MULTILINE))
    assert chart.read_text() != text
    stack.project = tmp_path
    yield tmp_path
    stack.project = PROJECT


def test_the_next_up_finishes_a_killed_chart_upgrade(built: Stack, newer: Path) -> None:
    settings = exposed(built)
    kill_while(built, "pending-upgrade")
    assert re.search(r"Release dask-release updated", built.has(settings, TOKEN))
    deployment = json.loads(built.kubectl("get", "deployment", "dask-worker", "--output", "json"))
    assert deployment["metadata"]["labels"]["helm.sh/chart"] == "dask-99.0.0"
    assert deployment["status"]["readyReplicas"] == 2


def test_destroy_leaves_nothing_and_does_not_change_the_stack_file(stack: Stack) -> None:
    if not (stack.applied and stack.kubectl("get", "persistentvolumeclaims", "--output", "name")):
        stack.has({})
    stack.destroyed()
    assert "encryptionsalt" not in (PROJECT / f"Pulumi.{STACK}.yaml").read_text()
    assert SPACE not in stack.cluster.kubectl("get", "namespaces")
    assert SPACE not in stack.cluster.kubectl("get", "persistentvolumes", "--output", "json")


@pytest.fixture
def plain(stack: Stack) -> Iterator[Stack]:
    """One worker without TLS in an existing namespace; the first `up` was killed during the helm install."""
    stack.destroyed()
    stack.cluster.kubectl("create", "namespace", "ours")
    try:
        settings = {
            "namespace": {"name": "ours", "create": False},
            "workers": {"replicas": 1, **SMALL},
            "jupyter": {**SMALL, "keep": True},
            "dask": {"tls": False},
        }
        stack.change(settings)
        kill_while(stack, "pending-install", "ours")
        yield stack
    finally:
        stack.destroyed()
        stack.cluster.kubectl("delete", "namespace", "ours")


def test_the_next_up_finishes_a_killed_first_one_and_kept_notebooks_outlive_the_stack(plain: Stack) -> None:
    plain.up()
    outputs, space = plain.outputs(), ("--namespace", "ours")
    # dask.tls is false: connections are unencrypted, also the client's, and there are no keys.
    assert [line.split()[0] for line in outputs["check"].splitlines()] == ["workers", "environment", "job"]
    with plain.connect() as client:
        assert client.scheduler.address.startswith("tcp://")
        addresses = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
        assert [each.split(":")[0] for each in addresses] == ["tcp"]
        assert client.submit(sum, range(10)).result(timeout=60) == 45
    assert "dask-tls" not in plain.cluster.kubectl(*space, "get", "secrets,deployments,configmaps", "-o", "json")

    assert "kept because of jupyter.keep: 10Gi of notebooks" in plain.destroyed()
    left = plain.cluster.kubectl(*space, "get", "deployments,services,pvc,secrets", "-o", "name")
    assert left.split() == ["persistentvolumeclaim/dask-jupyter"]
