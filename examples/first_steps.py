"""First steps: an array, a table and plain functions on the cluster.

Takes a few seconds. For your own work, replace the generated data by yours, and `square` by your function.
"""

import os

import dask.array as da
import dask.datasets

import daskstack


def square(number: int) -> int:
    return number**2


def main() -> None:
    with daskstack.connect(os.environ.get("STACK", "dev")) as client:
        print(f"dashboard: {client.dashboard_link}")

        # An array of 800 MB, of which every worker holds a part.
        array = da.random.default_rng(1).random((10_000, 10_000), chunks=(1_000, 10_000))
        print(f"mean of 100 million random numbers: {array.mean().compute():.4f}")

        table = dask.datasets.timeseries(seed=1)
        means = table.groupby("name").x.mean().compute()
        print(f"mean of x for {len(means)} names; the largest is {means.max():.4f} ({means.idxmax()})")

        squares = client.map(square, range(100))
        print(f"sum of 100 squares: {client.submit(sum, squares).result()}")


if __name__ == "__main__":
    main()
