"""Measures stacks and compares them with the tools that users would take instead: `make bench`."""
