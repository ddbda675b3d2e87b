"""Breaks promises and requires that their tests fail: python -m tools.mutants [NAMES] [--sample N] [--table]

Each mutation of tests/mutations.py is applied to a copy of the project, in which the test that it names must fail.
Without the mutation the same test must pass, or its failure would prove nothing. For that, the tests of a file run
together, because they share fixtures; if one fails, each runs alone.
"""

import argparse
import concurrent.futures
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from daskstack.engine import PROJECT
from tests.mutations import AREAS, MUTATIONS, Mutation
from tools.running import phase, say

PAGE = PROJECT / "docs/proof.md"
BESIDE = 3  # tests in parallel; most tests mostly wait for a program
LIMIT = 600  # seconds for one test
GRACE = 120  # seconds for a stopped test to clean up
# A sample may take a minute, so it excludes tests that need machines, Kubernetes or many runs of the engine.
CHEAP = "tests/unit/"
COSTS = (CHEAP, "tests/engine/", "tests/kubernetes/", "tests/machines/")  # folders, the cheapest first


class MutationError(Exception):
    """A mutation cannot be applied. The message contains its name and the reason."""


def changed(mutation: Mutation, text: str) -> str:
    """The text of the mutation's file after the mutation."""
    count = text.count(mutation.old)
    if count != 1:
        found = f"{count} times" if count else "nowhere"
        raise MutationError(
            f"mutation {mutation.name}: its old text occurs {found} in {mutation.file}; expected exactly once"
        )
    return text.replace(mutation.old, mutation.new)


def tables() -> str:
    """The tables of docs/proof.md, one for each area."""
    parts = []
    for area, mutations in AREAS.items():
        rows = [f"| {each.promise} | `{each.test}` | `{each.name}` in `{each.file}` |" for each in mutations]
        parts.append("\n".join([f"## {area}", "", "| promise | test | mutation |", "| --- | --- | --- |", *rows, ""]))
    return "\n".join(parts)


def page(text: str) -> str:
    """docs/proof.md with current tables; the text before the first heading of an area stays."""
    return text.partition("## ")[0] + tables()


def cost(test: str) -> int:
    """The sort key of a test: expensive tests start first, so that no long test runs alone at the end."""
    return -next(number for number, folder in enumerate(COSTS) if test.startswith(folder))


