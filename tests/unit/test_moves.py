"""Neither scheduler nor data moves to another machine unless the settings allow that move."""

import pytest

from components.machines.moves import refusal

HERE = {"scheduler": "head", "data": "head"}


@pytest.mark.parametrize("what", ["scheduler", "data"])
def test_a_move_must_be_allowed_by_name(what: str) -> None:
    moved = HERE | {what: "hand"}
    [other] = HERE.keys() - {what}
    for allowed in ([], [other]):
        said = refusal(HERE, moved, allowed)
        assert said and f"{what} would move from head to hand" in said and f"moves: [{what}]" in said
    assert refusal(HERE, moved, [what]) is None


def test_without_a_move_nothing_has_to_be_allowed() -> None:
    assert refusal(HERE, HERE, []) is None
