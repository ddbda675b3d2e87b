"""Parquet files in the shared directory: the workers write and read them, and this computer reads them, too.

Takes half a minute on a small cluster. For your own data, replace the generated table. Needs the shared
directory, which stacks on Kubernetes have with `data.size`. In Google Cloud, it also runs with a bucket that
`data.buckets` lists with `write: true`: FOLDER=gs://my-bucket/series
"""

import os

import dask.dataframe as dd
import dask.datasets
import fsspec
import pandas as pd

import daskstack

FOLDER = os.environ.get("FOLDER", "daskdata://example-series")


def main() -> None:
    with daskstack.connect(os.environ.get("STACK", "dev")):
        table = dask.datasets.timeseries(end="2000-01-08", seed=1)
        table.to_parquet(FOLDER)  # each worker writes its part

        # Only the columns and rows that are needed are read.
        busy = dd.read_parquet(FOLDER, columns=["name", "x"], filters=[("x", ">", 0.5)])
        print(f"{len(busy):,} of {len(table):,} rows have x > 0.5")

        files, path = fsspec.url_to_fs(FOLDER)
        parts = sorted(name for name in files.ls(path, detail=False) if name.endswith(".parquet"))
        with files.open(parts[0]) as file:
            part = pd.read_parquet(file)
        print(f"this computer read the first of {len(parts)} files: {len(part):,} rows")

        files.rm(path, recursive=True)


if __name__ == "__main__":
    main()
