"""Runs every test: python -m tools.test [--unit | ARGUMENTS of pytest, which then runs alone]

A queue: one pytest for each file of tests, the longest first, several beside each other, for most tests wait most of
the time. Files of TOGETHER share one. Files of tests/unit take less time than a pytest needs to start, so two share
them. `--unit` runs these alone. Variables:

    JOBS   how many run beside each other (one more than there are processors)
    SEED   repeats the random order of a run, which prints its own

Not pytest-xdist: ten seconds after Ctrl-C it kills its workers, whether or not their fixtures have taken machines and
stacks away.
"""

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import pytest

from daskstack.engine import PROJECT

CLEANUP = 300  # seconds after Ctrl-C in which fixtures take away what they have made
# Which files take longest (14 minutes to 4, on two processors); others come after these, in the order of FOLDERS.
LONGEST = (
    *("machines, stack dev", "kubernetes, one node", "machines/test_rehearsed.py", "kubernetes/test_rehearse.py"),
    *("machines/test_power_off.py", "machines/test_steps.py", "machines/test_killed_up.py"),
    *("machines/test_compute_stack.py", "machines/test_guest.py", "machines/test_existing.py"),
    "machines/test_compute_machines.py",
)
FOLDERS = ("machines", "kubernetes", "engine")
# Files with the same session fixtures, where making these twice takes longer than waiting for one another.
TOGETHER = {
    "machines, stack dev": tuple(f"machines/test_{name}.py" for name in ("change", "failure", "stack")),
    "kubernetes, one node": tuple(f"kubernetes/test_{name}.py" for name in ("chart", "node", "release")),
}


def queue(tests: Path) -> dict[str, list[str]]:
    """What each pytest of a whole run gets, by name, the longest first; paths from the top of the project."""
    paths = [path for name in FOLDERS for path in sorted((tests / name).glob("test_*.py"))]
    files = [path.relative_to(tests).as_posix() for path in paths]
    names = {file: name for name, together in TOGETHER.items() for file in together}
    found: dict[str, list[str]] = {}
    for file in files:
        found.setdefault(f"{tests.name}/{names.get(file, file)}", []).append(f"{tests.name}/{file}")
    first = [name for each in LONGEST if (name := f"{tests.name}/{each}") in found]
    return {name: found[name] for name in dict.fromkeys([*first, *found])} | unit(tests)


def unit(tests: Path) -> dict[str, list[str]]:
    """Two parts of about the same length."""
    paths = sorted((tests / "unit").glob("test_*.py"), key=lambda path: (-path.stat().st_size, path))
    files = [path.relative_to(tests.parent).as_posix() for path in paths]
    return {f"{tests.name}/unit {part + 1}/2": files[part::2] for part in (0, 1) if files[part::2]}


