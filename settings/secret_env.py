"""Environment variables with secret values for the scheduler, workers and notebooks: the key dask:secretEnv."""

import re
from typing import Any

import pulumi

from settings.common import format_value, valid_variable

KEY = "dask:secretEnv"
COMMAND = "pulumi config set --secret --path 'dask:secretEnv.NAME'"
LONGEST = 100_000  # bytes; Linux's limit is 128 KiB


def load() -> dict[str, str]:
    """Values by name. One `pulumi.RunError` lists all problems, without the values."""
    value: Any
    try:
        value = pulumi.Config("dask").get_object("secretEnv")
    except pulumi.ConfigTypeError:
        value = "text"
    found = list(problems({} if value is None else value))
    if found:
        raise pulumi.RunError("\n  ".join([f"found {len(found)} problem(s) in the stack's secrets:", *found]))
    return value if isinstance(value, dict) else {}


def problems(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return [f"{KEY}: is not a mapping; remove it, and set each variable: {COMMAND}"]
    found = []
    for name, text in value.items():
        try:
            valid_variable(name)
        except ValueError as error:
            found.append(f"{KEY}.{format_value(name)[1:-1]}: {error}")
        if not isinstance(text, str):
            found.append(f"{KEY}.{name}: is not a string; set it again: {COMMAND.replace('NAME', name)}")
        elif re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text) or len(text.encode("utf-8", "replace")) > LONGEST:
            problem = f"is longer than {LONGEST:,} bytes or contains control characters"
            found.append(f"{KEY}.{name}: {problem}; shorten or encode it")
    return found
