"""The modules of `resource_kubernetes.py`."""
