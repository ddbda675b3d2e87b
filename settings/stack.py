"""Loads the stack's settings from Pulumi's configuration, and protects its secrets."""

from pathlib import Path
from typing import Any

import pulumi
import yaml
from pulumi.runtime.config import is_config_secret

from settings import MINIMAL, SECRETS, KubernetesTarget, LocalSource, MachinesTarget, SettingsError, parse
from settings.common import KEY, Place, format_value, line
from settings.official_values import edits


def load() -> MachinesTarget | KubernetesTarget:
    """The stack's settings. One `pulumi.RunError` lists all problems."""
    project = Path(__file__).parents[1]
    value: Any
    try:
        value = pulumi.Config("dask").get_object("cluster")
    except pulumi.ConfigTypeError:
        value = pulumi.Config("dask").get("cluster")
    try:
        reject_nested_secrets(project)
        if value is None:
            raise SettingsError(
                [line((), f"is missing; write e.g. under `config:` in the stack file {KEY}: {format_value(MINIMAL)}")]
            )
        cluster = parse(value, project)
        reject_empty_passphrase(cluster, pulumi.get_stack())
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None
    warn_about_plain_secrets()
    if isinstance(cluster, KubernetesTarget):
        written = pulumi.Config("dask").require_object("cluster").get("values", {})
        for place, text in edits(written, cluster.chart)[1].items():
            pulumi.log.warn(line(("values", *place), text))
    return cluster


def reject_nested_secrets(project: Path) -> None:
    """Pulumi passes nested secrets as plain text, which would end up in the state, in previews and on disks."""
    if not is_config_secret(KEY):
        return
    file = project / f"Pulumi.{pulumi.get_stack()}.yaml"
    try:
        value = yaml.safe_load(file.read_text())["config"][KEY]
    except (OSError, KeyError, TypeError, yaml.YAMLError):  # the settings are in another file
        value = None
    environment, password, key = SECRETS.values()
    remedy = (
        "is a secret, which would be plain text in the stack's state and on the cluster; remove it, and set variables"
        f" for tasks with {environment}, the notebooks' password with {password}, or an SSH key with {key}"
    )
    found = [line(place, remedy) for place in secret_places(value)]
    raise SettingsError(found or [line((), f"a value in it {remedy}")])


def secret_places(value: Any) -> list[Place]:
    """The places of encrypted values in a value of a stack file."""
    if isinstance(value, dict) and value.keys() == {"secure"}:
        return [()]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(key, *place) for key, inner in items for place in secret_places(inner)]


def reject_empty_passphrase(cluster: MachinesTarget | KubernetesTarget, stack: str) -> None:
    """Stack dev has an empty passphrase, so anyone can decrypt its secrets."""
    if stack != "dev" or (isinstance(cluster, MachinesTarget) and isinstance(cluster.machines, LocalSource)):
        return
    place: Place = ("machines", "source") if isinstance(cluster, MachinesTarget) else ("target",)
    text = (
        "stack dev supports only machines on this computer, because its secrets have an empty passphrase; copy these"
        " settings without encryptionsalt to Pulumi.NAME.yaml, restore Pulumi.dev.yaml, and run make up STACK=NAME"
    )
    raise SettingsError([line(place, text)])


def warn_about_plain_secrets() -> None:
    for key, command in SECRETS.items():
        namespace, name = key.split(":")
        if pulumi.Config(namespace).get(name) and not is_config_secret(key):
            pulumi.log.warn(f"{key} is plain text in the stack file; replace it if others can read it: {command}")
