"""A stack with `target: kubernetes` on a real Kubernetes, with the real engine, helm and pods.

Each test requests the settings that it needs (`Stack.has`): `up` runs only if the current settings are different.
"""

import asyncio
import base64
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from components.kubernetes import chart_values
from components.kubernetes.tls import tls_identities
from daskstack import connection, status_and_logs
from daskstack.engine import PROJECT, engine
from daskstack.route import wake, way_to
from on_this_computer.send_environment import sha256
from rehearsal.kubernetes import components, network, objects
from rehearsal.machines import SUDO
from rehearsal.programs import google_program
from settings.buckets import MEMBER, Bucket
from settings.chart import CHARTS
from settings.kubernetes import WHEELS_LIMIT
from tests.engine.support import kubernetes_is_built
from tests.examples import PRINTS
from tests.kubernetes.chart import rendered
from tests.kubernetes.release import SMALL, SPACE, STACK, TOKEN, Stack, exposed
from tests.kubernetes.support import FORBIDDEN, RESTRICTED, pod, server, until
from tests.notebooks import log_in
from tests.tls import accepts
from tests.wheels import wheel
from tests.work import Work

pytestmark = pytest.mark.timeout(1200)  # more than `up` may take, so that its output is shown

PASSWORD = "correct horse battery staple"
PROVIDER = "PasswordIdentityProvider"
METADATA, STORAGE = "169.254.169.254", "199.36.153.8"  # as in Google's networks
ALMOST = {"app": "dask", "release": "another"}  # the labels of another release's pods
SERVICES = {"scheduler": 8786, "webui": 80, "jupyter": 80}
ELSEWHERE = "203.0.113.7/32"
# One worker, which stops when the cluster is idle, and no Jupyter. The scheduler asks Kubernetes without the proxy.
ASLEEP = {
    "workers": {"replicas": 1, **SMALL},
    "jupyter": {"enabled": False},
    "limits": {"idle": "1h"},
    "dask": {"env": {"HTTPS_PROXY": "http://127.0.0.1:9"}},
}


def test_up_ends_with_the_table_of_the_check(built: Stack) -> None:
    names = [line.split()[0] for line in built.outputs()["check"].splitlines()]
    assert names == ["workers", "environment", "tls", "ports", "data", "job", "imports", "jupyter"]


def test_scheduler_workers_and_notebooks_share_a_directory(built: Stack) -> None:
    assert "all pods share /srv/daskdata\n" in built.outputs()["check"]
    program = "import fsspec\nwith fsspec.open('daskdata://note', 'w') as file: file.write('from a notebook')"
    built.kubectl("exec", "deploy/dask-jupyter", "--", "python", "-c", program)

    def read() -> tuple[str, str]:
        import fsspec

        with fsspec.open("daskdata://note", "r") as file:
            return Path("/srv/daskdata/note").read_text(), file.read()

    with built.connect() as client:
        assert {*client.run(read).values(), client.run_on_scheduler(read)} == {("from a notebook",) * 2}


@pytest.fixture
def learning(stack: Stack) -> Stack:
    """The stack with packages for machine learning, and without Jupyter."""
    workers = {"replicas": 2, "cpu": 0.2, "memory": "2 GiB"}
    stack.has({"workers": workers, "jupyter": {"enabled": False}, "environment": {"lock": "environments/ml.lock"}})
    return stack


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_an_example_runs_the_first_time(learning: Stack, name: str) -> None:
    command = [sys.executable, "-m", "tools.examples", name]
    done = subprocess.run(
        command, env=learning.environ | {"STACK": STACK}, cwd=PROJECT, capture_output=True, text=True, timeout=900
    )
    said = done.stdout + done.stderr
    assert re.search(PRINTS[name], said), said


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
    words += [line for text in (*keys.values(), outputs["authority"]["key"]) for line in text.splitlines()[1:-1]]
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


# Prints what a pod reads from a bucket after it has tried to write there.
USE_BUCKET = f"""
import os, sys
os.environ |= {{"GCE_METADATA_HOST": "{METADATA}", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}}
import gcsfs
files = gcsfs.GCSFileSystem(endpoint_url="http://{STORAGE}")
for name in sys.argv[1:]:
    try:
        files.pipe(f"{{name}}/greeting", b"new")
    except Exception as error:
        print("cannot write:", str(error).splitlines()[-1], end="; ")
    try:
        print(files.cat(f"{{name}}/greeting").decode())
    except Exception as error:
        print("cannot read:", str(error).splitlines()[-1])
"""


