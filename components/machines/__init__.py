"""Dask on machines."""
