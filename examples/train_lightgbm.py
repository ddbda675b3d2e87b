"""Distributed training with LightGBM: every worker keeps its part of the data, and the workers build one model.

Takes half a minute on a small cluster. For your own data, replace `rows` by a Dask DataFrame or Dask Array. Needs
environments/ml.lock.
"""

import os

import dask.array as da
import lightgbm
import numpy as np

import daskstack


def rows(count: int) -> tuple[da.Array, da.Array]:
    """Features, shape (count, 10), and targets, shape (count,), in four parts."""
    random = da.random.default_rng(1)
    features = random.random((count, 10), chunks=(count // 4, 10))
    return features, 3 * features[:, 0] - 2 * features[:, 1] + 0.1 * random.standard_normal(count, chunks=count // 4)


def main() -> None:
    with daskstack.connect(os.environ.get("STACK", "dev")) as client:
        # Persist both together: LightGBM needs a target at the same place as its features.
        features, targets = client.persist(rows(100_000))
        model = lightgbm.DaskLGBMRegressor(client=client, n_estimators=40, verbose=-1)
        model.fit(features, targets)

        predicted, right = client.gather(client.compute([model.predict(features), targets]))
        error = float(np.sqrt(np.mean((predicted - right) ** 2)))
        print(f"error {error:.3f}, standard deviation of the targets {np.std(right):.3f}")

        model.to_local().booster_.save_model("lightgbm.txt")
        print("saved the model as lightgbm.txt")


if __name__ == "__main__":
    main()
