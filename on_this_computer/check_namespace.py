"""Looks before anything is made: the cluster answers, and the namespace is ours to use.

Variables: CLUSTER (JSON, as daskstack.kubectl takes it), NAMESPACE, CREATE (yes: `up` makes it), STACK.
"""

import json
import os
import shutil
import subprocess
import sys

from daskstack.kubectl import kubectl

OLDEST = (1, 28)
WAIT = 60  # seconds for an answer


def main() -> None:
    if not shutil.which("kubectl"):
        sys.exit("error: there is no kubectl on PATH; install it: https://kubernetes.io/docs/tasks/tools")
    with kubectl(json.loads(os.environ["CLUSTER"])) as command:
        command = [*command, "--request-timeout", "20s"]
        version = json.loads(_said([*command, "version", "--output", "json"]))["serverVersion"]
        found = tuple(int("".join(filter(str.isdigit, version[part]))) for part in ("major", "minor"))
        if found < OLDEST:
            sys.exit(f"error: this is Kubernetes {version['gitVersion']}; it has to be 1.28 or newer")
        namespace = os.environ["NAMESPACE"]
        said = _said([*command, "get", "namespace", namespace, "--ignore-not-found", "--output", "json"])
    if problem := refusal(namespace, json.loads(said or "null"), os.environ["CREATE"] == "yes", os.environ["STACK"]):
        sys.exit(f"error: {problem}")
    print(version["gitVersion"])


def _said(command: list[str]) -> str:
    words = " ".join(command[:1] + command[-3:])
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=WAIT)
        problem = (done.stderr.strip() or f"status {done.returncode}") if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"kubectl said nothing within {WAIT} s"
    if problem:
        sys.exit(
            f"error: the cluster does not answer `{words}`: {problem}\n"
            "look at cluster.kubeconfig and cluster.context, and at whether you are logged in"
        )
    return done.stdout


def refusal(namespace: str, found: dict | None, create: bool, stack: str) -> str | None:
    """Why the namespace cannot be used, None where it can."""
    if found is None:
        return None if create else f"there is no namespace {namespace}; make it, or leave out namespace.create: false"
    if create and found["metadata"].get("labels", {}).get("dask-stack") != stack:
        return (
            f"there is a namespace {namespace} already, which this stack did not make and so must not remove; choose"
            " another namespace.name, or write namespace.create: false to use it as it is"
        )
    return None


if __name__ == "__main__":
    main()
