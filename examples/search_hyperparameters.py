"""A search for hyper-parameters with scikit-learn: joblib runs each fit on a worker. dask-ml prepares the data.

Takes half a minute on a small cluster. For your own data, replace `rows`; it must fit into the memory of each worker.
Needs environments/ml.lock.
"""

import os

import dask.array as da
import joblib
import numpy as np
from dask_ml.preprocessing import StandardScaler
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV

import daskstack


def rows(count: int) -> tuple[da.Array, np.ndarray]:
    """Features, shape (count, 6), and classes, shape (count,)."""
    features = np.random.default_rng(1).normal(5, 2, (count, 6))
    return da.from_array(features, chunks=(count // 4, 6)), (features[:, 0] + features[:, 1] > 10).astype(int)


def main() -> None:
    with daskstack.connect(os.environ.get("STACK", "dev")):
        features, classes = rows(2_000)
        scaled = StandardScaler().fit_transform(features).compute()

        search = GridSearchCV(
            RandomForestClassifier(random_state=1), {"n_estimators": [20, 60], "max_depth": [2, 4, 8]}, cv=3
        )
        with joblib.parallel_config("dask", retries=3):  # a fit that fails, because a worker stopped, is tried again
            search.fit(scaled, classes)
        print(f"best of {len(search.cv_results_['params'])}: {search.best_params_}, accuracy {search.best_score_:.3f}")


if __name__ == "__main__":
    main()
