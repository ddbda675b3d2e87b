"""Real local machines for tests: `boot("worker-1", "worker-2")` takes about half a second.

Needs root, or sudo without a password. Everything is removed at the end of the session.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from rehearsal.machines import Machine, Stack, call
from tests.checkout import Checkout
from tests.outside import CommandLines, Outside


@pytest.fixture(scope="session")
def image() -> str:
    """The machines' image: built at the first use on this computer (a minute), then cached."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "daskstack"
    return call("image.sh", CACHE=str(cache))


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private key for this run, with its public key next to it."""
    path = tmp_path_factory.mktemp("key") / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture(scope="session")
def make_stack(image: str, key: Path) -> Iterator[Callable[[str], Stack]]:
    """Creates separate stacks, which are removed at the end of the session."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that `timeout pytest` cleans up too
    with ExitStack() as cleanup:

        def make(name: str) -> Stack:
            # Not in pytest's folder, because another run can delete that while the machines still use it.
            stack = Stack(name, Path(tempfile.mkdtemp(prefix="daskstack-")), image, key)
            cleanup.callback(stack.down)
            return stack

        yield make


@pytest.fixture(scope="session")
def stack(make_stack: Callable[[str], Stack]) -> Stack:
    """The session's shared stack."""
    return make_stack("tests")


@pytest.fixture(scope="session")
def boot(stack: Stack) -> Callable[..., list[Machine]]:
    """`[one, two] = boot("one", "two")`: machines of the shared stack; a new name creates a new machine."""
    return stack.boot


@pytest.fixture(scope="session")
def outside(stack: Stack) -> Iterator[Outside]:
    """A host outside of the shared stack's network that can send to its machines."""
    place = Outside(stack)
    yield place
    place.remove()


@pytest.fixture(scope="session")
def dev(image: str) -> Iterator[Checkout]:
    """Stack dev, created with `make up` like a user's, for all tests that take `checkout`.

    About that first run, `first_up` is its output, `first_status` the output of `git status` afterwards, `first_keys`
    the private keys that it created on the machines, and `seen_running` the command lines of all processes during the
    run, on this computer and on its machines.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that `timeout pytest` cleans up too
    # Not in pytest's folder, which an interrupted run deletes before this fixture has ended.
    folder = Path(tempfile.mkdtemp(prefix="daskstack-"))
    checkout = Checkout(folder)
    checkout.keep()
    try:
        with CommandLines() as seen:
            checkout.first_up = checkout.make("up")
        checkout.first_status, checkout.seen_running = checkout.status(), seen.lines
        checkout.first_keys = checkout.private_keys()
        yield checkout
    finally:
        checkout.make("destroy")
    shutil.rmtree(folder, ignore_errors=True)  # stays if a mount still needs it


@pytest.fixture
def checkout(dev: Checkout) -> Iterator[Checkout]:
    """Stack dev, restored to its original files and state."""
    with dev.home():
        dev.restore()
        yield dev


@pytest.fixture
def machines(checkout: Checkout) -> Mapping[str, Machine]:
    return checkout.machines()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator[None, pytest.TestReport]:
    report = yield
    checkout = getattr(item, "funcargs", {}).get("checkout")
    if report.failed and isinstance(checkout, Checkout):
        checkout.distrust()
    return report
