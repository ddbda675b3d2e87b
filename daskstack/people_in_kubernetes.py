"""Keys of people for stacks in Kubernetes: certificates that this computer signs, and ServiceAccounts.

Kubernetes remembers the people: their ServiceAccounts have the serial numbers of their certificates. A ConfigMap, which
the scheduler's pod mounts, has those that are revoked. All these objects belong to the scheduler's Service, so
Kubernetes deletes them with the release.
"""

import base64
import contextlib
import hashlib
import json
import re
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from daskstack import kubectl, status_and_logs
from daskstack.access_file import AccessError
from daskstack.client_output import KubernetesAccess, KubernetesClient, Tls
from daskstack.kubeconfig import GOOGLE_LOGIN
from daskstack.person import Person
from daskstack.status_and_logs import RemoteError
from daskstack.tunnel import TunnelError

CONNECTIONS = "connections"
ACCOUNT = r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?"  # part of an object's name
OWNER = "dask-scheduler"  # a Service
REVOKED = "dask-revoked"  # a ConfigMap; each key is a serial number, each value a person's name
PERSON = "dask-person"  # the Role, the label of a person's objects, and the first part of their names
# Annotations of a ServiceAccount.
ISSUED = "dask/issued"  # serial numbers of all its certificates that are not revoked, the newest last
CONFIRMED = "dask/confirmed"  # that of the last access file that was written
AUTHORITY = "dask/authority"  # a hash of the certificate that signed it
GOOGLE = "dask/google"  # the e-mail address of the Google user with whose login this person reaches Kubernetes
WAIT = 30  # seconds for Kubernetes to make a token


def issue(outputs: Mapping[str, Any], command: str, name: str, google: str | None) -> tuple[KubernetesClient, str]:
    """What a new access file contains, and its last day. `command` is `add` or `renew`.

    The person reaches Kubernetes with the login of the user `google`, or else with a token in the file.
    """
    from daskstack import certificates

    client, authority = outputs["client"], certificates.Identity(**_authority(outputs))
    with in_namespace(client) as namespace:
        accounts = namespace.accounts()
        notes = accounts.get(name)
        if command == "renew" and notes is None:
            raise AccessError(_unknown(name, accounts))
        if command == "add" and notes and CONFIRMED in notes:
            raise AccessError(f"{name} already has access; `daskstack access renew {name}` replaces the access file")
        if not re.fullmatch(ACCOUNT, name):
            raise AccessError(
                f"{name!r} is not a name for a person in Kubernetes; write up to 40 of a-z, 0-9 and -, e.g. alice"
            )
        google = google or (notes or {}).get(GOOGLE)
        if outputs.get("kubeconfig") and not google:
            raise AccessError(
                "the API server of the stack's GKE cluster accepts only logins of Google users: add, for example,"
                f" --google {name}@example.com"
            )
        made = certificates.sign(authority, f"person:{name}")
        notes = {**(notes or {}), ISSUED: " ".join([*_issued(notes), made.serial])} | _google(google)
        workers = namespace.workers() if client.sleeps else []
        objects = [role(client, workers), account(name, notes), binding(name, google)]
        namespace.apply(*objects, *([] if google else [token_secret(name, made.serial)]))
        user = {"exec": GOOGLE_LOGIN} if google else {"token": namespace.token(name, made.serial)}
        config = kubeconfig(namespace.cluster(), client.namespace, user)
    tls = Tls(authority=client.tls.authority, certificate=made.certificate, key=made.key)
    return replace(client, tls=tls, kubernetes=KubernetesAccess(kubeconfig=config)), made.expires


def confirm(outputs: Mapping[str, Any], name: str) -> None:
    """The access file is written: revokes the person's former keys."""
    with in_namespace(outputs["client"]) as namespace:
        notes = namespace.accounts()[name]
        *former, new = _issued(notes)
        if former:
            namespace.revoke(name, former)
            words = ["--selector", f"{PERSON}={name}", "--field-selector", f"metadata.name!={_secret(name, new)}"]
            namespace.call("delete", "secrets", *words)
            _tell(outputs, former)
        authority = _hash(_authority(outputs)["certificate"])
        notes = {ISSUED: new, CONFIRMED: new, AUTHORITY: authority} | _google(notes.get(GOOGLE))
        namespace.apply(account(name, notes))


