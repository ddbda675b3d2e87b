"""What the examples say that they need, which decides whether `make examples` runs them."""

import re
from pathlib import Path

import pytest

from tools.examples import examples, needs


@pytest.mark.parametrize("path", examples([]), ids=lambda path: path.name)
def test_an_example_says_what_it_needs_beyond_the_default_environment(path: Path) -> None:
    text = path.read_text()
    more = re.search(r"\b(import|from) (dask_ml|joblib|lightgbm|shap|sklearn|xgboost)\b", text)
    assert needs(path, "environments/ml.lock") == bool(more)
    assert needs(path, "the shared directory") == ("daskdata://" in text)
