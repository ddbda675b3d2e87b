"""Figures of the `vms` target, side by side with what a user would take instead: `make bench`."""

import sys
from pathlib import Path

# The machines and the checkout of the tests serve here, too.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
