"""Hypothesis tries the same examples in every run, so that a run in CI can be repeated."""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, max_examples=50)
settings.load_profile("repeatable")