def revoke(outputs: Mapping[str, Any], name: str) -> int:
    """Returns how many connections it has ended. Deletes the ServiceAccount last, so that it can be repeated."""
    with in_namespace(outputs["client"]) as namespace:
        accounts = namespace.accounts()
        former = [serial for serial, whose in namespace.revoked().items() if whose == name]
        if name not in accounts and not former:
            raise AccessError(_unknown(name, accounts))
        issued = _issued(accounts.get(name))
        namespace.revoke(name, issued)
        namespace.call("delete", "rolebindings,secrets", "--selector", f"{PERSON}={name}")
        ended = _tell(outputs, [*former, *issued])
        namespace.call("delete", "serviceaccounts", "--selector", f"{PERSON}={name}")
        return ended


def people(outputs: Mapping[str, Any]) -> list[Person]:
    from daskstack import certificates

    authority = certificates.Identity(**_authority(outputs))
    with in_namespace(outputs["client"]) as namespace:
        accounts = namespace.accounts()
    found = {name: _state(notes, _hash(authority.certificate)) for name, notes in accounts.items()}
    # A certificate ends with its authority's.
    return [Person(name=name, state=state, expires=authority.expires) for name, state in found.items()]


def _state(notes: Mapping[str, str], authority: str) -> Any:
    if CONFIRMED not in notes:
        return "incomplete"
    return "valid" if notes.get(AUTHORITY) == authority else "outdated"


def _authority(outputs: Mapping[str, Any]) -> dict[str, str]:
    if not outputs["client"].scheduler.startswith("tls://"):
        raise AccessError("personal access needs TLS: it does not exist with dask.tls: false or the official chart")
    if not outputs.get("authority"):
        raise AccessError("an older version of daskstack built the stack: run `make up` first")
    return outputs["authority"]


def _google(user: str | None) -> dict[str, str]:
    return {GOOGLE: user} if user else {}


def _issued(notes: Mapping[str, str] | None) -> list[str]:
    return (notes or {}).get(ISSUED, "").split()


def _unknown(name: str, accounts: Iterable[str]) -> str:
    return f"{name} has no access; access has: {', '.join(accounts) or 'nobody'}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _tell(outputs: Mapping[str, Any], serials: Sequence[str]) -> int:
    """Makes the running scheduler close connections; a pod sees a changed ConfigMap only after a minute or more."""
    try:
        return status_and_logs.revoke(outputs, serials)
    except RemoteError as error:
        raise RemoteError(
            f"the keys are revoked, but the scheduler has not confirmed that it closed their connections: run the"
            f" command again once the scheduler runs. {error}"
        ) from None


@contextlib.contextmanager
def in_namespace(client: KubernetesClient) -> Generator["Namespace"]:
    with kubectl.kubectl(client.kubernetes) as command:
        yield Namespace([*command, "--namespace", client.namespace])


