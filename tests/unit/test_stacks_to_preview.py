"""Which stacks a pull request previews."""

import ast
import importlib
import re
import subprocess
from collections import Counter
from modulefinder import ModuleFinder
from pathlib import Path

import pytest

from daskstack.engine import PROJECT
from tools.stacks_to_preview import touched

STACKS = ["vms", "dev", "gke"]


def test_a_changed_stack_file_previews_that_stack_alone():
    assert touched(["Pulumi.gke.yaml", "README.md"], STACKS) == ["gke"]


@pytest.mark.parametrize("path", ["__main__.py", "a/new/file", "Pulumi.yaml", "requirements.txt"])
def test_a_change_of_the_program_previews_every_stack_but_dev(path):
    assert touched([path], STACKS) == ["gke", "vms"]


@pytest.mark.parametrize("path", ["Pulumi.dev.yaml", "README.md", "tests/unit/test_settings.py", "Pulumi.old.yaml"])
def test_other_changes_preview_nothing(path):
    assert touched([path], STACKS) == []


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True)
    return set(listed.stdout.splitlines())


def program() -> dict[str, ast.Module]:
    """The modules that `__main__` imports and the programs that it starts with `python -m`, by their paths."""
    found: dict[str, ast.Module] = {}
    waiting = [PROJECT / "__main__.py"]
    while waiting:
        file = waiting.pop()
        if file.relative_to(PROJECT).as_posix() in found:
            continue
        finder = ModuleFinder(path=[str(PROJECT)])
        finder.run_script(str(file))
        for module in finder.modules.values():
            if module.__file__:
                path = Path(module.__file__)
                found[path.relative_to(PROJECT).as_posix()] = ast.parse(path.read_text())
                for name in re.findall(r"-m ([\w.]+)", path.read_text()):
                    started = PROJECT / f"{name.replace('.', '/')}.py"
                    waiting += [started] if started.exists() else []
    return found


def constants(modules: dict[str, ast.Module]) -> list[Path]:
    """The files and folders of the project that modules name as constants of type Path."""
    found = []
    for path in modules.keys() - {"__main__.py"}:
        module = importlib.import_module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        values = [value for value in vars(module).values() if isinstance(value, Path)]
        found += [value for value in values if value.is_absolute() and value.is_relative_to(PROJECT)]
    return [value for value in found if value.is_relative_to(PROJECT) and value != PROJECT]


def read_by_the_program() -> set[str]:
    """Tracked files that a stack's program imports, or names as a path or in a text."""
    modules, files = program(), tracked()
    places = constants(modules)
    texts = {
        node.value
        for module in modules.values()
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for file in PROJECT.glob("Pulumi.*.yaml"):  # they name locks
        texts |= set(re.findall(r"[\w./-]+", file.read_text()))
    names = Counter(Path(file).name for file in files)
    alone = {file for file in files if "." in Path(file).name and names[Path(file).name] == 1}
    named = {file for file in files if file in texts or (file in alone and Path(file).name in texts)}
    folders = {file for file in files if any(file.startswith(f"{text}/") for text in texts if "/" in text)}
    below = {file for file in files if any((PROJECT / file).is_relative_to(place) for place in places)}
    return (modules.keys() & files) | named | folders | below


# What only engine.py itself names, to build engines and stand-ins: no stack's program builds these.
BUILT = re.compile(r"rehearsal/(engine|kubernetes/programs|plugins)/.+")


def test_every_file_that_a_stacks_program_reads_previews_all_stacks():
    read = {file for file in read_by_the_program() if not BUILT.fullmatch(file)}
    # The search itself works.
    assert {
        *(
            "settings/machines.py",
            "settings/prices.yaml",
            "daskstack/engine.py",
            "environment.lock",
            "charts/jupyter.lock",
        ),
        *("charts/official.lock", "tools/uv.txt", "on_the_cluster/steps/data.sh", "on_this_computer/wait_for_boot.py"),
        *(
            "charts/dask/templates/worker.yaml",
            "charts/dask/files/drain.py",
            "on_this_computer/local_machines/machine.sh",
        ),
        *("on_the_cluster/check.py", "settings/lock.py", "charts/official.json"),
    } <= read
    assert [file for file in sorted(read) if touched([file], STACKS) != ["gke", "vms"]] == []