@pytest.fixture
def storage(built: Stack, tmp_path: Path) -> Iterator[Stack]:
    """The stack with a Cloud Storage and a metadata server, and roles and policies as `data.buckets` gives them."""
    members = {}
    for each in json.loads(built.kubectl("get", "pods", "--selector", "release=dask", "--output", "json"))["items"]:
        account = each["spec"]["serviceAccountName"]
        members[each["status"].get("podIP", "")] = MEMBER.format(12, "my-project", SPACE, account)
    (tmp_path / "pods.json").write_text(json.dumps(members))
    for bucket in (Bucket(name="readable"), Bucket(name="writable", write=True)):
        role = tmp_path / "b" / bucket.name / bucket.role
        for member in members.values():
            (role / member).parent.mkdir(parents=True, exist_ok=True)
            (role / f"{member}.json").touch()
    policies = [each for each in rendered(networkPolicy={"metadata": True}) if each["kind"] == "NetworkPolicy"]
    policies = [each for each in policies if each["metadata"]["name"].endswith("-account")]
    built.cluster.apply(*policies, namespace=SPACE)
    inside = [*SUDO, "ip", "netns", "exec", network.name(built.cluster.directory)]
    places = [f"{METADATA}/32", f"{STORAGE}/32"]
    for place in places:
        subprocess.run([*inside, "ip", "address", "replace", place, "dev", "lo"], check=True)
    buckets = ["readable", "writable", "secret"]
    command = [*inside, google_program(), tmp_path, f"{METADATA}:80", f"{STORAGE}:80", *buckets]
    try:
        with subprocess.Popen(command) as server:
            try:
                yield built
            finally:
                server.terminate()
    finally:
        for place in places:
            subprocess.run([*inside, "ip", "address", "delete", place, "dev", "lo"], check=True)
        built.kubectl("delete", "networkpolicy", *(each["metadata"]["name"] for each in policies))


def test_pods_use_only_the_buckets_that_their_service_account_may_use(storage: Stack) -> None:
    refused = f"{MEMBER.format(12, 'my-project', SPACE, 'dask')} does not have this access"
    for component in ("scheduler", "worker", "jupyter"):
        command = ("exec", f"deploy/dask-{component}", "--", "python", "-c", USE_BUCKET)
        assert storage.kubectl(*command, "readable", "writable", "secret").splitlines() == [
            f"cannot write: {refused}; readable",
            "new",
            f"cannot write: {refused}; cannot read: {refused}",
        ]


def test_the_notebook_server_accepts_only_its_password(built: Stack) -> None:
    outputs = built.outputs()
    with way_to(outputs["client"], [outputs["client"].jupyter]) as way:
        [port] = way.ports
        assert log_in(port, outputs["jupyterPassword"])
        assert not log_in(port, "dask")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/contents", timeout=30)


async def test_a_notebooks_dashboard_link_opens_in_the_browser_and_the_dask_panel_finds_it(built: Stack) -> None:
    outputs = built.outputs()
    program = "from distributed import Client\nwith Client(timeout=30) as client: print(client.dashboard_link)"
    link = built.kubectl("exec", "deploy/dask-jupyter", "--", "python", "-c", program).split()[-1]
    with way_to(outputs["client"], [outputs["client"].jupyter]) as way:
        base, jar = f"http://127.0.0.1:{way.ports[0]}", CookieJar()
        assert log_in(way.ports[0], outputs["jupyterPassword"], jar)
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))

        def page(path: str) -> str:
            return browser.open(f"{base}{path}", timeout=60).read().decode()

        assert "Dask Diagnostic UI" in page(link)
        panel = json.loads(page("/lab/api/settings/dask-labextension:plugin"))["schema"]["properties"]
        dashboard = panel["defaultURL"]["default"]
        assert dashboard == link.removesuffix("status") and panel["hideClusterManager"]["default"]
        stream = dashboard + json.loads(page(f"{dashboard}individual-plots.json"))["Individual Task Stream"].strip("/")
        [token] = re.findall(r'"token":"([^"]+)"', page(stream))
        cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in jar)
        address = f"{base.replace('http', 'ws')}{stream}/ws"
        request = HTTPRequest(address, headers={"Cookie": cookies, "Origin": base}, request_timeout=30)
        figures = await websocket_connect(request, subprotocols=["bokeh", token])
        assert json.loads(await asyncio.wait_for(figures.read_message(), 30))["msgtype"] == "ACK"
        figures.close()

        with pytest.raises(urllib.error.HTTPError, match="403"):
            page("/proxy/dask-scheduler:8786/")
        without_login = urllib.request.urlopen(f"{base}{link}", timeout=30).read().decode()
        assert "Dask Diagnostic UI" not in without_login


