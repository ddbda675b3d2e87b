"""Whether scheduler and data stay on their machines."""

from collections.abc import Mapping, Sequence

CONSEQUENCES = {
    "scheduler": "running work ends, and a new authority signs all machines' credentials anew",
    "data": "the files stay on the old machine's disk and are not copied; the cluster goes on with what the new one has"
    " at data.path",
}
SETTINGS = {"scheduler": "machines.scheduler", "data": "data.machine"}


def refusal(old: Mapping[str, str], new: Mapping[str, str], moves: Sequence[str]) -> str | None:
    """What to say where `scheduler` or `data` would move from one machine to another without a word in `moves`."""
    moved = [what for what in CONSEQUENCES if old[what] != new[what] and what not in moves]
    if not moved:
        return None
    lines = [
        f"{what} would move from {old[what]} to {new[what]}: {CONSEQUENCES[what]}."
        f" To keep it there: {SETTINGS[what]}: {old[what]}"
        for what in moved
    ]
    return "\n  ".join(
        ["nothing was changed, for a move has to be allowed", *lines, f"To go on: moves: [{', '.join(moved)}]"]
    )
