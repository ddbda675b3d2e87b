"""Before a destroy: what a killed run was making counts as made: python3 -m tools.undo_unfinished STACK

The engine forgets operations that never ended. But a step goes on when the run that started it is killed, and a step
that has begun must be undone.
"""

import json
import sys

from daskstack import engine


def main(stack: str) -> None:
    exported = engine.pulumi(stack, "stack", "export", capture_output=True, text=True)
    if exported.returncode:
        return  # there is no such stack, and destroy says so
    state = json.loads(exported.stdout)
    if names := adopt(state["deployment"]):
        engine.pulumi(stack, "stack", "import", input=json.dumps(state), text=True, capture_output=True, check=True)
        print(f"A run that is dead had begun {', '.join(names)}: undoing that, too")


def adopt(deployment: dict) -> list[str]:
    """Moves Commands that were being created to the resources; returns their names."""
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
