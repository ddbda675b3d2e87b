"""A real one-node Kubernetes for the session; everything is removed at its end.

Needs root, or sudo without a password.
"""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.support import Cluster

# Fixtures of test_release.py. Those in one tuple leave the stack in the same state, which takes a minute to reach.
STATES = (("to_change", "changed"), ("built",), ("learning",), ("asleep",))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one state run together, whatever the random order is."""
    places: dict[object, int] = {}

    def place(item: pytest.Item) -> tuple[int, int]:
        for fixtures in STATES:
            for number, each in enumerate(fixtures):
                if each in item.fixturenames:
                    return places.setdefault((item.path, fixtures), len(places)), number
        return places.setdefault(item.nodeid, len(places)), 0

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
