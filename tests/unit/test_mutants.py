"""What `make mutants` takes for a proof, and what it does not."""

import subprocess
from pathlib import Path

import pytest

from tests.mutations import MUTATIONS, Mutation
from tools import mutants
from tools.mutants import Laboratory, MutationError

PRODUCT = "def answer():\n    return 42\n"
TESTS = """import pytest
import product

def test_the_answer():
    assert product.answer() == 42

def test_nothing():
    product.answer()

@pytest.fixture
def answered():
    assert product.answer() == 42

def test_after_a_fixture(answered):
    pass
"""
WRONG = "return 41"


@pytest.fixture
def laboratory(tmp_path: Path) -> Laboratory:
    project = tmp_path / "project"
    project.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    project.joinpath("product.py").write_text(PRODUCT)
    project.joinpath("test_product.py").write_text(TESTS)
    return Laboratory(tmp_path / "laboratory", project)


@pytest.mark.parametrize(
    ("test", "new", "caught"),
    [
        ("test_the_answer", WRONG, True),
        ("test_nothing", WRONG, False),
        ("test_after_a_fixture", WRONG, False),  # a fixture fails for other reasons, too
        ("test_the_answer", "return (", False),  # nothing was tested
    ],
)
def test_a_mutation_is_caught_only_if_its_test_itself_fails(
    laboratory: Laboratory, test: str, new: str, caught: bool
) -> None:
    mutation = Mutation("it", "It is right.", "product.py", "return 42", new, f"test_product.py::{test}")
    found, why = laboratory.catch(mutation)
    assert found == caught, why
    assert (laboratory.origin / "product.py").read_text() == PRODUCT


def test_a_test_that_fails_by_itself_proves_nothing(laboratory: Laboratory) -> None:
    (laboratory.origin / "product.py").write_text(PRODUCT.replace("42", "41"))
    fine, why = laboratory.check(["test_product.py::test_nothing", "test_product.py::test_the_answer"])
    assert not fine and "without a mutation it failed" in why


@pytest.mark.parametrize(("old", "said"), [("return 41", "nowhere"), ("n", "2 times")])
def test_a_mutation_whose_text_is_not_unique_is_reported(old: str, said: str) -> None:
    with pytest.raises(
        MutationError, match=f"mutation it: its old text occurs {said} in product.py; expected exactly once"
    ):
        mutants.changed(Mutation("it", "It is right.", "product.py", old, "", "test_product.py::test"), PRODUCT)


def test_a_sample_has_cheap_mutations_and_depends_on_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def at(commit: str) -> list[Mutation]:
        done = subprocess.CompletedProcess([], 0, f"{commit}\n")
        monkeypatch.setattr(mutants.subprocess, "run", lambda *_, **__: done)
        return mutants.sample(5)

    assert at("a") == at("a")
    assert len({frozenset(each.name for each in at(commit)) for commit in "abcdefgh"}) > 4
    assert all(each in MUTATIONS and each.test.startswith("tests/unit/") for each in at("a"))
