"""Lists the stacks that a pull request can affect, for the workflow `preview`: python3 -m tools.stacks_to_preview BASE

Prints `names=` with a JSON list. The list never contains stack dev, because it runs on each user's own computer.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

# Files that no stack's program reads. Any other file can change every stack; an unneeded preview does no harm.
UNREAD = re.compile(r"(bench|docs|rehearsal|tests|\.ci|\.github)/.+|(.+/)?[^/]+\.md|Makefile|\.gitignore")
STACK = re.compile(r"Pulumi\.([^/]+)\.yaml")


def touched(changed: Iterable[str], stacks: Iterable[str]) -> list[str]:
    """`changed`: paths relative to the project folder; `stacks`: names of all stacks that have a file."""
    changed = set(changed)
    everything = any(not UNREAD.fullmatch(path) and not STACK.fullmatch(path) for path in changed)
    return sorted(s for s in stacks if s != "dev" and (everything or f"Pulumi.{s}.yaml" in changed))


if __name__ == "__main__":
    diff = subprocess.run(
        ["git", "diff", "--name-only", f"{sys.argv[1]}...HEAD"], stdout=subprocess.PIPE, text=True, check=True
    )
    found = (STACK.fullmatch(path.name) for path in Path().glob("Pulumi.*.yaml"))
    print(f"names={json.dumps(touched(diff.stdout.splitlines(), [match[1] for match in found if match]))}")
