"""How the project's folders import each other."""

import ast
from pathlib import Path

from daskstack.engine import PROJECT


def imported(file: Path) -> set[str]:
    """Full names of the modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_tests_import_each_other_only_by_full_name() -> None:
    files = sorted((PROJECT / "tests").rglob("*.py"))
    short = {path.stem for path in files}
    found = {f"{path.relative_to(PROJECT)} imports {name}" for path in files for name in imported(path) & short}
    assert found == set()


def test_the_bench_imports_nothing_from_the_tests() -> None:
    files = sorted((PROJECT / "bench").glob("*.py"))
    found = {f"{file.name} imports {name}" for file in files for name in imported(file) if name.startswith("tests")}
    assert files and found == set()
