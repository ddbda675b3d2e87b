"""People with access files of their own use a stack in Kubernetes; the owner takes access back."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import daskstack
from daskstack import access_file, certificates, people_in_kubernetes
from daskstack.engine import PROJECT
from daskstack.route import way_to
from daskstack.tunnel import TunnelError
from tests.client_outputs import kubernetes_client
from tests.kubernetes.release import STACK, Stack
from tests.kubernetes.support import Cluster, until
from tests.tls import accepts
from tests.work import Work

pytestmark = pytest.mark.timeout(1200)

# What `kubectl auth can-i` denies to people.
DENIED = (
    *("list pods --namespace=kube-system", "get services/dask-packages", "list services", "get secrets"),
    *("get configmaps", "get deployments", "patch deployments/dask-worker", "create pods", "delete pods"),
    *("get pods --subresource=log", "create pods --subresource=exec", "get pods --subresource=exec"),
    *("create pods --subresource=attach", "update pods --subresource=portforward", "create rolebindings"),
    "create serviceaccounts --subresource=token",
)


def said(stack: Stack, *words: str, succeeds: bool = True) -> str:
    """What the owner's `daskstack` prints."""
    command = [str(PROJECT / ".venv/bin/daskstack"), *words]
    environ = stack.environ | {"STACK": STACK, "PYTHONPATH": str(PROJECT)}  # not the package that .venv refers to
    done = subprocess.run(
        command, cwd=stack.folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert (done.returncode == 0) == succeeds, done.stdout
    return done.stdout


def give(stack: Stack, folder: Path, *names: str) -> list[Path]:
    """New access files of these people, in a folder."""
    files = [folder / f"{name}.json" for name in names]
    for name, file in zip(names, files, strict=True):
        said(stack, "access", "add", name, "--output", str(file))
    return files


@pytest.fixture
def owned(built: Stack) -> Iterator[Stack]:
    """The stack, to which nobody has access before and after the test."""
    yield built
    for line in said(built, "access", "list").splitlines():
        said(built, "access", "revoke", line.split()[0])


def busy(stack: Stack) -> set[str]:
    """The people with one connection and unfinished tasks, as `status` shows them."""
    found = re.findall(r"^(\w+) +connections: 1, tasks: (\d+) running, (\d+) waiting$", said(stack, "status"), re.M)
    return {name for name, running, waiting in found if int(running) + int(waiting)}


def accepted(stack: Stack, files: Sequence[Path]) -> list[bool]:
    """Whether the scheduler accepts the certificates of these files, which are tried through the owner's way in."""
    clients = [access_file.read(file).client for file in files]
    with way_to(stack.outputs()["client"], ["dask-scheduler:8786"]) as way:
        return [accepts(f"tls://127.0.0.1:{way.ports[0]}", each.tls.certificate, each.tls.key) for each in clients]


def test_a_revoked_person_is_cut_off_while_computing_and_the_others_work_on(owned: Stack, tmp_path: Path) -> None:
    files = give(owned, tmp_path, "alice", "bob", "carol")
    started = "jsonpath={.items[*].metadata.uid} {.items[*].status..restartCount}"
    pods = ("get", "pods", "--selector", "component in (scheduler,worker)", "--output", started)
    alice, bob, carol = working = [Work(daskstack.connect(str(file)), starts=False) for file in files]
    try:
        for each in working:
            each.thread.start()
        for each in working:
            each.check_progress()
        until(lambda: busy(owned) == {"alice", "bob", "carol"})
        assert [line.split()[:2] for line in said(owned, "access", "list").splitlines()] == [
            ["alice", "until"],
            ["bob", "until"],
            ["carol", "until"],
        ]
        before = owned.kubectl(*pods)
        said_then = said(owned, "access", "revoke", "carol")
        assert re.fullmatch(r"carol has no access any more; connections ended: [1-9]\d*\n", said_then)
        until(lambda: carol.client.status != "running", 30)
        assert accepted(owned, files) == [True, True, False]
        with pytest.raises(TunnelError, match="Kubernetes refuses the port-forward; an access file may have been"):
            daskstack.connect(str(files[2]))
        for each in (alice, bob):
            each.check_progress()
            assert each.client.status == "running" and each.client._way.fault() == ""
        until(lambda: busy(owned) == {"alice", "bob"})
        assert carol.client.status != "running"
        assert owned.kubectl(*pods) == before, "nothing restarts"
    finally:
        for each in working:
            each.end()
    assert "carol has no access any more" in said(owned, "access", "revoke", "carol"), "as after an interruption"
    assert "carl has no access; access has: alice, bob" in said(owned, "access", "revoke", "carl", succeeds=False)

    hers = certificates.Identity(access_file.read(files[2]).client.tls.certificate, "").serial
    owned.kubectl("annotate", "pod", "--selector", "component=scheduler", "--overwrite", f"seen={hers}")  # updates it
    until(lambda: hers in owned.kubectl("exec", "deploy/dask-scheduler", "--", "ls", "/etc/dask-revoked"), 120)


def test_a_persons_token_opens_the_releases_ports_and_permits_nothing_else(owned: Stack, tmp_path: Path) -> None:
    [file] = give(owned, tmp_path, "alice")
    text = access_file.read(file).client.kubernetes["kubeconfig"]
    [user] = json.loads(text)["users"]
    assert list(user["user"]) == ["token"]
    config = tmp_path / "kubeconfig"
    config.write_text(text)

    def kubectl(*words: str) -> subprocess.CompletedProcess[str]:
        command = [owned.cluster.programs / "kubectl", "--kubeconfig", config, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    services = [f"get services/dask-{each}" for each in ("scheduler", "webui", "jupyter")]
    for allowed in (*services, "list pods", "create pods --subresource=portforward"):
        assert kubectl("auth", "can-i", *allowed.split()).stdout == "yes\n", allowed
    for denied in DENIED:
        assert kubectl("auth", "can-i", *denied.split()).stdout == "no\n", denied
    for refused in (("get", "secrets"), ("exec", "deployment/dask-scheduler", "--", "true")):
        assert "(Forbidden)" in kubectl(*refused).stderr


def test_only_the_scheduler_accepts_certificates_of_people_and_no_pod_can_sign_them(built: Stack) -> None:
    authority = built.outputs()["authority"]
    found = json.loads(built.kubectl("get", "secrets", "--output", "json"))["items"]
    secrets = {each["metadata"]["name"]: b"".join(map(base64.b64decode, each["data"].values())) for each in found}
    certificate, key = authority["certificate"].encode(), authority["key"].encode().splitlines()[1]
    assert {name for name, content in secrets.items() if certificate in content} == {"dask-tls-scheduler"}
    assert not [name for name, content in secrets.items() if key in content]


def test_an_access_file_needs_only_kubectl_and_a_renewed_one_replaces_it(owned: Stack, tmp_path: Path) -> None:
    [file] = give(owned, tmp_path, "frank")
    home, programs = tmp_path / "home", tmp_path / "programs"
    config = home / ".config/daskstack"
    config.mkdir(parents=True)
    programs.mkdir()
    (programs / "kubectl").symlink_to(owned.cluster.programs / "kubectl")
    shutil.copy(file, config / "team.json")
    shutil.copytree(PROJECT / "daskstack", tmp_path / "installed/daskstack")
    environ = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": str(tmp_path / "installed")}
    assert shutil.which("pulumi", path=environ["PATH"]) is None
    program = """
        import sys, urllib.request
        import daskstack

        def main():
            with daskstack.connect("team") as client:
                print(client.submit(sum, [1, 2, 3]).result(60), urllib.request.urlopen(client.dashboard_link).status)
            with daskstack.StackCluster("../frank.json") as cluster, cluster.get_client() as client:
                print(client.submit(sum, [4, 5]).result(60), cluster.name, daskstack.__file__, "pulumi" in sys.modules)

        if __name__ == "__main__":
            main()
    """

    def theirs(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words], cwd=home, env=environ, capture_output=True, text=True, timeout=300
        )

    done = theirs("-c", textwrap.dedent(program))
    assert done.stdout == f"6 200\n9 {STACK} {tmp_path}/installed/daskstack/__init__.py False\n", done.stderr
    done = theirs("-m", "daskstack", "status", "--stack", "team")
    assert re.match(r"scheduler .*, 2 workers\n\S+ +running, .*\n\S+ +running, ", done.stdout), done.stderr
    for words in (["up"], ["put", "x", "y"], ["ssh"]):
        refused = theirs("-m", "daskstack", *words[:1], "--stack", "team", *words[1:])
        assert "team.json is an access file, which does not permit this" in refused.stderr

    again = said(owned, "access", "add", "frank", "--output", str(tmp_path / "other.json"), succeeds=False)
    assert "frank already has access; `daskstack access renew frank` replaces the access file" in again
    former = Path(shutil.copy(file, tmp_path / "former.json"))
    said(owned, "access", "renew", "frank", "--output", str(file))
    assert accepted(owned, [former, file]) == [False, True]
    with daskstack.connect(str(file)) as client:
        assert client.submit(sum, [1, 2]).result(60) == 3


def test_access_ends_with_the_release_even_if_the_namespace_stays(
    kubernetes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Service stands for the release, which owns it."""
    monkeypatch.setenv("PATH", f"{kubernetes.programs}{os.pathsep}{os.environ['PATH']}")
    kubernetes.kubectl("create", "namespace", "visited")
    try:
        kubernetes.kubectl("create", "service", "clusterip", "dask-scheduler", "--tcp=8786", "--namespace=visited")
        access = {"kubeconfig": str(kubernetes.kubeconfig), "context": ""}
        authority = certificates.new_authority("people")
        outputs = {
            "client": kubernetes_client(kubernetes=access, namespace="visited"),
            "authority": {"certificate": authority.certificate, "key": authority.key},
        }
        for name, google in (("alice", None), ("bob", "bob@example.com")):
            people_in_kubernetes.issue(outputs, "add", name, google)
            assert [each.state for each in people_in_kubernetes.people(outputs)][-1] == "incomplete"
            people_in_kubernetes.confirm(outputs, name)
        assert [(each.name, each.state) for each in people_in_kubernetes.people(outputs)] == [
            ("alice", "valid"),
            ("bob", "valid"),
        ]
        kinds = "serviceaccounts,secrets,roles,rolebindings"
        left = ("get", kinds, "--namespace=visited", "--output=name")
        assert kubernetes.kubectl(*left).count("dask-person") == 6
        ask = ("auth", "can-i", "get", "services/dask-scheduler", "--namespace=visited", "--as=bob@example.com")
        assert kubernetes.kubectl(*ask) == "yes\n"
        kubernetes.kubectl("delete", "service", "dask-scheduler", "--namespace=visited")
        until(lambda: "dask-person" not in kubernetes.kubectl(*left), 120)
    finally:
        kubernetes.kubectl("delete", "namespace", "visited", "--wait=false")
