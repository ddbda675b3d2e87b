"""Dask on machines. What runs on its own, such as `ready`, imports nothing of Pulumi: it runs once for each machine."""
