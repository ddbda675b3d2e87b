"""docs/proof.md shows tests/mutations.py, and each mutation there still fits the product and names an existing test."""

import ast

import pytest

from daskstack.engine import PROJECT
from tests.mutations import MUTATIONS, Mutation
from tools import mutants


def test_the_page_matches_the_list_of_mutations() -> None:
    text = mutants.PAGE.read_text()
    assert mutants.page(text) == text, "run: python -m tools.mutants --table"


def test_names_of_mutations_are_unique() -> None:
    assert len({each.name for each in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.name)
def test_a_mutation_changes_one_place_and_names_a_test(mutation: Mutation) -> None:
    text = (PROJECT / mutation.file).read_text()
    assert mutants.changed(mutation, text) != text
    file, _, test = mutation.test.partition("::")
    nodes = ast.walk(ast.parse((PROJECT / file).read_text()))
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert test.partition("[")[0] in functions
