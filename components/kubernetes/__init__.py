"""Dask in Kubernetes."""
