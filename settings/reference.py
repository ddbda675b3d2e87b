"""Generates docs/settings.md and settings/schema.json from the settings: python -m settings.reference

Editors use the schema to complete and check stack files.
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

The key `{KEY}` in a stack file contains all settings. `up` and `preview` check them before they change anything, and
report every mistake with its correction. Editors with the YAML language server complete and check stack files.

`make docs` generates this page from [settings](../settings).
"""
SECRET_SETTINGS = {
    "dask:secretEnv": "Environment variables with secret values for the scheduler, workers and notebooks.",
    "dask:jupyterPassword": "The password of the notebook server in Kubernetes; random by default.",
    "dask:sshKey": "The private SSH key that `up` connects with; by default the keys of your SSH agent.",
}


def rows(section: type[Section], place: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Each setting of a section with its place. A union of sections is skipped, because each has its own table."""
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
    return "" if value is None or value in ("", (), {}) else f"`{format_value(value)}`"


def example(field: FieldInfo) -> str:
    return f"`{format_value(field.examples[0])}`" if field.examples else ""


def format_value(value: Any) -> str:
    """A value as one line of YAML."""
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
            kind = get_args(source.model_fields["source"].annotation)[0]
            text = source.model_fields["source"].description
            parts.append(f"### `{choice}.source: {kind}`\n\n{text}\n\n{table(source, f'{choice}.')}\n")
    secret = "\n".join(f"| `{key}` | {text} | `{SECRETS[key]}` |" for key, text in SECRET_SETTINGS.items())
    parts.append(
        "## Secrets\n\nSecrets have separate keys, which Pulumi encrypts.\n\n"
        f"| key | meaning | set it with |\n| --- | --- | --- |\n{secret}\n"
    )
    return "\n".join(parts)


def schema() -> str:
    """The JSON schema of a stack file."""
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
