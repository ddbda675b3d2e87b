"""Variables with secret values for scheduler, workers and notebooks: the stack's own key dask:secretEnv."""

import re
from typing import Any

import pulumi

from settings.common import shown, valid_variable

KEY = "dask:secretEnv"
COMMAND = "pulumi config set --secret --path 'dask:secretEnv.NAME'"
LONGEST = 100_000  # bytes; Linux takes 128 KiB


def load() -> dict[str, str]:
    """Values by name; all that is wrong with them in one `pulumi.RunError`, which repeats no value."""
    try:
        value = pulumi.Config("dask").get_object("secretEnv")
    except pulumi.ConfigTypeError:
        value = "text"
    found = list(problems({} if value is None else value))
    if found:
        raise pulumi.RunError("\n  ".join([f"problems in the stack's secrets: {len(found)}", *found]))
    return value or {}


def problems(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return [f"{KEY}: is not a set of names and values; remove it, and set each: {COMMAND}"]
    found = []
    for name, text in value.items():
        try:
            valid_variable(name)
        except ValueError as error:
            found.append(f"{KEY}.{shown(name)[1:-1]}: {error}")
        if not isinstance(text, str):
            found.append(f"{KEY}.{name}: is not text; set it anew: {COMMAND.replace('NAME', name)}")
        elif re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text) or len(text.encode("utf-8", "replace")) > LONGEST:
            found.append(f"{KEY}.{name}: is longer than {LONGEST:,} bytes or has control characters; encode or cut it")
    return found
