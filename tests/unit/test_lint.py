"""`make lint`: a problem that one of its tools can see makes it fail, and the message says what to do."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from daskstack.engine import PROJECT
from tools import lint

WORKFLOW = "name: a\non: push\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n      - run: echo hello\n"
SOUND = {
    "tools/sound.py": "one: int = 1\n",
    "sound.sh": "#!/bin/sh\nif true; then\n  echo hello\nfi\n",
    ".github/workflows/sound.yml": WORKFLOW,
}
PROBLEMS = {
    "ruff check": ("tools/unused.py", "import os\n", "ruff check --fix"),
    "ruff format": ("tools/quotes.py", "one = 'a'\n", "run `.venv/bin/ruff format`"),
    "ty check": ("tools/types.py", 'one: int = "a"\n', "correct the types"),
    "shellcheck -x": ("unquoted.sh", '#!/bin/sh\nrm -r "$1"/$2\n', "shellcheck.net"),
    "shfmt -d": ("on_the_cluster/steps/indented.sh", "if true; then\n\techo hello\nfi\n", "shfmt -w FILE"),
    "actionlint -shellcheck": (".github/workflows/a.yml", WORKFLOW.replace("runs-on", "runs-at"), "edit the workflow"),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    for name in ("pyproject.toml", ".editorconfig"):
        shutil.copy(PROJECT / name, tmp_path)
    for name in tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["ty"]["src"]["include"]:
        path = tmp_path / name
        path.touch() if path.suffix else path.mkdir()
    tmp_path.joinpath(".venv").symlink_to(sys.prefix)
    tmp_path.joinpath(".gitignore").write_text("/.venv\n")
    write(tmp_path, SOUND)
    monkeypatch.setattr(lint, "PROJECT", tmp_path)
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for file, text in files.items():
        folder.joinpath(file).parent.mkdir(parents=True, exist_ok=True)
        folder.joinpath(file).write_text(text)


@pytest.mark.parametrize("tool", PROBLEMS)
def test_a_tool_that_finds_a_problem_is_named_with_the_file_and_what_to_do(tool: str, project: Path) -> None:
    if tool.startswith("actionlint") and not lint.actionlint():
        pytest.skip("the workflows' syntax: actionlint is not installed; `make lint` builds it where Go is installed")
    file, text, remedy = PROBLEMS[tool]
    write(project, {file: text})
    [failed] = lint.failures(lint.checks())
    assert f"error: `{tool}` failed: " in failed
    assert Path(file).name in failed and remedy in failed.splitlines()[-1]


def test_nothing_is_said_about_a_sound_project(project: Path) -> None:
    assert lint.failures(lint.checks()) == []
