"""A GKE cluster."""