class Run:
    """A pytest of its own, whose temporary folder is its own, too."""

    def __init__(self, name: str, files: list[str], folder: Path, seed: int, top: Path) -> None:
        """`folder` is a short path, for a socket's has at most 107 bytes."""
        self.name, self.folder, self.start = name, folder, time.monotonic()
        self.output, self.report = folder.with_suffix(".txt"), folder.with_suffix(".xml")
        folder.mkdir()
        folder.chmod(0o1777)  # as /tmp is: tests have other users, too
        order = ["-p", "randomly", f"--randomly-seed={seed}"]
        report = [f"--junit-xml={self.report}", "-o", "junit_family=xunit1"]  # which tells the file
        command = [sys.executable, "-m", "pytest", *files, *order, *report, f"--basetemp={folder}/p"]
        with self.output.open("wb") as output:
            # In a group of its own: the terminal's Ctrl-C reaches nothing of it, `stop` does.
            self.process = subprocess.Popen(
                [*command, "-p", "no:cacheprovider"],  # several would write into one cache at once
                cwd=top,
                env={**os.environ, "TMPDIR": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )

    def stop(self, what: signal.Signals) -> None:
        """To all that is in its group, as a terminal does."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, what)

    def remove(self) -> None:
        """Its folder, unless a mount in it would be emptied, too."""
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        below = [place for place in mounted if place.startswith(f"{self.folder}/")]
        if not below:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            say(f"{self.folder} is left{f', with {below[0]} still mounted' if below else ''}")
        self.output.unlink()
        self.report.unlink(missing_ok=True)


@dataclass
class Result:
    """What the tests of one pytest, or of all, came to."""

    counts: Counter[str] = field(default_factory=Counter)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __add__(self, other: "Result") -> "Result":
        return Result(self.counts + other.counts, self.slowest + other.slowest, self.skipped + other.skipped)

    def __str__(self) -> str:
        """As pytest says it."""
        counts = self.counts
        named = {"error": "error" if counts["error"] == 1 else "errors"}
        words = [f"{counts[w]} {named.get(w, w)}" for w in ("failed", "passed", "skipped", "error") if counts[w]]
        return ", ".join(words) or "no tests ran"


def outcome(case: ElementTree.Element) -> str:
    for element, word in {"error": "error", "failure": "failed", "skipped": "skipped"}.items():
        if case.find(element) is not None:
            return word
    return "passed"


def read(name: str, report: Path, status: int) -> Result:
    """The result of the pytest `name` that ended with `status`; an error if it reports none and has failed."""
    result = Result()
    with contextlib.suppress(FileNotFoundError, ElementTree.ParseError):  # where it was killed
        for case in ElementTree.parse(report).iter("testcase"):
            test, word = f"{case.get('file') or name}::{case.get('name')}", outcome(case)
            result.counts[word] += 1
            result.slowest.append((float(case.get("time") or 0), test))
            if (skipped := case.find("skipped")) is not None:
                result.skipped.append((test, skipped.get("message") or ""))
    if status and not result.counts["failed"] and not result.counts["error"]:
        result.counts["error"] += 1
    return result


def minutes(seconds: float) -> str:
    return f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that is gone
        print(text, flush=True)


class Queue:
    """Runs what is waiting, `jobs` at a time, until `interrupt`."""

    def __init__(self, waiting: dict[str, list[str]], *, jobs: int, seed: int, top: Path = PROJECT) -> None:
        self.waiting, self.jobs, self.seed, self.top = dict(waiting), jobs, seed, top
        self.running: list[Run] = []
        self.result, self.start = Result(), time.monotonic()
        self.interrupted = False

    def interrupt(self, *_: object) -> None:
        self.interrupted = True

    def run(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="ds-")).resolve()  # as the kernel names what is mounted in it
        folder.chmod(0o755)
        try:
            for number in itertools.count():
                while len(self.running) >= self.jobs:
                    self.wait()
                if self.interrupted or not self.waiting:
                    break
                name = next(iter(self.waiting))
                files = self.waiting.pop(name)
                self.running.append(Run(name, files, folder / str(number), self.seed, self.top))
            while self.running:
                self.wait()
        finally:
            for run in self.running:
                run.stop(signal.SIGKILL)
            if not any(folder.iterdir()):
                folder.rmdir()

    def wait(self) -> None:
        """Until one has ended; all, after an interruption."""
        while not any(run.process.poll() is not None for run in self.running):
            if self.interrupted:
                return self.end()
            time.sleep(0.1)
        for run in [run for run in self.running if run.process.poll() is not None]:
            self.ended(run)

    def end(self) -> None:
        say(f"interrupted: waiting for {', '.join(run.name for run in self.running)} to clean up, at most {CLEANUP} s")
        for run in self.running:
            run.stop(signal.SIGINT)
        deadline = time.monotonic() + CLEANUP
        for run in list(self.running):
            try:
                run.process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                say(f"{run.name} has not cleaned up within {CLEANUP} s and is killed: see what it has left")
                run.stop(signal.SIGKILL)
                run.process.wait()
            self.ended(run)

    def ended(self, run: Run) -> None:
        self.running.remove(run)
        status, now = run.process.returncode, time.monotonic()
        # To pytest's report the test that was interrupted has passed.
        cut = self.interrupted and status == pytest.ExitCode.INTERRUPTED
        result = Result() if cut else read(run.name, run.report, status)
        self.result += result
        if status:
            say(run.output.read_text(errors="replace").rstrip())
        said = "was interrupted after" if cut else f"{result} in"
        say(f"{minutes(now - self.start)} {run.name} {said} {now - run.start:.0f} s")
        run.remove()

    def summary(self) -> str:
        """The slowest tests, what is not proven here, and last the line that pytest ends with."""
        lines = ["slowest tests:"]
        lines += [f"{seconds:8.1f} s  {name}" for seconds, name in sorted(self.result.slowest, reverse=True)[:10]]
        lines += [f"not proven here: {name}: {reason}" for name, reason in sorted(self.result.skipped)]
        took = time.monotonic() - self.start
        long = f" ({int(took) // 3600}:{int(took) // 60 % 60:02}:{int(took) % 60:02})" if took >= 60 else ""
        words = f"{'interrupted, ' if self.interrupted else ''}{self.result} in {took:.2f}s{long}"
        return "\n".join([*lines, f" {words} ".center(80, "=")])


def run(waiting: dict[str, list[str]], top: Path = PROJECT) -> int:
    jobs = int(os.environ.get("JOBS") or len(os.sched_getaffinity(0)) + 1)
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    tests = Queue(waiting, jobs=jobs, seed=seed, top=top)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, tests.interrupt)
    count = sum(map(len, waiting.values()))
    say(f"{count} files of tests, {jobs} pytests at a time; SEED={seed} repeats their order")
    tests.run()
    say(tests.summary())
    if tests.interrupted:
        return 130
    return 1 if tests.result.counts["failed"] or tests.result.counts["error"] else 0


def alone(arguments: list[str]) -> int:
    running = subprocess.Popen([sys.executable, "-m", "pytest", *arguments], cwd=PROJECT)
    # It cleans up after Ctrl-C, which reaches it by itself, and is waited for.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: running.send_signal(signal.SIGINT))
    return running.wait()


def main(arguments: list[str]) -> None:
    tests = PROJECT / "tests"
    if arguments and arguments != ["--unit"]:
        sys.exit(alone(arguments))
    sys.exit(run(unit(tests) if arguments else queue(tests)))


if __name__ == "__main__":
    main(sys.argv[1:])
