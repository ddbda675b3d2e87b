"""A real Kubernetes of one node for the session; everything is removed at its end.

Needs root, or sudo without a password.
"""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.support import Cluster


@pytest.fixture(scope="session")
def kubernetes() -> Iterator[Cluster]:
    """The session's shared cluster."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout pytest` must clean up, too
    # Not in pytest's folder: another run may remove that while the cluster lives in it.
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="daskstack-")))
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
