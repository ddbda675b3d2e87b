"""Runs every test: python -m tools.test [--unit | ARGUMENTS of one pytest]

Runs one pytest for each file of tests, the longest first, several in parallel, because most tests mostly wait. Files
in TOGETHER share a pytest. A file of tests/unit takes less time than pytest needs to start, so two pytests share these.
`--unit` runs only them. Variables:

    JOBS   pytests in parallel (default: number of processors + 1)
    SEED   seed of the random order; each run prints its seed

pytest-xdist does not fit: ten seconds after Ctrl-C it kills its workers, even if their fixtures are still deleting
machines and stacks.
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

CLEANUP = 300  # seconds after Ctrl-C for fixtures to delete what they have created
LIMIT = 3600  # seconds for one pytest; the longest takes 24 minutes. pytest-timeout cannot end a test in C code
# The files that take longest (24 to 3 minutes on two processors) run first; the others follow in the order of FOLDERS.
LONGEST = (
    *("machines, stack dev", "kubernetes, one node", "machines/test_rehearsed.py", "kubernetes/test_rehearse.py"),
    *("machines/test_power_off.py", "machines/test_steps.py", "machines/test_scaling.py", "machines/test_killed_up.py"),
    *("machines/test_examples.py", "machines/test_compute_stack.py", "machines/test_guest.py"),
    *("machines/test_existing.py", "machines/test_compute_machines.py"),
)
FOLDERS = ("machines", "kubernetes", "engine")
# Files with the same session fixtures, if creating these twice takes longer than running the files one after another.
TOGETHER = {
    "machines, stack dev": tuple(
        f"machines/test_{name}.py" for name in ("access", "change", "failure", "jobs", "stack")
    ),
    "kubernetes, one node": tuple(
        f"kubernetes/test_{name}.py" for name in ("access", "chart", "node", "release", "scaling")
    ),
}


def queue(tests: Path) -> dict[str, list[str]]:
    """The files of each pytest by its name, the longest first; paths are relative to the project folder."""
    paths = [path for name in FOLDERS for path in sorted((tests / name).glob("test_*.py"))]
    files = [path.relative_to(tests).as_posix() for path in paths]
    names = {file: name for name, together in TOGETHER.items() for file in together}
    found: dict[str, list[str]] = {}
    for file in files:
        found.setdefault(f"{tests.name}/{names.get(file, file)}", []).append(f"{tests.name}/{file}")
    first = [name for each in LONGEST if (name := f"{tests.name}/{each}") in found]
    return {name: found[name] for name in dict.fromkeys([*first, *found])} | unit(tests)


def unit(tests: Path) -> dict[str, list[str]]:
    """The files of tests/unit in two parts that take about the same time."""
    paths = sorted((tests / "unit").glob("test_*.py"), key=lambda path: (-path.stat().st_size, path))
    files = [path.relative_to(tests.parent).as_posix() for path in paths]
    return {f"{tests.name}/unit {part + 1}/2": files[part::2] for part in (0, 1) if files[part::2]}


class Run:
    """One pytest process with its own temporary folder."""

    def __init__(self, name: str, files: list[str], folder: Path, seed: int, top: Path) -> None:
        """`folder` must be a short path: the path of a socket has at most 107 bytes."""
        self.name, self.folder, self.start, self.late = name, folder, time.monotonic(), False
        self.output, self.report = folder.with_suffix(".txt"), folder.with_suffix(".xml")
        folder.mkdir()
        folder.chmod(0o1777)  # like /tmp: some tests run programs as other users
        order = ["-p", "randomly", f"--randomly-seed={seed}"]
        report = [f"--junit-xml={self.report}", "-o", "junit_family=xunit1"]  # xunit1 contains the file's name
        command = [sys.executable, "-m", "pytest", *files, *order, *report, f"--basetemp={folder}/p"]
        with self.output.open("wb") as output:
            # In its own process group, so that Ctrl-C on the terminal does not reach it; `stop` does.
            self.process = subprocess.Popen(
                [*command, "-p", "no:cacheprovider"],  # parallel pytests would write to the same cache
                cwd=top,
                env={**os.environ, "TMPDIR": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )

    def stop(self, what: signal.Signals) -> None:
        """Sends the signal to its whole process group, as a terminal does."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, what)

    def bound(self) -> None:
        """Interrupts it after LIMIT, and kills it if it does not end then."""
        age = time.monotonic() - self.start
        if age > LIMIT and not self.late:
            self.late = True
            say(f"{self.name} has not ended within {LIMIT} s; ending it: a test hangs where the output below shows it")
            self.stop(signal.SIGINT)
        if age > LIMIT + CLEANUP:
            self.stop(signal.SIGKILL)

    def remove(self) -> None:
        """Removes its folder, unless something is mounted there, which would lose its files too."""
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        below = [place for place in mounted if place.startswith(f"{self.folder}/")]
        if not below:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            say(f"{self.folder} was not removed{f': {below[0]} is still mounted' if below else ''}")
        self.output.unlink()
        self.report.unlink(missing_ok=True)


