"""SHAP values across workers: each worker explains the predictions for its part of the data.

Takes half a minute on a small cluster. For your own model, replace `train`. Needs environments/ml.lock.
"""

import os

import dask.array as da
import lightgbm
import numpy as np
import shap

import daskstack


def train(features: np.ndarray) -> lightgbm.LGBMRegressor:
    """A model in which feature 0 matters most, then feature 1."""
    return lightgbm.LGBMRegressor(n_estimators=40, verbose=-1).fit(features, 3 * features[:, 0] - features[:, 1])


def explain(part: np.ndarray, model: lightgbm.LGBMRegressor) -> np.ndarray:
    """SHAP values of the part, one per row and feature."""
    return shap.TreeExplainer(model).shap_values(part)


def main() -> None:
    with daskstack.connect(os.environ.get("STACK", "dev")) as client:
        features = np.random.default_rng(1).random((4_000, 5))
        model = client.scatter(train(features), broadcast=True)  # sent to each worker once

        parts = da.from_array(features, chunks=(500, 5)).map_blocks(explain, model, dtype=float, meta=np.empty((0, 5)))
        importance = abs(parts).mean(axis=0).compute()
        ranking = ", ".join(f"feature {number} ({importance[number]:.2f})" for number in np.argsort(-importance)[:3])
        print(f"most important: {ranking}")


if __name__ == "__main__":
    main()