def sample(size: int) -> list[Mutation]:
    """A random choice of cheap mutations, which depends on the commit alone."""
    asked = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(asked, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    cheap = [each for each in MUTATIONS if each.test.startswith(CHEAP)]
    return random.Random(commit.strip()).sample(cheap, min(size, len(cheap)))


class Laboratory:
    """Runs tests in copies of the project, including changes that are not committed."""

    def __init__(self, folder: Path, project: Path = PROJECT) -> None:
        self.folder = folder
        self.origin = folder / "origin"
        self.stopped = threading.Event()
        self.running: set[subprocess.Popen] = set()
        # Git hooks set these variables to the project's own repository; they would override the folder of a copy.
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        listed = ["git", "ls-files", "-coz", "--exclude-standard"]
        files = subprocess.run(listed, cwd=project, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\0")
        for name in set(files) - {"", ".venv"}:  # .gitignore excludes a folder of this name, but not a link
            if os.path.lexists(project / name):  # a file can be deleted and the deletion not be committed yet
                self.origin.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(project / name, self.origin / name, follow_symlinks=False)
        # Some tests call git ls-files.
        for command in (["git", "init", "--quiet"], ["git", "add", "--all"]):
            subprocess.run(command, cwd=self.origin, env=self.environ, check=True)
        self.origin.joinpath(".venv").symlink_to(project / ".venv")

    @contextlib.contextmanager
    def copy(self) -> Generator[Path]:
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as folder:
            copy = Path(folder, "project")
            shutil.copytree(self.origin, copy, symlinks=True)
            yield copy

    def outcome(self, tests: Sequence[str], copy: Path) -> tuple[str, str]:
        """`passed`, `failed` (by an assertion or an exception in a test), or another outcome; and the output."""
        report, log, limit = copy.parent / "report.xml", copy.parent / "output", LIMIT * len(tests)
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
        if self.stopped.is_set():
            return "was stopped", ""
        with log.open("w") as output:
            # In its own session, so that only stop() interrupts it: after a second Ctrl-C pytest does not clean up.
            process = subprocess.Popen(
                command,
                cwd=copy,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.running.add(process)
        try:
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                end(process)
                return f"did not end within {limit} s", log.read_text(errors="replace")
        finally:
            self.running.discard(process)
        said = log.read_text(errors="replace")
        if self.stopped.is_set():
            return "was stopped", said
        if status == 0:
            return "passed", said
        failures = ElementTree.parse(report).iter("failure") if status == 1 and report.exists() else ()
        if any("from pytest-timeout" not in (each.get("message") or "") for each in failures):
            return "failed", said
        return f"ended with pytest's status {status} without a failed assertion", said

    def check(self, tests: Sequence[str]) -> tuple[bool, str]:
        """Whether all these tests pass without a mutation."""
        with self.copy() as copy:
            word, said = self.outcome(tests, copy)
        return word == "passed", "" if word == "passed" else f"without a mutation it {word}:\n{said}"

    def catch(self, mutation: Mutation) -> tuple[bool, str]:
        """Whether the mutation's test fails after the mutation."""
        with self.copy() as copy:
            file = copy / mutation.file
            file.write_text(changed(mutation, file.read_text()))
            word, said = self.outcome([mutation.test], copy)
        if word == "failed":
            return True, ""
        return False, f"{mutation.promise}\nafter the mutation of {mutation.file}, {mutation.test} {word}:\n{said}"

    def stop(self) -> None:
        self.stopped.set()
        end(*self.running)


def end(*processes: subprocess.Popen) -> None:
    """Stops runs of pytest, waits until they have cleaned up, then kills their remaining processes."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + GRACE
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def each_of(work, items: list, beside: int, name, good: str, bad: str) -> list:
    """The items for which `work` succeeds; prints each outcome."""
    right = []
    with concurrent.futures.ThreadPoolExecutor(beside) as pool:
        start = {}

        def timed(item) -> tuple[bool, str]:
            start[item] = time.monotonic()
            return work(item)

        futures = {pool.submit(timed, item): item for item in items}
        try:
            for count, future in enumerate(concurrent.futures.as_completed(futures), 1):
                item, (fine, why) = futures[future], future.result()
                seconds = time.monotonic() - start[item]
                say(f"  [{count}/{len(items)}] {name(item)}: {good if fine else bad} ({seconds:.0f} s)")
                if fine:
                    right.append(item)
                else:
                    say("\n".join(f"    {line}" for line in why.splitlines()[-60:]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            work.__self__.stop()
            raise
    return right


def named_by(tests: Sequence[str]) -> str:
    file, _, test = tests[0].partition("::")
    return test if len(tests) == 1 else f"{len(tests)} tests of {file}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__.partition(":")[0])
    parser.add_argument("names", nargs="*", help="mutations of tests/mutations.py (default: all)")
    parser.add_argument("--sample", type=int, metavar="N", help="N cheap mutations, chosen by the commit")
    parser.add_argument(
        "--beside", type=int, default=BESIDE, metavar="N", help=f"tests in parallel (default: {BESIDE})"
    )
    parser.add_argument("--table", action="store_true", help=f"write the tables of docs/{PAGE.name}")
    options = parser.parse_args(arguments)
    if options.table:
        PAGE.write_text(page(PAGE.read_text()))
        return 0
    named = {each.name: each for each in MUTATIONS}
    if unknown := [name for name in options.names if name not in named]:
        parser.error(f"unknown mutation {', '.join(unknown)}; expected one of: {', '.join(named)}")
    mutations = [named[name] for name in options.names] or (sample(options.sample) if options.sample else MUTATIONS)
    for each in mutations:  # report errors before running tests
        changed(each, (PROJECT / each.file).read_text())

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        laboratory = Laboratory(Path(folder))
        tests = sorted(dict.fromkeys(each.test for each in mutations), key=cost)
        by_file: dict[str, list[str]] = {}
        for test in tests:
            by_file.setdefault(test.partition("::")[0], []).append(test)
        with phase(f"Running {len(tests)} tests without a mutation"):
            together = [tuple(each) for each in by_file.values()]
            passed = each_of(laboratory.check, together, options.beside, named_by, "passes", "FAILS")
            alone = [(test,) for each in together if len(each) > 1 and each not in passed for test in each]
            passed += each_of(laboratory.check, alone, options.beside, named_by, "passes", "NO PROOF")
            sound = {test for each in passed for test in each}
        ready = sorted((each for each in mutations if each.test in sound), key=lambda each: cost(each.test))
        with phase(f"Trying {len(ready)} mutations"):
            caught = each_of(laboratory.catch, ready, options.beside, lambda each: each.name, "caught", "NOT CAUGHT")
    if missed := [each.name for each in mutations if each not in caught]:
        print(f"not caught: {' '.join(missed)}")
    print(f"{len(caught)} of {len(mutations)} mutations were caught")
    return 0 if len(caught) == len(mutations) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MutationError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")