@dataclass
class Result:
    """The outcome of the tests of one pytest, or of all."""

    counts: Counter[str] = field(default_factory=Counter)
    unmet: list[str] = field(default_factory=list)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __add__(self, other: "Result") -> "Result":
        return Result(
            self.counts + other.counts,
            self.unmet + other.unmet,
            self.slowest + other.slowest,
            self.skipped + other.skipped,
        )

    def __str__(self) -> str:
        """The counts in the form of pytest's summary."""
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
    """The result of the pytest `name`. If it ended with an error status and reports none, count one error."""
    result = Result()
    with contextlib.suppress(FileNotFoundError, ElementTree.ParseError):  # if it was killed
        for case in ElementTree.parse(report).iter("testcase"):
            test, word = f"{case.get('file') or name}::{case.get('name')}", outcome(case)
            result.counts[word] += 1
            if word in ("error", "failed"):
                result.unmet.append(f"{word}: {test}")
            result.slowest.append((float(case.get("time") or 0), test))
            if (skipped := case.find("skipped")) is not None:
                result.skipped.append((test, skipped.get("message") or ""))
    if status and not result.counts["failed"] and not result.counts["error"]:
        result.counts["error"] += 1
        result.unmet.append(f"error: {name} ended with status {status}")
    return result


def minutes(seconds: float) -> str:
    return f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal was closed
        print(text, flush=True)


class Queue:
    """Runs the waiting files, `jobs` pytests at a time, until all have ended or `interrupt` is called."""

    def __init__(self, waiting: dict[str, list[str]], *, jobs: int, seed: int, top: Path = PROJECT) -> None:
        self.waiting, self.jobs, self.seed, self.top = dict(waiting), jobs, seed, top
        self.running: list[Run] = []
        self.result, self.start = Result(), time.monotonic()
        self.interrupted = False

    def interrupt(self, *_: object) -> None:
        self.interrupted = True

    def run(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="ds-")).resolve()  # the kernel lists mounts by their resolved path
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
        """Waits until one pytest has ended; after an interruption, until all have."""
        while not any(run.process.poll() is not None for run in self.running):
            if self.interrupted:
                return self.end()
            for run in self.running:
                run.bound()
            time.sleep(0.1)
        for run in [run for run in self.running if run.process.poll() is not None]:
            self.ended(run)

    def end(self) -> None:
        say(f"interrupted: waiting up to {CLEANUP} s for {', '.join(run.name for run in self.running)} to clean up")
        for run in self.running:
            run.stop(signal.SIGINT)
        deadline = time.monotonic() + CLEANUP
        for run in list(self.running):
            try:
                run.process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                say(f"{run.name} did not clean up within {CLEANUP} s; killing it: delete what it has left behind")
                run.stop(signal.SIGKILL)
                run.process.wait()
            self.ended(run)

    def ended(self, run: Run) -> None:
        self.running.remove(run)
        status, now = run.process.returncode, time.monotonic()
        # pytest reports the interrupted test as passed.
        cut = self.interrupted and status == pytest.ExitCode.INTERRUPTED
        result = Result() if cut else read(run.name, run.report, status)
        self.result += result
        if status:
            say(run.output.read_text(errors="replace").rstrip())
        said = "was interrupted after" if cut else f"{result} in"
        say(f"{minutes(now - self.start)} {run.name} {said} {now - run.start:.0f} s")
        run.remove()

    def summary(self) -> str:
        """The slowest tests, the skipped ones, those that failed, and a last line like that of pytest."""
        lines = ["slowest tests:"]
        lines += [f"{seconds:8.1f} s  {name}" for seconds, name in sorted(self.result.slowest, reverse=True)[:10]]
        lines += [f"not proven here: {name}: {reason}" for name, reason in sorted(self.result.skipped)]
        lines += sorted(self.result.unmet)
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
    say(f"{count} files of tests, {jobs} pytests in parallel; SEED={seed} repeats this order")
    tests.run()
    say(tests.summary())
    if tests.interrupted:
        return 130
    return 1 if tests.result.counts["failed"] or tests.result.counts["error"] else 0


def alone(arguments: list[str]) -> int:
    running = subprocess.Popen([sys.executable, "-m", "pytest", *arguments], cwd=PROJECT)
    # Ctrl-C reaches pytest too; wait until it has cleaned up.
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
