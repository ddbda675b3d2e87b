"""The modules of `resource_gcp.py`."""