@dataclass(frozen=True)
class Namespace:
    """The stack's namespace, through the owner's kubectl."""

    command: list[str]

    def call(self, *words: str, given: str = "") -> str:
        return kubectl.answer(self.command, *words, given=given)

    def read(self, *words: str) -> dict[str, Any]:
        """An object or a list as JSON; empty if an object is missing or a list would be empty."""
        return json.loads(self.call("get", *words, "--ignore-not-found", "--output", "json") or "{}")

    def accounts(self) -> dict[str, dict[str, str]]:
        """The annotations of each person's ServiceAccount by the person's name."""
        found = [each["metadata"] for each in self.read("serviceaccounts", "--selector", PERSON).get("items", [])]
        return {each["labels"][PERSON]: each.get("annotations", {}) for each in found}

    def revoked(self) -> dict[str, str]:
        return self.read("configmap", REVOKED).get("data", {})

    def revoke(self, name: str, serials: Sequence[str]) -> None:
        self.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": REVOKED}})
        data = json.dumps({"data": dict.fromkeys(serials, name)})
        self.call("patch", "configmap", REVOKED, "--type", "merge", "--patch", data)

    def workers(self) -> list[str]:
        found = [each["metadata"] for each in self.read("deployments", "--selector", "release=dask").get("items", [])]
        return [each["name"] for each in found if kubectl.REPLICAS in each.get("annotations", {})]

    def cluster(self) -> dict[str, Any]:
        """The cluster's entry in the owner's kubeconfig, with the authority's certificate as text."""
        view = ("config", "view", "--raw", "--minify", "--flatten", "--output", "json")
        return json.loads(self.call(*view))["clusters"][0]["cluster"]

    def apply(self, *objects: dict[str, Any]) -> None:
        """Creates or changes objects, which the scheduler's Service owns."""
        service = json.loads(self.call("get", "service", OWNER, "--output", "json"))
        owner = {"apiVersion": "v1", "kind": "Service", "name": OWNER, "uid": service["metadata"]["uid"]}
        items = [each | {"metadata": {**each["metadata"], "ownerReferences": [owner]}} for each in objects]
        listed = {"apiVersion": "v1", "kind": "List", "items": items}
        self.call("apply", "--filename", "-", given=json.dumps(listed))

    def token(self, name: str, serial: str) -> str:
        """Waits until Kubernetes has filled the Secret."""
        deadline = time.monotonic() + WAIT
        while "token" not in (data := self.read("secret", _secret(name, serial)).get("data", {})):
            if time.monotonic() > deadline:
                raise TunnelError(f"Kubernetes has made no token for {name} within {WAIT} s: run the command again")
            time.sleep(0.2)
        return base64.b64decode(data["token"]).decode()


def role(client: KubernetesClient, sleeping: Sequence[str]) -> dict[str, Any]:
    """What `kubectl port-forward service/...` needs, and for `sleeping` Deployments, what starts their workers.

    Kubernetes cannot restrict pods by their Service, and names of pods change.
    """
    urls = [client.scheduler, client.dashboard, *([f"//{client.jupyter}"] if client.jupyter else [])]
    services = [urlsplit(url).hostname for url in urls]
    rules: list[dict[str, Any]] = [
        {"apiGroups": [""], "resources": ["services"], "resourceNames": services, "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
        # `get` opens a WebSocket, as kubectl does since 1.31.
        {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["create", "get"]},
    ]
    if sleeping:
        scaled = {"resources": ["deployments/scale"], "resourceNames": list(sleeping), "verbs": ["get", "patch"]}
        rules += [
            {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list"]},
            {"apiGroups": ["apps"], **scaled},
        ]
    return _rbac("Role", {"name": PERSON}, rules=rules)


def account(name: str, notes: Mapping[str, str]) -> dict[str, Any]:
    metadata = _metadata(name) | {"annotations": dict(notes)}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata, "automountServiceAccountToken": False}


def binding(name: str, google: str | None) -> dict[str, Any]:
    group = {"apiGroup": "rbac.authorization.k8s.io"}
    subject = {"kind": "ServiceAccount", "name": f"{PERSON}-{name}"}
    if google:
        subject = group | {"kind": "User", "name": google}
    return _rbac("RoleBinding", _metadata(name), roleRef=group | {"kind": "Role", "name": PERSON}, subjects=[subject])


def token_secret(name: str, serial: str) -> dict[str, Any]:
    """Kubernetes writes a token into it, which is valid until the Secret is deleted."""
    metadata = _metadata(name) | {
        "name": _secret(name, serial),
        "annotations": {"kubernetes.io/service-account.name": f"{PERSON}-{name}"},
    }
    return {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token", "metadata": metadata}


def kubeconfig(cluster: Mapping[str, Any], namespace: str, user: Mapping[str, Any]) -> str:
    """The text of a kubeconfig for this user. Of the owner's cluster, it has only what verifies the server."""
    kept = ("server", "certificate-authority-data", "tls-server-name")
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "dask", "cluster": {key: cluster[key] for key in kept if key in cluster}}],
        "users": [{"name": "person", "user": user}],
        "contexts": [{"name": "dask", "context": {"cluster": "dask", "user": "person", "namespace": namespace}}],
        "current-context": "dask",
    }
    return json.dumps(config, indent=1)


def _secret(name: str, serial: str) -> str:
    return f"{PERSON}-{name}-{serial[:8]}"


def _metadata(name: str) -> dict[str, Any]:
    return {"name": f"{PERSON}-{name}", "labels": {PERSON: name}}


def _rbac(kind: str, metadata: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata, **rest}
