"""The pages name only files, make targets, commands and errors that exist."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

import settings
from daskstack import cli
from daskstack.engine import PROJECT

FILES = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True
).stdout.splitlines()
PAGES = sorted(file for file in FILES if file.endswith(".md") and file != "bench/results.md")
NAMES = {Path(file).name for file in FILES}
FOLDERS = {file.split("/")[0] for file in FILES if "/" in file}
TARGETS = set(re.findall(r"^([a-z][a-z-]*(?: [a-z-]+)*):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
PART = r"[\w.*-]+"

page = pytest.mark.parametrize("page", PAGES)


def code(page: str) -> list[str]:
    """What the page shows as code: blocks, and spans within a line."""
    text = (PROJECT / page).read_text()
    fence = re.compile(r"^ *```.*?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
    return fence.findall(text) + re.findall(r"`([^`]+)`", fence.sub("", text))


@page
def test_every_relative_link_leads_to_a_file_and_a_heading(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", (PROJECT / page).read_text()):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = PROJECT / page if not path else (PROJECT / page).parent / path
        assert target.exists(), f"{page} links to {path}"
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}
            assert heading in anchors, f"{page} links to {link}"


SITUATIONS = re.findall(r"```yaml\n(.*?)```", (PROJECT / "docs/situations.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("text", SITUATIONS)
def test_every_stack_file_for_a_situation_is_right(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube/config").write_text(
        "{contexts: [{name: research, context: {cluster: a}}], clusters: [{name: a}]}"
    )
    stack = yaml.safe_load(text)
    stack.get("environment", {}).pop("authority", None)  # the page shows no whole certificate
    settings.parse(stack, PROJECT)


@page
def test_every_make_target_exists(page: str) -> None:
    targets = {target for line in TARGETS for target in line.split()}
    named = {word for text in code(page) for word in re.findall(r"\bmake (?:-s )?([a-z][a-z-]*)", text)}
    assert named - targets == set()


@page
def test_every_command_of_daskstack_exists(page: str) -> None:
    named = {word for text in code(page) for word in re.findall(r"\bdask ?stack ([a-z][a-z-]*)", text)}
    assert named - set(cli.main.commands) == set()


@page
def test_every_file_of_the_project_that_is_named_exists(page: str) -> None:
    for text in code(page):
        for path in re.findall(rf"(?<![\w/.~:@$-])({PART}(?:/{PART})+)", text):
            if path.split("/")[0] in FOLDERS:
                assert [*PROJECT.glob(path)], f"{page} names {path}"
        for name in re.findall(r"(?<![\w/.-])(Pulumi\.\w+\.yaml|\w+\.(?:in|lock|py|toml|sh))\b", text):
            assert name in NAMES, f"{page} names {name}"


def test_every_error_that_the_page_on_troubleshooting_quotes_is_one_of_ours() -> None:
    cells = re.findall(r"^\| ([^|]+) \|", (PROJECT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    quoted = [error for cell in cells for error in re.findall(r'"([^"`$]+)"', re.sub("`[^`]*`", "", cell))]
    sources = [file for file in FILES if file.endswith((".py", ".sh")) and not file.startswith("tests/")]
    text = "\n".join((PROJECT / file).read_text() for file in sources)
    assert quoted
    assert [error for error in quoted if error not in text] == []
