"""Checks, before `up` creates anything, that the cluster answers and that this stack may use the namespace.

Variables: CLUSTER (JSON, as daskstack.kubectl takes it), NAMESPACE, CREATE (yes: `up` creates the namespace), STACK,
NOW (the kubeconfig's present cluster; a change runs the check again).
"""

import json
import os
import shutil
import subprocess
import sys

from daskstack.kubectl import kubectl
from daskstack.tunnel import TunnelError

OLDEST = (1, 28)
WAIT = 60  # seconds for kubectl to answer


def main() -> None:
    try:
        check()
    except TunnelError as error:  # the kubeconfig leads to another cluster
        sys.exit(f"error: {error}")


def check() -> None:
    if not shutil.which("kubectl"):
        sys.exit("error: kubectl is not on PATH; install it: https://kubernetes.io/docs/tasks/tools")
    with kubectl(json.loads(os.environ["CLUSTER"])) as command:
        command = [*command, "--request-timeout", "20s"]
        version = json.loads(_said([*command, "version", "--output", "json"]))["serverVersion"]
        found = tuple(int("".join(filter(str.isdigit, version[part]))) for part in ("major", "minor"))
        if found < OLDEST:
            sys.exit(f"error: the cluster runs Kubernetes {version['gitVersion']}; expected 1.28 or newer: upgrade it")
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
        problem = f"kubectl did not answer within {WAIT} s"
    if problem:
        sys.exit(
            f"error: the cluster does not answer `{words}`: {problem}\n"
            "Check cluster.kubeconfig, cluster.context and your login to the cluster"
        )
    return done.stdout


def refusal(namespace: str, found: dict | None, create: bool, stack: str) -> str | None:
    """Why this stack cannot use the namespace; None if it can."""
    if found is None:
        return None if create else f"namespace {namespace} does not exist; create it, or remove namespace.create: false"
    if create and found["metadata"].get("labels", {}).get("dask-stack") != stack:
        return (
            f"namespace {namespace} already exists, and this stack did not create it; choose another namespace.name,"
            " or set namespace.create: false to use the namespace as it is"
        )
    return None


if __name__ == "__main__":
    main()
