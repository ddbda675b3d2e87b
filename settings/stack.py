"""What Pulumi hands the program: the stack's settings, and secrets beside them."""

from pathlib import Path
from typing import Any

import pulumi
import yaml
from pulumi.runtime.config import is_config_secret

from settings import MINIMAL, SECRETS, KubernetesTarget, LocalSource, MachinesTarget, SettingsError, parse
from settings.common import KEY, Place, line, shown


def load() -> MachinesTarget | KubernetesTarget:
    """The stack's settings; all that is wrong with them in one `pulumi.RunError`."""
    project = Path(__file__).parents[1]
    try:
        value = pulumi.Config("dask").get_object("cluster")
    except pulumi.ConfigTypeError:
        value = pulumi.Config("dask").get("cluster")
    try:
        refuse_secrets(project)
        if value is None:
            raise SettingsError(
                [line((), f"is missing; write under `config:` in the stack's file {KEY}: {shown(MINIMAL)}")]
            )
        cluster = parse(value, project)
        refuse_a_borrowed_passphrase(cluster, pulumi.get_stack())
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None
    warn_of_plain_secrets()
    return cluster


def refuse_secrets(project: Path) -> None:
    """Pulumi hands the program a nested secret as plain text, which would be in the state, in previews and on disks."""
    if not is_config_secret(KEY):
        return
    file = project / f"Pulumi.{pulumi.get_stack()}.yaml"
    try:
        said = yaml.safe_load(file.read_text())["config"][KEY]
    except (OSError, KeyError, TypeError, yaml.YAMLError):  # the settings come from elsewhere
        said = None
    environment, password, key = SECRETS.values()
    remedy = (
        "is a secret, which would become plain text in the stack's state and on the cluster. Take it out, and set it"
        f" where it stays a secret: what tasks need by {environment}, the notebooks' password by {password}, an SSH key"
        f" by {key}"
    )
    found = [line(place, remedy) for place in secret_places(said)]
    raise SettingsError(found or [line((), f"some value in it {remedy}")])


def secret_places(said: Any) -> list[Place]:
    """Where a stack file's value has encrypted ones."""
    if isinstance(said, dict) and said.keys() == {"secure"}:
        return [()]
    inner = said.items() if isinstance(said, dict) else enumerate(said) if isinstance(said, list) else ()
    return [(key, *place) for key, value in inner for place in secret_places(value)]


def refuse_a_borrowed_passphrase(cluster: MachinesTarget | KubernetesTarget, stack: str) -> None:
    """Anybody can decrypt the secrets of stack dev, whose passphrase is empty."""
    if stack != "dev" or (isinstance(cluster, MachinesTarget) and isinstance(cluster.machines, LocalSource)):
        return
    place: Place = ("machines", "source") if isinstance(cluster, MachinesTarget) else ("target",)
    text = (
        "stack dev is for machines on this computer alone, because its secrets are encrypted under an empty passphrase;"
        " copy these settings to Pulumi.NAME.yaml, without encryptionsalt, restore Pulumi.dev.yaml, and run make up"
        " STACK=NAME"
    )
    raise SettingsError([line(place, text)])


def warn_of_plain_secrets() -> None:
    for key, command in SECRETS.items():
        namespace, name = key.split(":")
        if pulumi.Config(namespace).get(name) and not is_config_secret(key):
            pulumi.log.warn(f"{key} is plain text in the stack's file; choose a new one if others read it: {command}")
