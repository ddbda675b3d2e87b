"""Checks style, types and shell programs without running the project: python -m tools.lint

The tools run at the same time. A tool that fails is shown with its output and with what to do.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from daskstack.engine import PROJECT
from tools.install import actionlint


@dataclass(frozen=True)
class Check:
    command: list[str | Path]
    remedy: str


def checks() -> list[Check]:
    bin = Path(sys.prefix) / "bin"
    shell = files("*.sh", ".ci/run")
    # A step is a valid program only together with steps/common.sh: tests/unit/test_step_files.py checks it as it runs.
    alone = [file for file in shell if not file.startswith("on_the_cluster/")]
    found = [
        Check([bin / "ruff", "check"], "edit these lines; `.venv/bin/ruff check --fix` repairs some of them"),
        Check([bin / "ruff", "format", "--diff", "--quiet"], "run `.venv/bin/ruff format`"),
        Check(
            [bin / "ty", "check", "--output-format", "concise"], "correct the types; pyproject.toml lists the folders"
        ),
        Check([bin / "shellcheck", "-x", *alone], "edit these lines; each code is explained on shellcheck.net"),
        Check([bin / "shfmt", "-d", *shell], "run `.venv/bin/shfmt -w FILE`"),
    ]
    if program := actionlint():
        workflows = files(".github/workflows/*.yml")
        found.append(Check([program, "-shellcheck", bin / "shellcheck", *workflows], "edit the workflow"))
    return found


def files(*patterns: str) -> list[str]:
    """The project's files that match, including files that are not committed yet."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "--deduplicate", *patterns]
    listed = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return [file for file in listed if (PROJECT / file).exists()]


def failures(found: list[Check]) -> list[str]:
    running = [
        subprocess.Popen(check.command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for check in found
    ]
    failed = []
    for check, process in zip(found, running, strict=True):
        output, _ = process.communicate()
        if process.returncode:
            name = " ".join([Path(check.command[0]).name, *(str(word) for word in check.command[1:2])])
            failed.append(f"{output.rstrip()}\nerror: `{name}` failed: {check.remedy}")
    return failed


def main() -> None:
    start, found = time.monotonic(), checks()
    if failed := failures(found):
        sys.exit("\n\n".join(failed))
    names = ", ".join(dict.fromkeys(Path(check.command[0]).name for check in found))
    print(f"lint: {names} found nothing in {time.monotonic() - start:.0f} s")
    if not actionlint():
        print("lint: .github/workflows is not checked: install Go (https://go.dev/dl), and run this again")


if __name__ == "__main__":
    main()
