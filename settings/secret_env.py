"""Environment variables with secret values for the scheduler, workers and notebooks: the key dask:secretEnv."""

import re
from typing import Any

import pulumi

from settings.common import SECRET_ENV, format_value, valid_variable

KEY = "dask:secretEnv"
LONGEST = 100_000  # bytes; Linux's limit is 128 KiB
# Variables with URLs. pip and uv print such values when they cannot parse them, and take a part of a password for the
# host if it contains / or @.
URLS = r"UV_(DEFAULT_INDEX|INDEX|(EXTRA_)?INDEX_URL)|PIP_((EXTRA_)?INDEX_URL|PROXY)|(?i:(https?|all)_proxy)"
URL = r"([\w-]+=)?\w+://([\w.~!$&'()*+,;=:%-]+@)?(\[[\da-f:]+\]|[\w.-]+)(:\d+)?(/[^\s@]*)?"


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
        return [f"{KEY}: is not a mapping; remove it, and set each variable: {SECRET_ENV}"]
    found = []
    for name, text in value.items():
        try:
            valid_variable(name)
        except ValueError as error:
            found.append(f"{KEY}.{format_value(name)[1:-1]}: {error}")
        if not isinstance(text, str):
            found.append(f"{KEY}.{name}: is not a string; set it again: {SECRET_ENV.replace('NAME', name)}")
        elif re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text) or len(text.encode("utf-8", "replace")) > LONGEST:
            problem = f"is longer than {LONGEST:,} bytes or contains control characters"
            found.append(f"{KEY}.{name}: {problem}; shorten or encode it")
        elif re.fullmatch(URLS, name) and not all(re.fullmatch(URL, word, re.ASCII) for word in text.split()):
            problem = "is not a URL such as https://USER:PASSWORD@HOST/PATH"
            remedy = "percent-encode special characters of the password, e.g. %40 for @, and set it again"
            found.append(f"{KEY}.{name}: {problem}; {remedy}: {SECRET_ENV.replace('NAME', name)}")
    return found
