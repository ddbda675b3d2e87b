"""Distributed training with XGBoost on a table: the workers build one model, and none of them needs all of the rows.

Takes half a minute on a small cluster. For your own data, replace `table` by a Dask DataFrame, such as the result of
`dask.dataframe.read_parquet`. Needs environments/ml.lock.
"""

import os

import dask.datasets
import xgboost.dask

import daskstack


def main() -> None:
    with daskstack.connect(os.environ.get("STACK", "dev")) as client:
        table = dask.datasets.timeseries(end="2000-01-08", seed=1)
        features, targets = table[["x", "y"]], 3 * table.x - 2 * table.y
        data = xgboost.dask.DaskDMatrix(client, features, targets)
        trained = xgboost.dask.train(client, {"tree_method": "hist"}, data, num_boost_round=40, evals=[(data, "train")])

        errors = trained["history"]["train"]["rmse"]
        print(f"error {errors[-1]:.3f} after {len(errors)} rounds, {errors[0]:.3f} after the first")
        predicted = xgboost.dask.predict(client, trained, features)
        print(
            f"mean of the predictions {predicted.mean().compute():.3f}, of the targets {targets.mean().compute():.3f}"
        )


if __name__ == "__main__":
    main()
