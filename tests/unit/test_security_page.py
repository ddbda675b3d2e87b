"""docs/security.md names a test for each promise; here is checked that each of these tests exists."""

import ast
import re

from daskstack.engine import PROJECT

ROW = re.compile(r"^\| (?P<promise>.+?) \| (?P<tests>.+?) \|$", re.MULTILINE)


def test_every_promise_names_tests_that_exist() -> None:
    rows = [row for row in ROW.finditer((PROJECT / "docs/security.md").read_text()) if row["promise"] != "promise"]
    promises = [(row["promise"], row["tests"]) for row in rows if row["promise"] != "---"]
    assert promises
    for promise, tests in promises:
        named = re.findall(r"`(tests/\S+\.py)::(\w+)`", tests)
        assert named, f"no test is named for: {promise}"
        for file, test in named:
            nodes = ast.walk(ast.parse((PROJECT / file).read_text()))
            functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert test in functions, f"{file} has no {test}, which should prove: {promise}"
