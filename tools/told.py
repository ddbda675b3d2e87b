"""What a stack's file says, for programs that are not Pulumi's."""

from pathlib import Path
from typing import Any

import yaml

from daskstack.engine import PROJECT
from settings.common import KEY


def stack_file(stack: str) -> Path:
    """Of a stack that may be named with its organization, such as `me/dask/vms`."""
    return PROJECT / f"Pulumi.{Path(stack).name}.yaml"


def told(file: Path) -> dict[str, Any]:
    """The settings in a stack's file, empty where there are none. RuntimeError says what is wrong with the file."""
    try:
        whole = yaml.safe_load(file.read_text()) if file.is_file() else {}
        settings = ((whole or {}).get("config") or {}).get(KEY) or {}
    except yaml.YAMLError as error:
        raise RuntimeError(f"{file.name} is not YAML: {error}") from None
    except AttributeError:
        settings = None
    sections = ("machines", "cluster")
    if not isinstance(settings, dict) or not all(isinstance(settings.get(key) or {}, dict) for key in sections):
        raise RuntimeError(f"{file.name}: {KEY} under config, or a section of it, is not a set of keys")
    return settings
