"""Data that is larger than the cluster's memory: tasks read parts, reduce them, and forget them.

Takes a minute on a small cluster. SHARE is the size of the data relative to the workers' memory. For your own data,
replace the random array by `dask.dataframe.read_parquet` or another lazy source.
"""

import os

import dask.array as da

import daskstack

SHARE = float(os.environ.get("SHARE", "1.2"))


def main() -> None:
    with daskstack.connect(os.environ.get("STACK", "dev")) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        memory = sum(worker["memory_limit"] for worker in workers)
        rows = int(SHARE * memory / 8 / 1_000)
        data = da.random.default_rng(1).random((rows, 1_000), chunks=(8_000, 1_000))
        print(f"{data.nbytes / 2**30:.1f} GiB of data, {memory / 2**30:.1f} GiB of memory in {len(workers)} workers")

        # Without `persist`, a part exists only until the sums have taken it in.
        columns = data.mean(axis=0).compute()
        print(f"means of {len(columns)} columns, from {columns.min():.4f} to {columns.max():.4f}")


if __name__ == "__main__":
    main()
