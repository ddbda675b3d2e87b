"""A real one-node Kubernetes for the session; everything is removed at its end.

Needs root, or sudo without a password.
"""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.release import TOKEN, Stack, exposed
from tests.kubernetes.support import Cluster

# Fixtures that change the stack. Those in one tuple leave the stack in the same state, which takes a minute to reach.
STATES = (("to_change", "changed"), ("built",), ("learning",), ("asleep",), ("kept",))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one state run together, whatever the random order is. Tests that need no stack run before it exists."""
    places: dict[object, int] = {}

    def place(item: pytest.Item) -> tuple[bool, int, int]:
        needs = "stack" in item.fixturenames
        for fixtures in STATES:
            for number, each in enumerate(fixtures):
                if each in item.fixturenames:
                    return needs, places.setdefault(fixtures, len(places)), number
        return needs, places.setdefault(item.nodeid, len(places)), 0

    items.sort(key=place)


@pytest.fixture(scope="session")
def kubernetes() -> Iterator[Cluster]:
    """The session's shared cluster."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that `timeout pytest` cleans up too
    # Not in pytest's folder, because another run can delete that while the cluster uses it.
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="daskstack-")))
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def stack(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{kubernetes.programs}{os.pathsep}{os.environ['PATH']}")
        stack = Stack(tmp_path_factory.mktemp("trial"), kubernetes)
        yield stack
        stack.destroyed()


@pytest.fixture
def built(stack: Stack) -> Stack:
    """The stack with two workers, Jupyter, a secret variable, and a load balancer."""
    stack.has(exposed(stack), TOKEN)
    return stack
