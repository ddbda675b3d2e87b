"""Checkpoints: a long computation saves its state in the shared directory, and continues there after an interruption.

Takes a quarter of a minute on a small cluster. For your own computation, replace `step`. Needs the shared
directory, which stacks on Kubernetes have with `data.size`.
"""

import json
import os

import dask.array as da
import fsspec
import numpy as np

import daskstack

FOLDER, ROUNDS, EVERY = "daskdata://example-checkpoints", 20, 5


def step(weights: np.ndarray, features: da.Array, targets: da.Array) -> np.ndarray:
    """One step of gradient descent for a linear model."""
    errors = features @ weights - targets
    return weights - 0.5 * (features.T @ errors).compute() / len(features)


def train(features: da.Array, targets: da.Array, rounds: int) -> np.ndarray:
    files, path = fsspec.url_to_fs(FOLDER)
    files.makedirs(path, exist_ok=True)
    saved = sorted(files.glob(f"{path}/*.json"))
    start, weights = 0, np.zeros(features.shape[1])
    if saved:
        with files.open(saved[-1]) as file:
            start, weights = (state := json.load(file))["round"], np.array(state["weights"])
    print(f"starting after round {start}")
    for number in range(start + 1, rounds + 1):
        weights = step(weights, features, targets)
        if number % EVERY == 0:
            # A reader sees the whole checkpoint or none.
            with files.open(f"{path}/new", "w") as file:
                json.dump({"round": number, "weights": list(weights)}, file)
            files.mv(f"{path}/new", f"{path}/{number:06}.json")
    return weights


def main() -> None:
    with daskstack.connect(os.environ.get("STACK", "dev")) as client:
        random = da.random.default_rng(1)
        features = random.standard_normal((100_000, 3), chunks=(25_000, 3))
        features, targets = client.persist((features, features @ np.array([1.0, -2.0, 3.0])))
        try:
            train(features, targets, ROUNDS // 2)  # as if the computation was interrupted here
            weights = train(features, targets, ROUNDS)
            print(f"weights {weights.round(2)}")
        finally:
            files, path = fsspec.url_to_fs(FOLDER)
            files.rm(path, recursive=True)


if __name__ == "__main__":
    main()
