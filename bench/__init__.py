"""Measures stacks and compares them with the tools that users would choose instead: `make bench`."""
