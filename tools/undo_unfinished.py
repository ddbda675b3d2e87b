"""Makes `destroy` undo the steps that a killed run had started: python3 -m tools.undo_unfinished STACK

The engine forgets operations that never ended. But a step continues after its run is killed, and every step that has
started must be undone. So this records such steps as created, before `destroy`.
"""

import json
import sys

from daskstack import engine


def main(stack: str) -> None:
    exported = engine.pulumi(stack, "stack", "export", capture_output=True, text=True)
    if exported.returncode:
        return  # the stack does not exist; `destroy` reports that
    state = json.loads(exported.stdout)
    if names := adopt(state["deployment"]):
        engine.pulumi(stack, "stack", "import", input=json.dumps(state), text=True, capture_output=True, check=True)
        print(f"A killed run had started {', '.join(names)}: undoing these steps too")


def adopt(deployment: dict) -> list[str]:
    """Adds Commands whose creation had started to the resources; returns their names."""
    known = {each["urn"] for each in deployment.get("resources", [])}
    begun = [
        operation["resource"]
        for operation in deployment.get("pending_operations", [])
        if operation["type"] == "creating"
        and operation["resource"]["type"].startswith("command:")
        and operation["resource"]["urn"] not in known
    ]
    for resource in begun:
        deployment["resources"].append({**resource, "id": "begun", "outputs": resource["inputs"]})
    if begun:
        deployment["pending_operations"] = []
    return [resource["urn"].rpartition("::")[2] for resource in begun]


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except engine.EngineError as error:
        sys.exit(f"error: {error}")