def test_a_load_balancer_admits_its_source_networks(built: Stack) -> None:
    credentials = connection.security(built.outputs()["client"])
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


def test_draining_a_node_moves_the_results_of_a_worker_and_waits_for_the_scheduler(built: Stack) -> None:
    def evict(component: str) -> str:
        """Evicts a pod, as `kubectl drain` does, and returns its name."""
        name = built.kubectl("get", "pods", f"--selector=component={component}", "--output=name").split()[0]
        pod = name.removeprefix("pod/")
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": SPACE}}
        place = f"/api/v1/namespaces/{SPACE}/pods/{pod}/eviction"
        built.cluster.kubectl("create", f"--raw={place}", "--filename=-", input=json.dumps(eviction))
        return pod

    def numbers() -> list[float]:
        return [random.random() for _ in range(1000)]  # a recomputed result differs

    with built.connect() as client:
        client.wait_for_workers(2, timeout=200)
        with pytest.raises(subprocess.CalledProcessError) as refused:
            evict("scheduler")
        assert "disruption budget" in refused.value.stderr
        names = [worker["name"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
        results = [client.submit(numbers, workers=[name], allow_other_workers=True, pure=False) for name in names]
        before = client.gather(results)
        gone = evict("worker")
        built.kubectl("wait", "--for=delete", f"pod/{gone}", "--timeout=110s")
        assert client.gather(results) == before
    built.kubectl("rollout", "status", "deployment/dask-worker", "--timeout=110s")


OWN = "1.0+local"  # the version of a package that no index has; ConfigMaps accept no + in names of files
# An edited copy of the official chart's values.yaml, with a null that removes a default.
COPY = chart_values.merged(
    json.loads((CHARTS / "official.json").read_text()),
    {"worker": {"annotations": {"team": "a"}, "livenessProbe": None}, "jupyter": {"rbac": False}},
)
CHANGED = {
    "values": COPY,
    "image": None,  # every pod installs the lock and the additional package
    "workers": {"replicas": 1, **SMALL, "spill": {"size": "1Gi", "className": objects.CLASS}},
    "packages": {"pip": ["json5", "lightgbm"]},
    "expose": {"scheduler": {"sources": [ELSEWHERE]}},
    "dask": {"ports": {"libraries": "20000-20099"}},
}


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """CHANGED, with a lock that needs the largest possible wheel which no index has."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.wheels").mkdir()
    wheel(folder / "own.wheels", "mypackage", OWN)
    [own] = (folder / "own.wheels").iterdir()
    with zipfile.ZipFile(own, "a") as archive:
        archive.writestr("mypackage/data", os.urandom(WHEELS_LIMIT - own.stat().st_size - 200))
    pin = f"mypackage=={OWN} --hash=sha256:{sha256(own)}\n    # from own.wheels/{own.name}\n"
    (folder / "own.lock").write_text((PROJECT / "environment.lock").read_text() + pin)
    return CHANGED | {"environment": {"lock": str(folder / "own.lock")}}


@pytest.fixture
def to_change(built: Stack) -> Stack:
    """The stack before the change that `changed` makes."""
    return built


def test_changing_workers_and_packages_shows_in_the_preview_and_loses_no_result(
    to_change: Stack, changes: dict[str, Any]
) -> None:
    to_change.change(changes)
    assert "~values" in to_change.run("preview")
    with ThreadPoolExecutor() as pool:
        work = Work(to_change.connect())
        try:
            former = set(work.workers())
            assert len(former) == 2
            change = pool.submit(to_change.has, changes, "", **{"dask:jupyterPassword": PASSWORD})
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
def changed(stack: Stack, changes: dict[str, Any]) -> Stack:
    stack.has(changes, **{"dask:jupyterPassword": PASSWORD})
    return stack


def test_a_load_balancer_rejects_other_networks(changed: Stack) -> None:
    address = balanced(changed).removeprefix("tls://")
    with pytest.raises(OSError):
        socket.create_connection(address.split(":"), timeout=5)


def test_pods_reach_each_other_only_on_the_ports_of_dask_and_of_libraries(changed: Stack) -> None:
    assert "workers reach each other on 20000-20099" in changed.outputs()["check"]
    with changed.connect() as client:
        [worker] = client.sync(client.scheduler.identity, n_workers=-1)["workers"].values()
        host, pod = worker["host"], worker["name"]  # a failed pod of the same Deployment may still exist
        listen = "import socket, time; held = [socket.create_server(('', p)) for p in (20000, 20100)]; time.sleep(60)"
        words = ["--namespace", SPACE, "exec", pod, "--", "python", "-c", listen]
        command = [changed.cluster.programs / "kubectl", "--kubeconfig", changed.cluster.kubeconfig, *words]
        with subprocess.Popen(command) as listening:
            ports = {20000: "open", 20100: FORBIDDEN, 9000: "open", 9001: "open", 8790: "open"}
            expected = {f"{host}:{port}": seen for port, seen in ports.items()}
            try:
                until(lambda: changed.cluster.reach(SPACE, "deploy/dask-jupyter", *expected) == expected)
            finally:
                listening.kill()


def test_a_custom_password_takes_effect(changed: Stack) -> None:
    outputs = changed.outputs()
    assert outputs["jupyterPassword"] == PASSWORD
    with way_to(outputs["client"], [outputs["client"].jupyter]) as way:
        assert log_in(way.ports[0], PASSWORD)


def test_a_notebook_has_the_workers_environment_and_finds_the_scheduler(changed: Stack) -> None:
    """Its pod installs it from the same lock."""
    program = "from distributed import Client\nwith Client(timeout=30) as c: print(c.submit(sum, range(10)).result(60))"
    assert changed.kubectl("exec", "deploy/dask-jupyter", "--", "python", "-c", program).split()[-1] == "45"


def test_pods_install_a_system_library_that_their_image_lacks(changed: Stack) -> None:
    program = "import lightgbm; print(lightgbm.__version__)"
    for kind in ("worker", "jupyter"):
        assert changed.kubectl("exec", f"deploy/dask-{kind}", "--", "python", "-c", program)[0].isdigit()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        changed.kubectl("exec", "deploy/dask-worker", "--", "env", "LD_LIBRARY_PATH=", "python", "-c", program)
    assert "libgomp.so.1: cannot open shared object file" in failed.value.stderr


def test_this_computer_reaches_the_shared_directory(changed: Stack, tmp_path: Path) -> None:
    """The image lacks the SFTP server that this needs."""

    def said(*words: str) -> str:
        command = [sys.executable, "-m", "daskstack", *words]
        return subprocess.check_output(
            command, env=changed.environ | {"STACK": STACK}, cwd=PROJECT, text=True, timeout=120
        )

    source = tmp_path / "a folder"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("from here")
    said("put", "--stack", STACK, str(source), "copied/")
    assert "sub" in said("ls", "--stack", STACK, "copied/a folder")
    program = "import fsspec; print(fsspec.open('daskdata://copied/a folder/sub/file', 'r').open().read())"
    assert changed.kubectl("exec", "deploy/dask-worker", "--", "python", "-c", program) == "from here\n"
    said("get", "--stack", STACK, "copied/a folder", f"{tmp_path}/back/")
    assert (tmp_path / "back" / "a folder" / "sub" / "file").read_text() == "from here"
    program = f"""if True:
        import fsspec
        files = fsspec.filesystem("daskdata", stack="{STACK}")
        print(files.cat("copied/a folder/sub/file").decode())
        files.rm("copied", recursive=True)
    """
    here = subprocess.check_output([sys.executable, "-c", program], env=changed.environ, cwd=PROJECT, text=True)
    assert here == "from here\n"
    changed.kubectl("exec", "deploy/dask-scheduler", "--", "sh", "-c", "! [ -e /srv/daskdata/copied ]")


def test_a_job_runs_in_a_pod_of_its_own_until_it_ends_or_is_stopped(changed: Stack, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def square(number): return number ** 2\n")
    script = """if True:
        import os, sys, time
        import mine
        from distributed import Client

        with Client() as client:
            print(sum(client.gather(client.map(mine.square, range(10), pure=False))), flush=True)
        print(os.path.isdir(os.environ["DASKSTACK_DATA"]), flush=True)
        time.sleep(float(sys.argv[1]))
        sys.exit(7)
    """
    (tmp_path / "job.py").write_text(script)

    environ = changed.environ | {"STACK": STACK, "PYTHONPATH": str(PROJECT)}  # not the package that .venv refers to
    here: dict[str, Any] = {"cwd": tmp_path, "env": environ, "text": True}
    program = str(PROJECT / ".venv/bin/daskstack")

    def said(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *words], **here, capture_output=True, timeout=600)

    done = said("run", "job.py", "0")
    assert (done.returncode, done.stdout) == (7, "285\nTrue\n"), done.stderr
    assert done.stderr == "job 1 has started\njob 1 has failed\n"
    assert said("run", "--detach", "job.py", "3600").returncode == 0
    with subprocess.Popen([program, "jobs", "logs", "2"], **here, stdout=subprocess.PIPE) as log:
        assert log.stdout.readline() == "285\n", "the output of a job that is still running"
        assert said("jobs", "stop", "2").returncode == 0
        assert log.stdout.read() == "True\n"
    assert log.returncode == 143
    assert re.findall(r"^ +(\d)  (\w+) ", said("jobs").stdout, re.MULTILINE) == [("1", "failed"), ("2", "stopped")]
    assert "there is no job 3" in said("jobs", "logs", "3").stderr


def test_pods_install_wheels_that_no_index_has(changed: Stack) -> None:
    program = "import importlib.metadata; print(importlib.metadata.version('mypackage'))"
    for kind in ("scheduler", "worker", "jupyter"):
        assert changed.kubectl("exec", f"deploy/dask-{kind}", "--", "python", "-c", program) == f"{OWN}\n"


def test_edits_of_the_official_values_take_effect_and_those_without_one_are_named(changed: Stack) -> None:
    deployment = json.loads(changed.kubectl("get", "deployment", "dask-worker", "--output", "json"))
    assert deployment["spec"]["template"]["metadata"]["annotations"]["team"] == "a"
    [worker] = deployment["spec"]["template"]["spec"]["containers"]
    # The plugin that we build, 4.25, loses a null.
    assert ("livenessProbe" in worker) == kubernetes_is_built(changed.environ)
    assert "startupProbe" in worker
    assert "values.jupyter.rbac: has no effect; use jupyter.serviceAccount" in changed.printed


def test_new_workers_start_while_the_package_index_is_down(changed: Stack) -> None:
    """They get the packages of the scheduler's pod."""
    down = "PIP_FIND_LINKS=http://127.0.0.1:9"
    changed.applied = None
    changed.kubectl("set", "env", "deployment/dask-worker", "--containers=environment", down)
    try:
        changed.kubectl("rollout", "status", "deployment/dask-worker", "--timeout=110s")
    finally:
        changed.kubectl("rollout", "undo", "deployment/dask-worker")


def test_workers_spill_to_a_volume_of_their_own(changed: Stack) -> None:
    def spills() -> list[dict[str, Any]]:
        claims = json.loads(changed.kubectl("get", "persistentvolumeclaims", "--output", "json"))["items"]
        return [each for each in claims if each["metadata"]["name"].endswith("-dask-spill")]

    until(lambda: len(spills()) == 1, 300)  # a worker that an earlier test replaced keeps its own while it retires
    volume = changed.cluster.directory / "volumes" / spills()[0]["spec"]["volumeName"]
    assert [path.name for path in volume.iterdir()] == ["dask-scratch-space"]


@pytest.fixture
def asleep(stack: Stack) -> Stack:
    stack.has(exposed(stack) | ASLEEP, TOKEN)
    return stack


def test_a_stack_without_jupyter_has_no_jupyter_objects(asleep: Stack) -> None:
    assert "dask-jupyter" not in asleep.kubectl("get", "pods,services,secrets,persistentvolumeclaims")


def test_idle_workers_stop_and_start_again_when_a_client_connects(asleep: Stack) -> None:
    def limit(seconds: int) -> int:
        """Sets another idle limit, and returns the former one."""
        config = ("configmap", "dask-scaling")
        found = json.loads(json.loads(asleep.kubectl("get", *config, "--output", "json"))["data"]["settings"])
        data = {"data": {"settings": json.dumps({**found, "idle": seconds})}}
        asleep.kubectl("patch", *config, "--type=merge", "--patch", json.dumps(data))
        return found["idle"]

    assert limit(3) == 3600
    workers = ("get", "pods", "--selector", "component=worker", "--output", "name")
    until(lambda: not asleep.kubectl(*workers), 300)
    applied = asleep.applied
    assert re.search(r"Resources:\n +\d+ unchanged\n", asleep.up())
    assert not asleep.kubectl(*workers), "an `up` that changes nothing woke them"
    limit(3600)
    asleep.applied = applied
    facts = asleep.outputs()["client"]
    assert wake(facts) == 1
    with connection.Client(facts) as client:
        assert client.submit(sum, range(10)).result(timeout=120) == 45


def test_up_says_which_quota_limit_volume_image_or_node_keeps_pods_from_starting(asleep: Stack) -> None:
    groups = [
        {"name": "costly", "replicas": 1, "resources": {"requests": {"ephemeral-storage": "2Ti"}}},
        {"name": "large", "replicas": 1, "resources": {"requests": {"cpu": 500}}},
        {"name": "lost", "replicas": 1, "image": {"repository": "example.invalid/dask", "tag": "1"}},
        {"name": "tiny", "replicas": 1, "resources": {"requests": {"memory": "16Mi"}}},
    ]
    limit = {"limits": [{"type": "Container", "min": {"memory": "32Mi"}}]}
    space = {"name": "least", "namespace": SPACE}
    asleep.cluster.apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": space, "spec": limit}, namespace=SPACE)
    asleep.kubectl("create", "quota", "few", "--hard=requests.ephemeral-storage=1Ti")
    asleep.cluster.kubectl("delete", "storageclass", objects.CLASS)
    try:
        # Jupyter and its volume are new.
        asleep.change(
            exposed(asleep) | {"workers": ASLEEP["workers"], "values": {"additional_worker_groups": groups}, "wait": 30}
        )
        said = asleep.up(succeeds=False)
    finally:
        asleep.kubectl("delete", "quota/few", "limits/least")
        asleep.cluster.apply(objects.STORAGE_CLASS)
    for text in (
        r"dask-costly cannot create pods: .*exceeded quota: few",
        r"dask-tiny cannot create pods: .*minimum memory usage per Container is 32Mi, but request is 16Mi",
        r"dask-large-\S+ cannot be scheduled: .*Insufficient cpu",
        r"dask-lost-\S+: the image example.invalid/dask:1 cannot be pulled",
        r"the volume dask-jupyter is not bound; check that the cluster has a default StorageClass",
    ):
        assert re.search(text, said), said


def test_up_succeeds_with_enough_workers_and_says_which_are_missing_and_why(asleep: Stack) -> None:
    groups = [{"name": "large", "replicas": 1, "resources": {"requests": {"cpu": 500}}}]
    workers = ASLEEP["workers"] | {"atLeast": 1}
    asleep.change(exposed(asleep) | {"workers": workers, "values": {"additional_worker_groups": groups}, "wait": 120})
    said = asleep.up()
    assert re.search(r"workers +1 running of at most 2, ", said), said
    assert re.search(r"missing +1 of 2 workers, which join later; dask-large-\S+ .*Insufficient cpu", said), said


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
            "data": {"size": "1Gi", "className": objects.SHARED},
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
    names = [line.split()[0] for line in outputs["check"].splitlines()]
    assert names == ["workers", "environment", "ports", "data", "job", "imports", "jupyter"]
    with plain.connect() as client:
        assert client.scheduler.address.startswith("tcp://")
        addresses = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
        assert [each.split(":")[0] for each in addresses] == ["tcp"]
        assert client.submit(sum, range(10)).result(timeout=60) == 45
    assert "dask-tls" not in plain.cluster.kubectl(*space, "get", "secrets,deployments,configmaps", "-o", "json")

    said = plain.destroyed()
    assert "kept because of jupyter.keep: 10Gi of notebooks" in said
    assert "kept because data.delete is false: 1Gi; delete with: kubectl --namespace ours delete" in said
    left = plain.cluster.kubectl(*space, "get", "deployments,services,pvc,secrets", "-o", "name")
    assert left.split() == ["persistentvolumeclaim/dask-data", "persistentvolumeclaim/dask-jupyter"]
