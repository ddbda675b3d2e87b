"""Checks an organization's policies before the first `up` of a stack: python -m tools.google_policies STACK

Asks gcloud, if it is installed, for the policies with which Google would reject the stack's machines after it has
created their network. Users who may not read policies learn of them from Google's error, which tools.google_errors
explains.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from daskstack import configuration, engine
from tools.google_errors import explanations

CONSTRAINTS = ("compute.requireOsLogin", "compute.vmExternalIpAccess")
ANSWER = 20  # seconds for gcloud


def violations(policies: Mapping[str, Mapping[str, Any]], *, address: bool) -> list[str]:
    """What to do about the policies that forbid the stack's machines. `address`: one has an external address."""
    login, outside = (policies.get(name, {}) for name in CONSTRAINTS)
    wrong = [CONSTRAINTS[0]] if login.get("booleanPolicy", {}).get("enforced") else []
    if address and outside.get("listPolicy", {}).get("allValues") == "DENY":
        wrong.append(CONSTRAINTS[1])
    return explanations(f"constraints/{name}" for name in wrong)


def policy(project: str, constraint: str) -> dict[str, Any]:
    """The policy that applies to the project; empty if it cannot be read."""
    words = ["resource-manager", "org-policies", "describe", constraint, "--project", project, "--effective"]
    try:
        done = subprocess.run(
            ["gcloud", *words, "--format", "json", "--quiet"], capture_output=True, text=True, timeout=ANSWER
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}
    return found if isinstance(found, dict) else {}


def main(stack: str) -> None:
    if not shutil.which("gcloud") or engine.outputs(stack, secrets=False):
        return
    machines = configuration.read(stack).get("machines") or {}
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: policy(str(machines.get("project")), name), CONSTRAINTS)
        wrong = violations(dict(zip(CONSTRAINTS, found, strict=True)), address=not machines.get("iapPort"))
    if wrong:
        sys.exit("\n".join(f"error: {each}; nothing was created" for each in wrong))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except engine.EngineError as error:
        sys.exit(f"error: {error}")
