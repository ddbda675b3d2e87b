"""Steps as one text, for machines without copies of them."""

import shlex
from collections.abc import Mapping

from on_this_computer.send_scripts import step_text


def script(state: str, variables: Mapping[str, str]) -> str:
    """Assignments, `common`, and the step: what a person runs by hand on a machine."""
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(variables.items()))
    return assignments + step_text("common") + step_text(state)
