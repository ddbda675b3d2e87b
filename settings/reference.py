"""Writes what the settings say of themselves: python -m settings.reference

docs/settings.md is for people, settings/schema.json for editors, which complete and check stack files with it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from settings import SECRETS, Cluster, KubernetesTarget, MachinesTarget, sections
from settings.common import KEY, Section

PROJECT = Path(__file__).parents[1]
PAGE, SCHEMA = PROJECT / "docs" / "settings.md", PROJECT / "settings" / "schema.json"
INTRODUCTION = f"""# Settings

One key of a stack file, `{KEY}`, holds all settings. They are checked together before anything changes, and each
mistake is reported with what would be right. Editors that use the YAML language server complete and check them.

This page is generated from [settings](../settings) by `make docs`.
"""
SECRET_SETTINGS = {
    "dask:secretEnv": "Environment variables of scheduler, workers and notebooks.",
    "dask:jupyterPassword": "The notebook server's password in Kubernetes; a random one without it.",
    "dask:sshKey": "The private SSH key that `up` connects with; the agent's keys without it.",
}


def rows(section: type[Section], place: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Each setting of a section with its place; sections of several kinds are left to tables of their own."""
    for field in section.model_fields.values():
        here, inner = f"{place}{field.alias}", sections(field)
        is_list = "tuple" in str(field.annotation)
        if len(inner) == 1:
            if (not field.is_required() and field.default is None) or is_list:
                yield here, field
            yield from rows(inner[0], f"{here}{'[]' if is_list else ''}.")
        elif not inner:
            yield here, field


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    return "" if value is None or value in ((), {}) else f"`{shown(value)}`"


def example(field: FieldInfo) -> str:
    return f"`{shown(field.examples[0])}`" if field.examples else ""


def shown(value: Any) -> str:
    """As YAML takes it on one line."""
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) or value[0].isdigit() else value


def plain(description: str | None) -> str:
    """A docstring as one line."""
    return " ".join((description or "").split())


def table(section: type[Section], place: str = "") -> str:
    lines = ["| setting | default | example | meaning |", "| --- | --- | --- | --- |"]
    for here, field in rows(section, place):
        lines.append(f"| `{here}` | {default(field)} | {example(field)} | {plain(field.description)} |")
    return "\n".join(lines)


def page() -> str:
    parts = [INTRODUCTION]
    for target, choice in ((MachinesTarget, "machines"), (KubernetesTarget, "cluster")):
        name = get_args(target.model_fields["target"].annotation)[0]
        parts.append(f"## `target: {name}`\n\n{target.model_fields['target'].description}\n\n{table(target)}\n")
        for source in sections(target.model_fields[choice]):
            word = get_args(source.model_fields["source"].annotation)[0]
            text = source.model_fields["source"].description
            parts.append(f"### `{choice}.source: {word}`\n\n{text}\n\n{table(source, f'{choice}.')}\n")
    secret = "\n".join(f"| `{key}` | {text} | `{SECRETS[key]}` |" for key, text in SECRET_SETTINGS.items())
    parts.append(
        "## Secrets\n\nSecrets have keys of their own, which Pulumi encrypts.\n\n"
        f"| key | meaning | set it with |\n| --- | --- | --- |\n{secret}\n"
    )
    return "\n".join(parts)


def schema() -> str:
    """A JSON schema of a stack file."""
    cluster = TypeAdapter(Cluster).json_schema(ref_template="#/$defs/{model}")
    definitions = cluster.pop("$defs")
    config = {"type": "object", "properties": {KEY: cluster}}
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A stack file of this project",
        "type": "object",
        "properties": {"config": config},
        "$defs": definitions,
    }
    return json.dumps(described(whole), indent=1, ensure_ascii=False) + "\n"


def described(value: Any) -> Any:
    """The schema with each description on one line."""
    if isinstance(value, dict):
        return {k: plain(v) if k == "description" and isinstance(v, str) else described(v) for k, v in value.items()}
    return [described(each) for each in value] if isinstance(value, list) else value


def main() -> None:
    PAGE.write_text(page())
    SCHEMA.write_text(schema())


if __name__ == "__main__":
    main()
