"""Breaks promises on purpose and sees the tests fail: python -m tools.mutants [NAMES] [--sample N] [--table]

Every mutation of tests/mutations.py is applied to a copy of the project, and the test that it names must fail there.
Without mutations the same tests must pass, or their failures would prove nothing. Those of a file run together, which
saves most of their fixtures; if one fails, each runs by itself.
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
BESIDE = 3  # tests at a time; most of them wait for a program most of the time
LIMIT = 600  # seconds for one test
GRACE = 120  # seconds in which a test that is stopped cleans up
# A sample takes a minute at most, so it leaves out tests that need machines, Kubernetes or many runs of the engine.
CHEAP = "tests/unit/"
COSTS = (CHEAP, "tests/engine/", "tests/kubernetes/", "tests/machines/")  # the folders of tests, the cheapest first


class MutationError(Exception):
    """What is wrong with a mutation, and its name."""


def changed(mutation: Mutation, text: str) -> str:
    """The text of the mutation's file, with the promise broken."""
    count = text.count(mutation.old)
    if count != 1:
        found = f"{count} times" if count else "no longer"
        raise MutationError(f"mutation {mutation.name}: its old text is {found} in {mutation.file}, expected once")
    return text.replace(mutation.old, mutation.new)


def tables() -> str:
    """Those of docs/proof.md, one for each area."""
    parts = []
    for area, mutations in AREAS.items():
        rows = [f"| {each.promise} | `{each.test}` | `{each.name}` in `{each.file}` |" for each in mutations]
        parts.append("\n".join([f"## {area}", "", "| promise | test | mutation |", "| --- | --- | --- |", *rows, ""]))
    return "\n".join(parts)


def page(text: str) -> str:
    """docs/proof.md with its tables as they have to be; what stands before the first heading of an area stays."""
    return text.partition("## ")[0] + tables()


def cost(test: str) -> int:
    """Tests begin in the order of their costs, so that at the end nobody waits for a long one."""
    return -next(number for number, folder in enumerate(COSTS) if test.startswith(folder))


def sample(size: int) -> list[Mutation]:
    """Others for each commit, the same for one."""
    asked = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(asked, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    cheap = [each for each in MUTATIONS if each.test.startswith(CHEAP)]
    return random.Random(commit.strip()).sample(cheap, min(size, len(cheap)))


class Laboratory:
    """Runs tests in copies of the project, as it is now, committed or not."""

    def __init__(self, folder: Path, project: Path = PROJECT) -> None:
        self.folder = folder
        self.origin = folder / "origin"
        self.stopped = threading.Event()
        self.running: set[subprocess.Popen] = set()
        # In a hook of git these name the project's own repository, whatever folder git is called in.
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        listed = ["git", "ls-files", "-coz", "--exclude-standard"]
        files = subprocess.run(listed, cwd=project, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\0")
        for name in set(files) - {"", ".venv"}:  # a link of that name is none of git's ignored folders
            if os.path.lexists(project / name):  # else it was deleted, and that is not committed yet
                self.origin.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(project / name, self.origin / name, follow_symlinks=False)
        # Some tests ask git which files there are.
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
        """`passed`, `failed` by an assertion or an exception in a test itself, or what went wrong; and the output."""
        report, log, limit = copy.parent / "report.xml", copy.parent / "output", LIMIT * len(tests)
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
        if self.stopped.is_set():
            return "was stopped", ""
        with log.open("w") as output:
            # Ctrl-C reaches it through stop() alone: pytest takes a second one as an order not to clean up.
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
                return f"had not ended after {limit} s", log.read_text(errors="replace")
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
        return f"ended with pytest's status {status}, but without a failure of its own", said

    def check(self, tests: Sequence[str]) -> tuple[bool, str]:
        """Whether all the tests pass while nothing is broken."""
        with self.copy() as copy:
            word, said = self.outcome(tests, copy)
        return word == "passed", "" if word == "passed" else f"without any mutation it {word}:\n{said}"

    def catch(self, mutation: Mutation) -> tuple[bool, str]:
        """Whether its test fails for the mutation."""
        with self.copy() as copy:
            file = copy / mutation.file
            file.write_text(changed(mutation, file.read_text()))
            word, said = self.outcome([mutation.test], copy)
        if word == "failed":
            return True, ""
        return False, f"{mutation.promise}\n{mutation.file} has another text, but {mutation.test} {word}:\n{said}"

    def stop(self) -> None:
        self.stopped.set()
        end(*self.running)


def end(*processes: subprocess.Popen) -> None:
    """Lets runs of pytest clean up, then ends what is left of them."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + GRACE
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def each_of(work, items: list, beside: int, name, good: str, bad: str) -> list:
    """Those of the items for which `work` was right; says what became of each."""
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
    parser.add_argument("names", nargs="*", help="mutations of tests/mutations.py; all of them without names")
    parser.add_argument("--sample", type=int, metavar="N", help="N cheap ones, others for each commit")
    parser.add_argument("--beside", type=int, default=BESIDE, metavar="N", help=f"tests at a time ({BESIDE})")
    parser.add_argument("--table", action="store_true", help=f"write the tables of docs/{PAGE.name}")
    options = parser.parse_args(arguments)
    if options.table:
        PAGE.write_text(page(PAGE.read_text()))
        return 0
    named = {each.name: each for each in MUTATIONS}
    if unknown := [name for name in options.names if name not in named]:
        parser.error(f"no mutation {', '.join(unknown)}; there are: {', '.join(named)}")
    mutations = [named[name] for name in options.names] or (sample(options.sample) if options.sample else MUTATIONS)
    for each in mutations:  # before anything takes time
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
        with phase(f"Running {len(tests)} tests without any mutation"):
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
