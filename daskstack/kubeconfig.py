"""Finds a context in kubeconfigs, as kubectl does with the files in $KUBECONFIG, and the cluster that it names."""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

# How kubectl logs in to GKE as a Google user: the `exec` of a kubeconfig's user.
GOOGLE_LOGIN: dict[str, Any] = {
    "apiVersion": "client.authentication.k8s.io/v1beta1",
    "command": "gke-gcloud-auth-plugin",
    "interactiveMode": "Never",
    "provideClusterInfo": True,
    "installHint": "https://cloud.google.com/kubernetes-engine/docs/how-to/cluster-access-for-kubectl",
}


class KubeconfigError(ValueError):
    """No file has the context, or it needs several files. The message contains the remedy."""


class Cluster(NamedTuple):
    """What a kubeconfig says about a cluster; both are empty if it says nothing."""

    server: str
    authority: str
    """A hash of the certificate that signs the server's. It stays if the server's address changes."""

    def is_same(self, other: "Cluster") -> bool:
        """Whether both are one cluster. Clusters behind one proxy share its authority, but not the URL's path."""
        if self.server == other.server:
            return True
        shared = bool(self.authority) and self.authority == other.authority
        return shared and urlsplit(self.server).path == urlsplit(other.server).path


def files(configured: str | None, environ: Mapping[str, str] = os.environ) -> list[Path]:
    """The files that kubectl reads: `configured`, or those in $KUBECONFIG, or its default."""
    listed = [configured] if configured else [each for each in environ.get("KUBECONFIG", "").split(os.pathsep) if each]
    return [Path(os.path.expanduser(each)).absolute() for each in listed or ["~/.kube/config"]]


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long
        return False


def locate(paths: Sequence[Path], context: str = "") -> tuple[Path, str]:
    """The file that has the context, and its name; without `context`, the current one, or "" if there is none.

    As in kubectl, the first file that names a context, cluster or user decides. Raises KubeconfigError.
    """
    contents = {path: _content(path) for path in paths}
    currents = (content.get("current-context") for content in contents.values())
    name = context or next((each for each in currents if isinstance(each, str) and each), "")
    if len(paths) == 1 or not name:
        return next(filter(is_file, paths), paths[0]), name

    def holder(kind: str, wanted: Any) -> Path | None:
        return next((path for path, content in contents.items() if _entry(content, kind, wanted)), None)

    file = holder("contexts", name)
    if file is None:
        listed = ", ".join(f"{path}{'' if is_file(path) else ' (missing)'}" for path in paths)
        raise KubeconfigError(
            f"no file in $KUBECONFIG has context {name}: {listed}; `kubectl config get-contexts` lists them"
        )
    for key, wanted in _entry(contents[file], "contexts", name).items():
        if key in ("cluster", "user") and wanted and (other := holder(f"{key}s", wanted)) != file:
            raise KubeconfigError(
                f"context {name} of {file} uses {key} {wanted} of {other or 'no file'}; write all three into one file:"
                f" `kubectl config view --flatten --minify --context {name} > FILE`, and set kubeconfig to FILE"
            )
    return file, name


def cluster(path: str, context: str) -> Cluster:
    """The cluster of a context, or of the current one if `context` is empty."""
    content = _content(Path(path))
    entry = _entry(
        content, "clusters", _entry(content, "contexts", context or content.get("current-context")).get("cluster")
    )
    try:
        authority = base64.b64decode(str(entry.get("certificate-authority-data") or ""))
        if not authority and entry.get("certificate-authority"):
            authority = (Path(path).parent / str(entry["certificate-authority"])).read_bytes()
    except (OSError, ValueError):
        authority = b""
    server = entry.get("server")
    return Cluster(
        server if isinstance(server, str) else "", hashlib.sha256(authority).hexdigest()[:16] if authority else ""
    )


def difference(path: str, context: str, first: Cluster) -> str:
    """Why the context leads to another cluster than `first`, with the remedy; empty if it does not."""
    now = cluster(path, context)
    if first.is_same(now):
        return ""
    found = f"leads to {now.server} now" if now.server else "is missing now"
    return (
        f"context {context} of {path} {found}, but this stack is on {first.server}: restore the context, or, if that"
        " cluster no longer exists, forget the stack with `pulumi stack rm --force`"
    )


def _content(path: Path) -> dict[str, Any]:
    """The content, or an empty one if the file is missing or malformed, which kubectl reports."""
    import yaml  # takes time, and most callers do not need it

    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, TypeError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _entry(content: Mapping[str, Any], kind: str, name: Any) -> dict[str, Any]:
    """The entry of a list such as `contexts`; its content is under the list's name in the singular."""
    entries = content.get(kind)
    for each in entries if isinstance(entries, list) else []:
        if isinstance(each, dict) and name and each.get("name") == name:
            found = each.get(kind.removesuffix("s"))
            return found if isinstance(found, dict) and found else {"name": name}
    return {}
