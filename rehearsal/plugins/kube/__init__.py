"""What `resource_kubernetes.py` does, by topic."""
