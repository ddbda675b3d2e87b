"""Every example runs on stack dev with the packages for machine learning."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkout import Checkout
from tests.examples import PRINTS
from tools.examples import examples

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    # Not in pytest's folder, which an interrupted run deletes before this fixture has ended.
    folder = Path(tempfile.mkdtemp(prefix="daskstack-"))
    checkout = Checkout(folder)
    checkout.change(
        "Pulumi.dev.yaml",
        "^      workers: 2\n",
        "      workers: 2\n    environment: {lock: environments/ml.lock}\n",
    )
    try:
        checkout.make("up")
        yield checkout
    finally:
        checkout.make("destroy")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_an_example_runs_the_first_time(checkout: Checkout, name: str) -> None:
    said = checkout.make("examples", f"ONLY={name}")
    assert re.search(PRINTS[name], said), said


def test_each_example_has_a_test() -> None:
    assert {path.stem for path in examples([])} == PRINTS.keys()
