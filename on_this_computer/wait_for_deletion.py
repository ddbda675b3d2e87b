"""Waits, after a release is deleted and before its cluster is, until its load balancers and volumes are deleted.

Kubernetes reports a Service or a volume claim as deleted before it deletes the load balancer or the disk. If the
cluster is deleted in between, these stay and cost money. Prints which volumes are kept. Variables: CLUSTER (JSON, as
daskstack.kubectl takes it), NAMESPACE, RELEASE.
"""

import json
import os
import subprocess
import sys
import time

from daskstack.kubectl import kubectl

WAIT = 300  # seconds
ANSWER = 60  # seconds for kubectl to answer


def main() -> None:
    namespace, release = os.environ["NAMESPACE"], os.environ["RELEASE"]
    end, said = time.monotonic() + WAIT, ""
    with kubectl(json.loads(os.environ["CLUSTER"])) as command:

        def all_of(kind: str, *words: str) -> list[dict]:
            try:
                done = subprocess.run(
                    [*command, "--request-timeout", "20s", "get", kind, *words, "--output", "json"],
                    capture_output=True,
                    text=True,
                    stdin=subprocess.DEVNULL,
                    timeout=ANSWER,
                )
            except subprocess.TimeoutExpired:
                sys.exit(
                    "error: the cluster's remaining resources cannot be listed:"
                    f" `kubectl get {kind}` did not answer within {ANSWER} s"
                )
            if done.returncode:
                sys.exit(f"error: the cluster's remaining resources cannot be listed: {done.stderr.strip()}")
            return json.loads(done.stdout)["items"]

        while True:
            claims = all_of("persistentvolumeclaims", "--namespace", namespace)
            services = all_of("services", "--namespace", namespace, "--selector", f"release={release}")
            waiting = [f"Service {each['metadata']['name']}" for each in services]
            waiting += [f"volume {name}" for name in going(all_of("persistentvolumes"), claims, namespace)]
            if not waiting:
                break
            if time.monotonic() > end:
                sys.exit(f"error: not deleted within {WAIT} s: {', '.join(waiting)}; kubectl describe shows why")
            if (now := f"waiting until these are deleted: {', '.join(waiting)}") != said:
                print(said := now, file=sys.stderr, flush=True)
            time.sleep(1)
    for claim in claims:
        if claim["metadata"].get("labels", {}).get("release") == release:
            name, size = claim["metadata"]["name"], claim["spec"]["resources"]["requests"]["storage"]
            shared = claim["metadata"]["labels"]["component"] == "data"
            reason = f"data.delete is false: {size}" if shared else f"of jupyter.keep: {size} of notebooks"
            print(
                f"kept because {reason}; delete with:"
                f" kubectl --namespace {namespace} delete persistentvolumeclaim {name}",
                file=sys.stderr,
            )


def going(volumes: list[dict], claims: list[dict], namespace: str) -> list[str]:
    """Names of the namespace's volumes that no claim uses any more, so that Kubernetes deletes them."""
    held = {claim["metadata"]["uid"] for claim in claims if "deletionTimestamp" not in claim["metadata"]}
    return [
        each["metadata"]["name"]
        for each in volumes
        if each["spec"].get("persistentVolumeReclaimPolicy") == "Delete"
        and (claim := each["spec"].get("claimRef", {})).get("namespace") == namespace
        and claim.get("uid") not in held
    ]


if __name__ == "__main__":
    main()
