"""Dask in Kubernetes. What runs on its own, such as `check`, imports nothing of Pulumi."""
