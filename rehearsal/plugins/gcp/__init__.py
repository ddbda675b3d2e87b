"""What `resource_gcp.py` does, by topic."""
