"""Access files for a stack in Kubernetes, and what the owner's kubectl is told; a function replaces the cluster."""

import base64
import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from daskstack import access_file, certificates, engine, kubectl, people, status_and_logs
from daskstack.access_file import AccessError
from daskstack.client_output import Tls
from daskstack.status_and_logs import RemoteError
from tests.client_outputs import kubernetes_client

OWNERS = {"server": "https://k", "certificate-authority-data": "QQ==", "proxy-url": "http://owner:secret@p"}
WORKERS = ["dask-worker", "dask-worker-big"]
AUTHORITY = certificates.new_authority("people of dask k")


class Cluster:
    """Keeps objects by kind and name. `log` has the changes, and what the scheduler was told to close."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {"configmap": {}, "serviceaccount": {}, "secret": {}}
        self.objects |= {"role": {}, "rolebinding": {}}
        self.log: list[str] = []
        self.scheduler_runs = True

    def answer(self, command: Sequence[str], *words: str, given: str = "") -> str:
        assert command == ["kubectl", "--namespace", "dask"]
        verb, *rest = words
        return getattr(self, verb)(*rest, given=given)

    def config(self, *words: str, given: str) -> str:
        assert {"--raw", "--minify", "--flatten"} <= set(words)
        return json.dumps({"clusters": [{"cluster": OWNERS}], "users": [{"user": {"token": "owner's"}}]})

    def get(self, kind: str, *words: str, given: str) -> str:
        if kind == "service":
            return json.dumps({"metadata": {"uid": f"uid of {words[0]}"}})
        if kind == "deployments":
            workers = [{"metadata": {"name": name, "annotations": {"dask/replicas": "1"}}} for name in WORKERS]
            return json.dumps({"items": [{"metadata": {"name": "dask-scheduler"}}, *workers]})
        found = self.objects[kind.removesuffix("s")]
        items = {"items": list(found.values())} if found else {}
        wanted = items if words[0].startswith("-") else found.get(words[0])
        return json.dumps(wanted) if wanted else ""  # as with --ignore-not-found

    def apply(self, *words: str, given: str) -> str:
        for each in json.loads(given)["items"]:
            assert each["metadata"]["ownerReferences"][0]["uid"] == "uid of dask-scheduler"
            kind, name = each["kind"].lower(), each["metadata"]["name"]
            token = {"token": base64.b64encode(f"token of {name}".encode()).decode()}
            kept = {"data": self.objects[kind].get(name, {}).get("data", {})} if kind == "configmap" else {}
            self.objects[kind][name] = each | kept | ({"data": token} if kind == "secret" else {})
        return ""

    def patch(self, *words: str, given: str) -> str:
        data = json.loads(words[-1])["data"]
        self.objects["configmap"][words[1]]["data"] |= data
        self.log += [f"{serial} is revoked" for serial in data]
        return ""

    def delete(self, kinds: str, *words: str, given: str) -> str:
        label, _, name = words[1].partition("=")
        kept = words[3].removeprefix("metadata.name!=") if len(words) > 2 else None
        for kind in (each.removesuffix("s") for each in kinds.split(",")):
            for each in list(self.objects[kind].values()):
                if each["metadata"].get("labels", {}).get(label) == name and each["metadata"]["name"] != kept:
                    del self.objects[kind][each["metadata"]["name"]]
                    self.log.append(f"{kind} is deleted")
        return ""

    def close(self, outputs: object, serials: Sequence[str]) -> int:
        if not self.scheduler_runs:
            raise RemoteError("no scheduler")
        self.log += [f"{serial} is closed" for serial in serials]
        return len(serials)


@pytest.fixture
def outputs() -> dict[str, Any]:
    tls = Tls(authority="the cluster's", certificate="owner's", key="owner's")
    access = {"kubeconfig": "/owner's", "context": "owner's", "server": "https://k", "authority": "a"}
    client = kubernetes_client(tls=tls, kubernetes=access, jupyter="dask-jupyter:80")
    return {"client": client, "authority": asdict(AUTHORITY)}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outputs: dict[str, Any]) -> Cluster:
    found = Cluster()

    @contextlib.contextmanager
    def command(access: object) -> Iterator[list[str]]:
        yield ["kubectl"]

    monkeypatch.setattr(kubectl, "kubectl", command)
    monkeypatch.setattr(kubectl, "answer", found.answer)
    monkeypatch.setattr(status_and_logs, "revoke", found.close)
    monkeypatch.setattr(engine, "cluster", lambda stack: outputs)
    monkeypatch.chdir(tmp_path)
    return found


def serial(file: str) -> str:
    certificate = access_file.read(Path(file)).client.tls.certificate
    return f"{x509.load_pem_x509_certificate(certificate.encode()).serial_number:x}"


def listed(capsys: pytest.CaptureFixture) -> list[str]:
    capsys.readouterr()
    people.show("k")
    return capsys.readouterr().out.splitlines()


def test_a_new_access_file_has_keys_of_its_own_and_none_of_the_owners(cluster: Cluster, tmp_path: Path) -> None:
    people.add("k", "alice", None)
    text = (tmp_path / "alice.json").read_text()
    assert "owner" not in text and AUTHORITY.key.splitlines()[1] not in text
    found = access_file.read(tmp_path / "alice.json")
    assert (found.person, found.stack, found.client.tls.authority) == ("alice", "k", "the cluster's")
    own, authority = (
        x509.load_pem_x509_certificate(each.encode()) for each in (found.client.tls.certificate, AUTHORITY.certificate)
    )
    own.verify_directly_issued_by(authority)
    assert own.subject.rfc4514_string() == "CN=person:alice"
    assert own.not_valid_after_utc == authority.not_valid_after_utc
    config = json.loads(found.client.kubernetes["kubeconfig"])
    assert config["users"][0]["user"] == {"token": f"token of dask-person-alice-{serial('alice.json')[:8]}"}
    assert config["clusters"][0]["cluster"] == {"server": "https://k", "certificate-authority-data": "QQ=="}


def test_a_persons_role_names_the_services_of_the_release(cluster: Cluster, outputs: dict[str, Any]) -> None:
    people.add("k", "alice", None)
    rules = cluster.objects["role"]["dask-person"]["rules"]
    assert rules[0]["resourceNames"] == ["dask-scheduler", "dask-webui", "dask-jupyter"]
    assert {each for rule in rules for each in rule["resources"]} == {"services", "pods", "pods/portforward"}
    outputs["client"] = kubernetes_client(sleeps=True)
    people.add("k", "bob", None)
    *_, scaling = cluster.objects["role"]["dask-person"]["rules"]
    assert (scaling["resources"], scaling["resourceNames"]) == (["deployments/scale"], WORKERS)


def test_a_google_user_gets_the_role_and_the_file_has_no_token(cluster: Cluster, outputs: dict[str, Any]) -> None:
    outputs["kubeconfig"] = "of the stack's own GKE cluster"
    with pytest.raises(AccessError, match="accepts only logins of Google users: add, for example, --google alice@exam"):
        people.add("k", "alice", None)
    with pytest.raises(AccessError, match="'alice' is not an e-mail address of a Google user"):
        people.add("k", "alice", None, google="alice")
    assert not any(cluster.objects.values())
    people.add("k", "alice", None, google="alice@example.com")
    for _ in range(2):
        [user] = json.loads(access_file.read(Path("alice.json")).client.kubernetes["kubeconfig"])["users"]
        assert user["user"]["exec"]["command"] == "gke-gcloud-auth-plugin" and "token" not in user["user"]
        [subject] = cluster.objects["rolebinding"]["dask-person-alice"]["subjects"]
        assert (subject["kind"], subject["name"]) == ("User", "alice@example.com")
        assert cluster.objects["secret"] == {}
        people.renew("k", "alice", None)


def test_keys_are_on_the_list_before_the_scheduler_is_told_and_the_account_goes_last(cluster: Cluster) -> None:
    people.add("k", "alice", None)
    people.add("k", "bob", None)
    number = serial("alice.json")
    cluster.log.clear()
    people.revoke("k", "alice")
    assert cluster.log == [
        f"{number} is revoked",
        "rolebinding is deleted",
        "secret is deleted",
        f"{number} is closed",
        "serviceaccount is deleted",
    ]
    assert list(cluster.objects["serviceaccount"]) == ["dask-person-bob"]


def test_revoking_can_be_repeated_if_the_scheduler_did_not_answer(
    cluster: Cluster, capsys: pytest.CaptureFixture
) -> None:
    people.add("k", "alice", None)
    cluster.scheduler_runs = False
    with pytest.raises(RemoteError, match="the keys are revoked, but the scheduler has not confirmed"):
        people.revoke("k", "alice")
    assert len(listed(capsys)) == 1
    cluster.scheduler_runs = True
    for _ in range(2):
        people.revoke("k", "alice")
        assert re.match(r"alice has no access any more; connections ended: \d", capsys.readouterr().out)
        assert listed(capsys) == []
    with pytest.raises(AccessError, match="bob has no access; access has: nobody"):
        people.revoke("k", "bob")


def test_an_interrupted_add_can_be_repeated_and_a_renewed_file_replaces_the_former(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write = access_file.write

    def interrupted(path: Path, access: access_file.Access) -> None:
        write(path.with_name("lost.json"), access)
        raise KeyboardInterrupt

    monkeypatch.setattr(access_file, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        people.add("k", "dave", None)
    monkeypatch.setattr(access_file, "write", write)
    assert listed(capsys) == ["dave         incomplete: run `daskstack access add dave` again"]
    people.add("k", "dave", None)
    first = serial("dave.json")
    assert cluster.log == [f"{serial('lost.json')} is revoked", "secret is deleted", f"{serial('lost.json')} is closed"]
    with pytest.raises(AccessError, match="dave already has access; `daskstack access renew dave`"):
        people.add("k", "dave", "other.json")
    assert not (tmp_path / "other.json").exists()

    cluster.log.clear()
    people.renew("k", "dave", None)
    assert serial("dave.json") != first
    assert cluster.log == [f"{first} is revoked", "secret is deleted", f"{first} is closed"]
    assert list(cluster.objects["secret"]) == [f"dask-person-dave-{serial('dave.json')[:8]}"]
    with pytest.raises(AccessError, match="erin has no access; access has: dave"):
        people.renew("k", "erin", None)


def test_the_list_names_people_with_keys_from_before_a_renewal(
    cluster: Cluster, outputs: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    people.add("k", "alice", None)
    assert listed(capsys) == [f"alice        until {AUTHORITY.expires}"]
    outputs["authority"] = asdict(certificates.new_authority("another"))
    people.add("k", "bob", None)
    assert listed(capsys) == [
        "alice        has keys from before a renewal: run `daskstack access renew alice`",
        f"bob          until {certificates.Identity(**outputs['authority']).expires}",
    ]


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("Alice", {}, "'Alice' is not a name for a person in Kubernetes"),
        ("a_b", {}, "is not a name for a person in Kubernetes"),
        ("a-", {}, "is not a name for a person in Kubernetes"),
        ("alice", {"client": kubernetes_client(scheduler="tcp://dask-scheduler:8786")}, "personal access needs TLS"),
        ("alice", {"authority": None}, "an older version of daskstack built the stack: run `make up` first"),
    ],
)
def test_what_cannot_have_access_is_refused_before_anything_changes(
    cluster: Cluster, outputs: dict[str, Any], tmp_path: Path, name: str, changed: dict[str, Any], said: str
) -> None:
    outputs |= changed
    with pytest.raises(AccessError, match=said):
        people.add("k", name, None)
    assert os.listdir(tmp_path) == [] and not any(cluster.objects.values())
